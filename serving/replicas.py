"""Desired against actual: which replicas of a deployment to launch, drain and stop. Pure; the controller acts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from serving.vocabulary import REPLICA_OVER, Deployment, DeploymentState, Replica, ReplicaId, ReplicaState


class Why(StrEnum):
    """Why a replica is drained or stopped."""

    SCALED_DOWN = "scaled_down"
    REPLACED = "replaced"
    DEPLOYMENT_STOPPED = "deployment_stopped"
    DRAINED = "drained"
    DRAIN_TIMED_OUT = "drain_timed_out"


@dataclass(frozen=True, slots=True)
class Launch:
    count: int


@dataclass(frozen=True, slots=True)
class Drain:
    replica: ReplicaId
    why: Why


@dataclass(frozen=True, slots=True)
class Stop:
    replica: ReplicaId
    why: Why


@dataclass(frozen=True, slots=True)
class BackOff:
    """Replicas are missing, but the last ones failed; the next try is at `until`."""

    until: datetime
    failures: int


Action = Launch | Drain | Stop | BackOff


@dataclass(frozen=True, slots=True)
class Policy:
    """The times and bounds of the controller."""

    surge: int = 1  # replicas above the desired count that a rolling update may use
    surge_patience: timedelta = timedelta(seconds=60)  # for a place in the queue, before an old one makes room
    backoff_first: timedelta = timedelta(seconds=2)
    backoff_most: timedelta = timedelta(minutes=5)
    settle: timedelta = timedelta(seconds=3)  # until every gateway has seen that a replica drains
    drain_most: timedelta = timedelta(minutes=5)


_WORTH = {ReplicaState.PENDING: 0, ReplicaState.STARTING: 1, ReplicaState.WARMING: 2, ReplicaState.READY: 3}


def plan(deployment: Deployment, seen: Sequence[Replica], policy: Policy, *, now: datetime) -> list[Action]:
    """What to do next for one deployment. Called again after every change, so it only takes steps it is sure of."""
    desired = desired_count(deployment)
    live = [r for r in seen if r.state not in REPLICA_OVER and r.state is not ReplicaState.DRAINING]
    current = [r for r in live if r.generation == deployment.generation]
    old = [r for r in live if r.generation != deployment.generation]
    leaving = _surplus(deployment, desired, current) + _superseded(desired, current, old, seen, policy, now)
    actions: list[Action] = [_retire(replica, why) for replica, why in leaving]
    actions += _finish_drains(seen, policy, now)
    kept_old = len(old) - sum(1 for replica, _ in leaving if replica.generation != deployment.generation)
    missing = min(desired - len(current), desired + policy.surge - len(current) - kept_old)
    if missing > 0:
        wait = back_off(deployment, seen, policy)
        actions.append(wait if wait and now < wait.until else Launch(missing))
    return actions


def desired_count(deployment: Deployment) -> int:
    """How many replicas there should be now."""
    if deployment.state is DeploymentState.STOPPED:
        return 0
    return min(max(deployment.replicas, deployment.replicas_min), deployment.replicas_max)


def back_off(deployment: Deployment, seen: Sequence[Replica], policy: Policy) -> BackOff | None:
    """The earliest next launch after failures in a row: those of this generation since one was last ready."""
    mine = [r for r in seen if r.generation == deployment.generation]
    last_ready = max((r.ready_at for r in mine if r.ready_at), default=None)
    failed = [r.changed_at for r in mine if r.state is ReplicaState.FAILED]
    if last_ready:
        failed = [at for at in failed if at > last_ready]
    if not failed:
        return None
    doublings = min(len(failed) - 1, 20)
    return BackOff(max(failed) + min(policy.backoff_first * 2**doublings, policy.backoff_most), len(failed))


def _surplus(deployment: Deployment, desired: int, current: list[Replica]) -> list[tuple[Replica, Why]]:
    """Current replicas beyond the desired count: the least far along first, then the youngest."""
    why = Why.DEPLOYMENT_STOPPED if deployment.state is DeploymentState.STOPPED else Why.SCALED_DOWN
    by_age = sorted(current, key=lambda r: (r.created_at, r.id), reverse=True)
    by_worth = sorted(by_age, key=lambda r: _WORTH[r.state])
    return [(replica, why) for replica in by_worth[: max(len(current) - desired, 0)]]


def _superseded(
    desired: int, current: list[Replica], old: list[Replica], seen: Sequence[Replica], policy: Policy, now: datetime
) -> list[tuple[Replica, Why]]:
    """Old replicas that may go now: those that serve nobody, and as many as new ones already stand in for."""
    idle = [r for r in old if r.state is not ReplicaState.READY]
    serving = sorted((r for r in old if r.state is ReplicaState.READY), key=lambda r: (r.created_at, r.id))
    ready = sum(1 for r in current if r.state is ReplicaState.READY)
    may_go = max(ready + len(serving) - desired, 0)
    draining = any(r.state is ReplicaState.DRAINING for r in seen)
    stuck = any(r.state is ReplicaState.PENDING and now - r.created_at > policy.surge_patience for r in current)
    if may_go == 0 and stuck and not draining:
        may_go = 1  # the pool has no room for old and new side by side
    return [(replica, Why.REPLACED) for replica in idle + serving[:may_go]]


def _retire(replica: Replica, why: Why) -> Drain | Stop:
    """Only a ready replica has requests to finish."""
    return Drain(replica.id, why) if replica.state is ReplicaState.READY else Stop(replica.id, why)


def _finish_drains(seen: Sequence[Replica], policy: Policy, now: datetime) -> list[Action]:
    done: list[Action] = []
    for replica in seen:
        if replica.state is not ReplicaState.DRAINING:
            continue
        since = now - replica.changed_at
        fresh = replica.synced_at is not None and replica.synced_at > replica.changed_at + policy.settle
        if fresh and replica.requests_running + replica.requests_waiting == 0:
            done.append(Stop(replica.id, Why.DRAINED))
        elif since > policy.drain_most:
            done.append(Stop(replica.id, Why.DRAIN_TIMED_OUT))
    return done
