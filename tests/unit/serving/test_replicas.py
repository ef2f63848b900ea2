"""Desired against actual, case by case."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.replicas import Action, BackOff, Drain, Launch, Policy, Stop, Why, plan
from serving.vocabulary import (
    REPLICA_TRANSITIONS,
    Deployment,
    DeploymentId,
    DeploymentKind,
    DeploymentState,
    ModelName,
    Replica,
    ReplicaId,
    ReplicaState,
    may_become,
)

NOW = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
POLICY = Policy()
S = ReplicaState


def deployment(
    replicas: int = 1, *, generation: int = 1, state: DeploymentState = DeploymentState.ACTIVE
) -> Deployment:
    return Deployment(
        id=DeploymentId("dep_1"),
        model=ModelName("m"),
        kind=DeploymentKind.SHARED,
        firm_id="firm_platform",
        project_id="prj_1",
        pool="optics-valley/cpu-slot",
        qos="standard",
        replicas_min=0,
        replicas=replicas,
        replicas_max=8,
        generation=generation,
        state=state,
        created_at=NOW,
    )


def replica(
    name: str, state: ReplicaState, *, generation: int = 1, age_seconds: float = 0, changed_seconds: float = 0
) -> Replica:
    """A replica that is `age_seconds` old and entered its state `changed_seconds` ago."""
    return Replica(
        id=ReplicaId(name),
        deployment_id=DeploymentId("dep_1"),
        model=ModelName("m"),
        workload_id=name,
        attempt_id=None,
        generation=generation,
        state=state,
        reason=None,
        url=None,
        engine_start=None,
        requests_running=0,
        requests_waiting=0,
        created_at=NOW - timedelta(seconds=max(age_seconds, changed_seconds)),
        changed_at=NOW - timedelta(seconds=changed_seconds),
        ready_at=None,
        synced_at=NOW,
    )


def steps(wanted: Deployment, *seen: Replica) -> list[Action]:
    return plan(wanted, seen, POLICY, now=NOW)


def test_missing_replicas_are_launched() -> None:
    assert steps(deployment(3)) == [Launch(3)]
    assert steps(deployment(3), replica("a", S.READY), replica("b", S.PENDING)) == [Launch(1)]


def test_enough_replicas_need_nothing() -> None:
    assert steps(deployment(2), replica("a", S.READY), replica("b", S.STARTING)) == []
    assert steps(deployment(0)) == []


def test_a_dead_replica_is_replaced_at_once_the_first_time() -> None:
    assert steps(deployment(1), replica("a", S.GONE)) == [Launch(1)]
    assert steps(deployment(1), replica("a", S.FAILED, changed_seconds=3)) == [Launch(1)]


def test_failures_in_a_row_double_the_wait_up_to_a_limit() -> None:
    failed = [replica(f"f{i}", S.FAILED, changed_seconds=10 * i + 1) for i in range(4)]
    (wait,) = steps(deployment(1), *failed)
    assert wait == BackOff(NOW - timedelta(seconds=1) + timedelta(seconds=16), 4)
    many = [replica(f"f{i}", S.FAILED, changed_seconds=1) for i in range(40)]
    (wait,) = steps(deployment(1), *many)
    assert isinstance(wait, BackOff)
    assert wait.until == NOW - timedelta(seconds=1) + POLICY.backoff_most


def test_a_replica_that_was_ready_since_forgives_earlier_failures() -> None:
    failed = [replica(f"f{i}", S.FAILED, changed_seconds=100 + i) for i in range(6)]
    was_ready = replace(replica("a", S.GONE), ready_at=NOW - timedelta(seconds=50))
    assert steps(deployment(1), *failed, was_ready) == [Launch(1)]


def test_a_new_generation_does_not_wait_for_the_old_ones_failures() -> None:
    failed = [replica(f"f{i}", S.FAILED, changed_seconds=1) for i in range(6)]
    assert steps(deployment(1, generation=2), *failed) == [Launch(1)]


def test_scaling_down_takes_the_least_far_along_then_the_youngest() -> None:
    old, young = replica("old", S.READY, age_seconds=90), replica("young", S.READY, age_seconds=10)
    waiting = replica("waiting", S.PENDING, age_seconds=200)
    assert steps(deployment(2), old, young, waiting) == [Stop(waiting.id, Why.SCALED_DOWN)]
    assert steps(deployment(1), old, young) == [Drain(young.id, Why.SCALED_DOWN)]


def test_stopping_a_deployment_drains_what_serves_and_stops_the_rest() -> None:
    stopped = deployment(2, state=DeploymentState.STOPPED)
    assert set(steps(stopped, replica("a", S.READY), replica("b", S.WARMING))) == {
        Drain(ReplicaId("a"), Why.DEPLOYMENT_STOPPED),
        Stop(ReplicaId("b"), Why.DEPLOYMENT_STOPPED),
    }


def test_a_drained_replica_stops_once_it_reported_idle_after_the_gateways_knew() -> None:
    idle = replica("a", S.DRAINING, changed_seconds=5)
    assert steps(deployment(0), idle) == [Stop(idle.id, Why.DRAINED)]
    assert steps(deployment(0), replace(idle, requests_running=1)) == []
    assert steps(deployment(0), replace(idle, synced_at=NOW - timedelta(seconds=4))) == []
    assert steps(deployment(0), replace(idle, synced_at=None)) == []


def test_a_drain_that_takes_too_long_ends() -> None:
    busy = replace(replica("a", S.DRAINING, changed_seconds=301), requests_running=1)
    assert steps(deployment(0), busy) == [Stop(busy.id, Why.DRAIN_TIMED_OUT)]


def test_a_draining_replica_does_not_count_as_one_that_serves() -> None:
    busy = replace(replica("a", S.DRAINING, changed_seconds=1), requests_running=1)
    assert steps(deployment(1), busy) == [Launch(1)]


def test_a_rolling_update_starts_the_new_one_first() -> None:
    old = [replica(f"o{i}", S.READY, age_seconds=100 - i) for i in range(2)]
    wanted = deployment(2, generation=2)
    assert steps(wanted, *old) == [Launch(1)]
    starting = replica("n0", S.STARTING, generation=2)
    assert steps(wanted, *old, starting) == []
    ready = replica("n0", S.READY, generation=2)
    assert steps(wanted, *old, ready) == [Drain(old[0].id, Why.REPLACED), Launch(1)]


def test_old_replicas_that_serve_nobody_go_at_once_in_an_update() -> None:
    wanted = deployment(1, generation=2)
    assert steps(wanted, replica("o", S.STARTING)) == [Stop(ReplicaId("o"), Why.REPLACED), Launch(1)]


def test_in_a_full_pool_an_old_replica_makes_room_after_the_patience() -> None:
    wanted, old = deployment(1, generation=2), replica("o", S.READY, age_seconds=500)
    young = replica("n", S.PENDING, generation=2, age_seconds=59)
    assert steps(wanted, old, young) == []
    stuck = replica("n", S.PENDING, generation=2, age_seconds=61)
    assert steps(wanted, old, stuck) == [Drain(old.id, Why.REPLACED)]
    other = replica("o2", S.READY, age_seconds=500)
    draining = replica("o", S.DRAINING, age_seconds=500, changed_seconds=1)
    assert steps(deployment(2, generation=2), draining, other, stuck) == [Launch(1)], "one at a time"


replicas = st.lists(
    st.tuples(st.sampled_from(S), st.integers(1, 2), st.integers(0, 600), st.integers(0, 3)), max_size=10
)


@given(replicas, st.integers(0, 5), st.booleans())
def test_no_plan_ever_overshoots_or_touches_what_is_over(
    drawn: list[tuple[ReplicaState, int, int, int]], wanted: int, stopped: bool
) -> None:
    seen = [
        replace(replica(f"r{i}", state, generation=generation, changed_seconds=age), requests_running=running)
        for i, (state, generation, age, running) in enumerate(drawn)
    ]
    state = DeploymentState.STOPPED if stopped else DeploymentState.ACTIVE
    actions = plan(deployment(wanted, generation=2, state=state), seen, POLICY, now=NOW)
    by_id = {r.id: r for r in seen}
    live = [r for r in seen if r.state not in (S.GONE, S.FAILED, S.DRAINING)]
    touched = [a.replica for a in actions if isinstance(a, Drain | Stop)]
    assert len(touched) == len(set(touched)), "a replica is told one thing at a time"
    for action in actions:
        match action:
            case Launch(count):
                assert not stopped
                assert count > 0
                leaving = sum(1 for r in touched if by_id[r].state is not S.DRAINING)
                assert len(live) - leaving + count <= wanted + POLICY.surge
            case Drain(victim, _):
                assert by_id[victim].state is S.READY
            case Stop(victim, _):
                assert by_id[victim].state not in (S.GONE, S.FAILED, S.READY)
            case BackOff(until, failures):
                assert until > NOW and failures > 0


@pytest.mark.parametrize("state", list(S))
def test_every_state_that_is_not_over_can_end(state: ReplicaState) -> None:
    if REPLICA_TRANSITIONS[state]:
        assert may_become(state, S.GONE) and may_become(state, S.FAILED)
    assert may_become(state, state)


def test_a_replica_is_never_ready_without_having_warmed() -> None:
    assert [s for s in S if S.READY in REPLICA_TRANSITIONS[s]] == [S.WARMING]
