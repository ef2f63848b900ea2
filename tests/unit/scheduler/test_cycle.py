"""The cycle by example: who starts, who waits, and what it is told."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kit.units import GpuMilli
from quotas.vocabulary import CohortName, FirmId, PoolName
from scheduler.cycle import Policy, decide, refusal
from scheduler.decisions import decision_for
from scheduler.quote import forecast
from scheduler.sharing import Quota, Seat
from scheduler.snapshot import Node, Queued, Running, State, Waiting
from scheduler.vocabulary import (
    Decision,
    NodeId,
    Placement,
    Preempt,
    Reject,
    RejectReason,
    Start,
    StopRule,
    Wait,
    WaitReason,
    WorkloadId,
)
from tests.support.deciding import decided
from tests.support.seats import seated

NOW = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
POOL, OTHER = PoolName("optics-valley/a100"), PoolName("hankou/a100")
RED, BLUE = FirmId("firm_red"), FirmId("firm_blue")
CITY = {CohortName("city"): Seat(None), RED: Seat(CohortName("city")), BLUE: Seat(CohortName("city"))}


def node(name: str, gpus: int = 4, pool: PoolName = POOL, *, is_open: bool = True, draining: bool = False) -> Node:
    return Node(NodeId(name), pool, GpuMilli(gpus * 1000), is_open, draining)


def waits(
    name: str,
    *,
    firm: FirmId = RED,
    workers: int = 1,
    gpus: int = 1,
    priority: int = 0,
    age: int = 0,
    seconds: int | None = 600,
    pools: tuple[PoolName, ...] = (POOL,),
    held: WaitReason | None = None,
    held_until: datetime | None = None,
) -> Waiting:
    submitted = NOW - timedelta(seconds=age)
    need = GpuMilli(gpus * 1000)
    return Waiting(WorkloadId(name), firm, pools, workers, need, priority, submitted, seconds, held, held_until)


def runs(name: str, *nodes: str, firm: FirmId = RED, gpus: int = 1, ends_in: int | None = 300) -> Running:
    placement = Placement(POOL, tuple(NodeId(n) for n in nodes), GpuMilli(gpus * 1000))
    return Running(WorkloadId(name), firm, placement, None if ends_in is None else NOW + timedelta(seconds=ends_in))


def state(*things: Node | Waiting | Running, quota: int = 100) -> State:
    firms = {thing.firm_id for thing in things if not isinstance(thing, Node)} | {RED}
    nodes = [thing for thing in things if isinstance(thing, Node)]
    pools = {node.pool for node in nodes}
    return State(
        nodes={node.id: node for node in nodes},
        waiting={t.id: t for t in things if isinstance(t, Waiting)},
        running={t.id: t for t in seated(nodes, [t for t in things if isinstance(t, Running)])},
        quotas={(firm, pool): Quota(GpuMilli(quota * 1000)) for firm in firms for pool in pools},
    )


def decisions(of: State, policy: Policy | None = None) -> dict[str, Decision]:
    return {d.workload_id: d for d in decided(of, policy, now=NOW)}


def held_by(decision: Decision) -> tuple[WaitReason, int | None]:
    assert isinstance(decision, Wait)
    return decision.reason, None if decision.eta is None else round((decision.eta - NOW).total_seconds())


def test_higher_priority_goes_first_and_age_breaks_the_tie() -> None:
    made = decisions(
        state(node("n", 2), waits("young", age=1), waits("old", age=9), waits("urgent", priority=5), quota=9)
    )
    assert [type(made[name]) for name in ("urgent", "old", "young")] == [Start, Start, Wait]


def test_a_gang_is_placed_whole_on_the_fullest_nodes_that_hold_it() -> None:
    made = decisions(state(node("a", 4), node("b", 3), runs("x", "b"), waits("gang", workers=3, gpus=2)))
    start = made["gang"]
    assert isinstance(start, Start)
    assert sorted(start.placement.nodes) == ["a", "a", "b"]


def test_a_gang_that_does_not_fit_at_once_waits_whole_for_the_expected_end() -> None:
    made = decisions(state(node("a", 2), runs("x", "a", ends_in=300), waits("gang", workers=2)))
    assert held_by(made["gang"]) == (WaitReason.NO_ROOM, 300)


def test_quota_holds_work_until_the_firms_own_work_ends_and_says_the_numbers() -> None:
    made = decisions(state(node("a", 8), runs("x", "a", ends_in=60), waits("next", gpus=2), quota=2))
    assert held_by(made["next"]) == (WaitReason.NO_QUOTA, 60)
    wait = made["next"]
    assert isinstance(wait, Wait)
    assert wait.detail == "it needs 2; the quota in optics-valley/a100 is 2, 1 in use"


def test_one_firms_full_quota_does_not_hold_another_firm() -> None:
    made = decisions(state(node("a", 8), runs("x", "a"), waits("mine", age=9), waits("theirs", firm=BLUE), quota=1))
    assert held_by(made["mine"])[0] is WaitReason.NO_QUOTA
    assert isinstance(made["theirs"], Start)


def test_small_work_fills_a_gap_only_when_it_delays_nobody_before_it() -> None:
    things = (node("a", 2), runs("x", "a", ends_in=300), waits("big", gpus=2, age=9))
    made = decisions(state(*things, waits("long", seconds=301), waits("short", seconds=300)))
    assert held_by(made["big"]) == (WaitReason.NO_ROOM, 300)
    assert held_by(made["long"]) == (WaitReason.BEHIND, 900)
    assert isinstance(made["short"], Start)


def test_behind_a_replica_that_never_ends_there_is_no_expected_time() -> None:
    made = decisions(state(node("a", 1), runs("model", "a", ends_in=None), waits("job")))
    assert held_by(made["job"]) == (WaitReason.NO_ROOM, None)


def test_overdue_work_is_expected_to_end_soon_not_in_the_past() -> None:
    made = decisions(state(node("a", 1), runs("x", "a", ends_in=-500), waits("job")), Policy(overrun_seconds=30))
    assert held_by(made["job"]) == (WaitReason.NO_ROOM, 30)


def test_closed_nodes_take_nothing_and_the_reason_says_so() -> None:
    made = decisions(state(node("a", 4, is_open=False), waits("job")))
    assert held_by(made["job"]) == (WaitReason.NO_NODE, None)


def test_the_second_pool_is_taken_when_it_is_free_sooner() -> None:
    made = decisions(state(node("a", 1), node("z", 1, OTHER), runs("x", "a"), waits("job", pools=(POOL, OTHER))))
    start = made["job"]
    assert isinstance(start, Start)
    assert start.placement.pool == OTHER


def test_work_that_backs_off_keeps_no_place_and_tells_when_it_is_tried_again() -> None:
    until = NOW + timedelta(seconds=40)
    held = waits("again", age=99, held=WaitReason.BACKOFF, held_until=until)
    made = decisions(state(node("a", 1), held, waits("other", seconds=10)))
    assert held_by(made["again"]) == (WaitReason.BACKOFF, 40)
    assert isinstance(made["other"], Start)


def test_lack_of_money_is_looked_at_again_after_its_pause() -> None:
    poor = waits("poor", held=WaitReason.NO_MONEY, held_until=NOW + timedelta(seconds=1))
    assert held_by(decisions(state(node("a", 1), poor))["poor"]) == (WaitReason.NO_MONEY, None)
    again = waits("poor", held=WaitReason.NO_MONEY, held_until=NOW)
    assert isinstance(decisions(state(node("a", 1), again))["poor"], Start)


def test_work_on_a_draining_node_is_preempted_once() -> None:
    made = decisions(state(node("a", 4, is_open=False, draining=True), node("b"), runs("x", "a"), runs("y", "b")))
    assert made == {"x": Preempt(WorkloadId("x"), StopRule.DRAIN)}


def test_an_unknown_pool_is_rejected() -> None:
    made = decisions(state(node("a"), waits("lost", pools=(PoolName("moon/a100"),))))
    reject = made["lost"]
    assert isinstance(reject, Reject)
    assert reject.reason is RejectReason.UNKNOWN_POOL


def test_beyond_the_reservations_times_are_estimates_and_marked() -> None:
    things = [waits(f"job{i}", age=100 - i, seconds=100) for i in range(5)]
    made = decisions(state(node("a", 1), *things), Policy(reservations=2))
    assert [held_by(made[f"job{i}"])[1] for i in (1, 2, 3, 4)] == [100, 200, 200, 300]
    marks = [d.estimated for d in made.values() if isinstance(d, Wait)]
    assert marks == [False, False, True, True]


@pytest.mark.parametrize(
    ("workload", "quota", "expected"),
    [
        (waits("fits"), 1, None),
        (waits("wide", workers=3, gpus=2), 9, RejectReason.TOO_LARGE),
        (waits("greedy", gpus=2), 1, RejectReason.NO_QUOTA),
        (waits("elsewhere", pools=(PoolName("moon/a100"),)), 9, RejectReason.UNKNOWN_POOL),
    ],
)
def test_work_that_can_never_run_is_refused_before_it_is_accepted(
    workload: Waiting, quota: int, expected: RejectReason | None
) -> None:
    reject = refusal(workload, state(node("a", 4), runs("x", "a"), quota=quota))
    assert (reject.reason if reject else None) == expected


def test_what_counts_as_more_than_its_accelerators_says_why() -> None:
    asked = replace(waits("heavy"), memory_mib=512 << 10)
    reject = refusal(asked, state(node("a", 4), quota=1))
    assert reject is not None
    assert reject.detail.startswith("it needs 2, for the CPU or memory that it keeps from others, and the firm's quota")


def test_a_forecast_is_the_decision_that_would_be_made() -> None:
    seen = state(node("a", 1), runs("x", "a", ends_in=120), waits("before", seconds=60, age=5))
    told = forecast(seen, waits("asked", seconds=30), Policy(), now=NOW)
    assert (told.start, told.finish) == (NOW + timedelta(seconds=180), NOW + timedelta(seconds=210))
    with_it, made = decide(seen, [Queued(waits("asked", seconds=30))], Policy(), now=NOW)
    wait = decision_for(with_it, made, WorkloadId("asked"), now=NOW)
    assert isinstance(wait, Wait)
    assert (told.reason, told.detail) == (wait.reason, wait.detail)


def test_a_cycle_that_tells_nobody_ends_when_nothing_more_can_start() -> None:
    many = [waits(f"w{i:03}", age=i) for i in range(500)]
    long, short = waits("long", gpus=4, priority=2), waits("short", gpus=1, priority=1, seconds=200)
    of = state(node("n1"), runs("r1", "n1", gpus=2), long, short, *many)
    _, done = decide(of, (), Policy(), now=NOW, tell=False)
    assert [d.workload_id for d in done.made if isinstance(d, Start)] == ["short"], "in the gap before the long one"
    assert len(done.made) < 10 and not done.is_whole
    full = state(node("n1"), runs("r1", "n1", gpus=4), *many)
    assert decide(full, (), Policy(), now=NOW, tell=False)[1].made == []


def test_a_cycle_that_tells_nobody_still_takes_back_what_was_lent() -> None:
    lent = replace(runs("lent", "n1", firm=BLUE, gpus=4), since=NOW - timedelta(hours=1))
    of = replace(state(node("n1"), lent, waits("owner", gpus=4)), tree=CITY)
    of = replace(of, quotas={(RED, POOL): Quota(GpuMilli(4000)), (BLUE, POOL): Quota(GpuMilli(0))})
    _, done = decide(of, (), Policy(), now=NOW, tell=False)
    assert [d for d in done.made if isinstance(d, Preempt)] == [
        Preempt(WorkloadId("lent"), StopRule.RECLAIM, WorkloadId("owner"))
    ]
