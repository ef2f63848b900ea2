"""Quota through the tree, the order of the queue, and whose work gives way, by example."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kit.units import GpuMilli
from quotas.vocabulary import CohortName, FirmId, PoolName, QoS
from scheduler import ordering
from scheduler.cycle import Policy
from scheduler.ordering import in_order
from scheduler.preemption import Standing
from scheduler.sharing import UNBOUNDED, Member, Quota, Seat, Sharing
from scheduler.snapshot import Node, Running, State, Waiting
from scheduler.vocabulary import NodeId, Placement, Preempt, Start, Wait, WaitReason, WorkloadId
from tests.support.deciding import decided
from tests.support.seats import seated

NOW = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
POOL = PoolName("optics-valley/a100")
RED, BLUE, GREEN = FirmId("firm_red"), FirmId("firm_blue"), FirmId("firm_green")
CITY, HUB = CohortName("city"), CohortName("hub")
ONE_TREE: dict[Member, Seat] = {CITY: Seat(None), **{firm: Seat(CITY) for firm in (RED, BLUE, GREEN)}}


def quota(nominal: int, borrowing: int | None = None, lending: int | None = None) -> Quota:
    more, less = (None if n is None else GpuMilli(n * 1000) for n in (borrowing, lending))
    return Quota(GpuMilli(nominal * 1000), more, less)


def waits(name: str, firm: FirmId = RED, gpus: int = 1, *, age: int = 0, **changes: object) -> Waiting:
    made = Waiting(
        WorkloadId(name), firm, (POOL,), 1, GpuMilli(gpus * 1000), 0, NOW - timedelta(seconds=age), seconds=600
    )
    return replace(made, **changes)


def runs(name: str, firm: FirmId = RED, gpus: int = 1, *, ran: int | None = 500, **changes: object) -> Running:
    placement = Placement(POOL, (NodeId("n"),), GpuMilli(gpus * 1000))
    since = None if ran is None else NOW - timedelta(seconds=ran)
    made = Running(WorkloadId(name), firm, placement, NOW + timedelta(hours=9), since=since)
    return replace(made, **changes)


def state(*things: Waiting | Running, gpus: int = 8, tree: dict[Member, Seat] | None = None, **quotas: Quota) -> State:
    named = {"red": RED, "blue": BLUE, "green": GREEN}
    node = Node(NodeId("n"), POOL, GpuMilli(gpus * 1000))
    return State(
        nodes={node.id: node},
        waiting={t.id: t for t in things if isinstance(t, Waiting)},
        running={t.id: t for t in seated([node], [t for t in things if isinstance(t, Running)])},
        quotas={(named[name], POOL): of for name, of in quotas.items()},
        tree=ONE_TREE if tree is None else tree,
    )


def line(of: State) -> list[str]:
    return [turn.workload.id for turn in in_order(of)]


def stopped(of: State) -> dict[str, tuple[str, str | None]]:
    made = decided(of, now=NOW)
    return {d.workload_id: (d.why, d.by) for d in made if isinstance(d, Preempt)}


@pytest.mark.parametrize(
    ("mine", "others", "used", "left"),
    [
        (quota(4), quota(4), {}, 8),  # its own and all the other lends
        (quota(4, borrowing=1), quota(4), {}, 5),
        (quota(4), quota(4, lending=1), {}, 5),
        (quota(4), quota(4), {BLUE: 3}, 5),
        (quota(4), quota(4, lending=1), {BLUE: 3}, 5),  # it uses what it keeps first
        (quota(4), quota(4, lending=1), {BLUE: 4}, 4),
        (quota(4, lending=1), quota(4), {BLUE: 5}, 3),  # what it keeps nobody can take
        (quota(4), quota(4), {RED: 6, BLUE: 2}, 0),
        (quota(2), quota(4), {RED: 7}, -1),  # quotas were lowered
        (quota(0), quota(0), {}, 0),
    ],
)
def test_what_is_left_for_a_firm(mine: Quota, others: Quota, used: dict[FirmId, int], left: int) -> None:
    sharing = Sharing({(RED, POOL): mine, (BLUE, POOL): others}, ONE_TREE)
    assert sharing.left((RED, POOL), {firm: n * 1000 for firm, n in used.items()}) == left * 1000


def test_a_firm_outside_every_cohort_has_its_nominal_quota_and_nothing_else() -> None:
    sharing = Sharing({(RED, POOL): quota(4), (BLUE, POOL): quota(4)}, {})
    assert sharing.most((RED, POOL)) == 4000
    assert quota(4).ceiling == UNBOUNDED


def test_a_tree_that_loops_ends_at_the_loop() -> None:
    sharing = Sharing({}, {RED: Seat(HUB), HUB: Seat(CITY), CITY: Seat(HUB)})
    assert sharing.path(RED) == (CITY, HUB, RED)


def test_inside_a_firm_class_priority_deadline_and_age_decide() -> None:
    things = [
        waits("old", age=99),
        waits("young"),
        waits("urgent", deadline=NOW + timedelta(seconds=700)),
        waits("sooner", deadline=NOW + timedelta(seconds=650), seconds=10),
        waits("high", priority=3),
        waits("firm", qos=QoS.RESERVED, priority=-9),
        waits("cheap", qos=QoS.INTERRUPTIBLE, priority=9),
    ]
    assert line(state(*things, red=quota(99))) == ["firm", "high", "urgent", "sooner", "old", "young", "cheap"]


def test_a_priority_pushes_nobody_of_another_firm_back() -> None:
    loud = [waits(f"loud{i}", RED, priority=1000, age=50) for i in range(3)]
    assert line(state(*loud, waits("quiet", BLUE, priority=-1000), red=quota(4), blue=quota(4))) == [
        "loud0", "quiet", "loud1", "loud2",
    ]  # fmt: skip


def test_a_flood_within_quota_takes_turns_with_a_single_job() -> None:
    flood = [waits(f"f{i:04}", RED, age=999) for i in range(1000)]
    of = state(*flood, waits("single", BLUE), red=quota(1000), blue=quota(1000))
    assert line(of).index("single") == 1


def test_what_is_promised_goes_before_what_borrows_and_history_never_touches_it() -> None:
    of = state(waits("own", RED), waits("borrows", BLUE, age=900), red=quota(1), blue=quota(0), green=quota(8))
    of = replace(of, lately={(RED, POOL): 8000})
    turns = in_order(of)
    assert [(t.workload.id, t.standing) for t in turns] == [
        ("own", ordering.Standing.PROMISED),
        ("borrows", ordering.Standing.BORROWS),
    ]


def test_borrowers_go_by_share_above_nominal_then_weight_then_history() -> None:
    both = [waits("red1", RED), waits("blue1", BLUE, age=9)]
    things = (*both, runs("r", BLUE, 2))
    assert line(state(*things, red=quota(0), blue=quota(0), green=quota(8))) == ["red1", "blue1"]
    heavy = {**ONE_TREE, BLUE: Seat(CITY, 9000)}
    assert line(state(*things, tree=heavy, red=quota(0), blue=quota(0), green=quota(8))) == ["blue1", "red1"]
    even = state(*both, red=quota(0), blue=quota(0), green=quota(8))
    assert line(even) == ["blue1", "red1"], "all equal: the older one"
    assert line(replace(even, lately={(BLUE, POOL): 500})) == ["red1", "blue1"]


def test_firms_of_one_cohort_lend_to_each_other_first() -> None:
    tree: dict[Member, Seat] = {CITY: Seat(None), HUB: Seat(CITY), RED: Seat(HUB), GREEN: Seat(HUB), BLUE: Seat(CITY)}
    things = (waits("in", RED), waits("out", BLUE, age=99))
    of = state(*things, tree=tree, red=quota(0), green=quota(4), blue=quota(0))
    assert line(of) == ["in", "out"], "the hub as a whole stays within what its firms have"


def test_a_burst_counts_at_once_so_borrowers_alternate() -> None:
    things = [waits(f"{firm[5:]}{i}", firm, age=10 - i) for i in range(3) for firm in (RED, BLUE)]
    assert line(state(*things, red=quota(0), blue=quota(0), green=quota(8))) == [
        "blue0", "red0", "blue1", "red1", "blue2", "red2",
    ]  # fmt: skip


def test_nominal_quota_covers_the_better_class_first_and_skips_what_does_not_fit() -> None:
    works = [
        waits("a", gpus=1, qos=QoS.INTERRUPTIBLE),
        waits("b", gpus=3),
        waits("c", gpus=2),
        waits("d", gpus=1, qos=QoS.RESERVED),
    ]
    standing = Standing.of(works)
    assert standing.promised(4000) == {"d", "b"}
    assert standing.promised(3000) == {"d", "c"}
    assert [standing.room_left(qos, 4000) for qos in QoS] == [3000, 0, 0]
    assert standing.without(works[1]).with_(works[1]).rows == standing.rows


def test_reclaim_stops_interruptible_work_first_then_what_loses_least_and_no_more_than_needed() -> None:
    things = [
        runs("mine", GREEN, 2),
        runs("long", RED, 2, ran=5000),
        runs("short", RED, 2, ran=100),
        runs("cheap", RED, 1, ran=9000, qos=QoS.INTERRUPTIBLE),
        waits("asks", BLUE, 1),
    ]
    of = state(*things, gpus=7, red=quota(0), green=quota(3), blue=quota(4))
    assert stopped(of) == {"cheap": ("reclaim", "asks")}
    more = replace(of, waiting={WorkloadId("asks"): waits("asks", BLUE, 2)})
    assert stopped(more) == {"short": ("reclaim", "asks")}, "the cheap one alone is not enough, and then not needed"
    all_of_it = replace(of, waiting={WorkloadId("asks"): waits("asks", BLUE, 4)})
    assert stopped(all_of_it).keys() == {"long", "short"}


def test_work_too_young_reserved_or_promised_is_not_stopped() -> None:
    asks = waits("asks", BLUE)
    young = state(runs("r", RED, 8, ran=59), asks, red=quota(0), blue=quota(8))
    assert stopped(young) == {}
    assert stopped(state(runs("r", RED, 8, ran=60), asks, red=quota(0), blue=quota(8))) == {"r": ("reclaim", "asks")}
    assert stopped(state(runs("r", RED, 8), asks, red=quota(8), blue=quota(8))) == {}
    reserved = runs("r", RED, 8, qos=QoS.RESERVED)
    assert stopped(state(reserved, asks, red=quota(0), blue=quota(8))) == {}
    outside = {CITY: Seat(None), BLUE: Seat(CITY)}
    assert stopped(state(runs("r", RED, 8), asks, tree=outside, red=quota(0), blue=quota(8))) == {}


def test_a_firms_own_interruptible_work_yields_to_its_better_work_but_not_to_its_equals() -> None:
    cheap = runs("cheap", RED, 2, qos=QoS.INTERRUPTIBLE)
    assert stopped(state(cheap, waits("asks"), tree={}, red=quota(2))) == {"cheap": ("yield", "asks")}
    assert stopped(state(cheap, waits("asks", qos=QoS.INTERRUPTIBLE), tree={}, red=quota(2))) == {}
    assert stopped(state(runs("same", RED, 2), waits("asks", priority=9), tree={}, red=quota(2))) == {}


def test_a_gang_that_borrows_is_not_stopped_for_its_own_firms_next_job() -> None:
    """The gang is wider than the quota, so all of the quota is promised to what comes after it."""
    wide = runs("wide", RED, 6)
    of = state(wide, waits("asks"), red=quota(2, borrowing=4), blue=quota(6))
    assert stopped(of) == {}
    assert stopped(replace(of, waiting={WorkloadId("asks"): waits("asks", qos=QoS.INTERRUPTIBLE)})) == {}
    shared = state(
        wide, runs("other", GREEN, 2), waits("asks"), red=quota(2, borrowing=5), green=quota(0), blue=quota(6)
    )
    assert stopped(shared) == {"other": ("reclaim", "asks")}, "what another firm borrows is given back"


def test_what_reclaims_waits_for_the_grace_and_stops_nobody_twice() -> None:
    of = state(runs("r", RED, 8), waits("asks", BLUE), red=quota(0), blue=quota(8))
    (wait,) = (d for d in decided(of, Policy(grace_seconds=20), now=NOW) if isinstance(d, Wait))
    assert (wait.reason, wait.eta) == (WaitReason.RECLAIM, NOW + timedelta(seconds=20))
    told = runs("r", RED, 8, is_stopping=True, ends_at=NOW + timedelta(seconds=20))
    assert stopped(state(told, waits("asks", BLUE), red=quota(0), blue=quota(8))) == {}


def test_reserved_work_starts_only_within_nominal_quota() -> None:
    of = state(waits("asks", RED, 2, qos=QoS.RESERVED), red=quota(1), blue=quota(7))
    (wait,) = decided(of, now=NOW)
    assert isinstance(wait, Wait)
    assert wait.reason is WaitReason.NO_QUOTA
    (start,) = decided(replace(of, waiting={WorkloadId("asks"): waits("asks", RED, 2)}), now=NOW)
    assert isinstance(start, Start)


def test_when_the_cohort_has_nothing_left_the_reason_says_how_much_it_has() -> None:
    of = state(runs("r", BLUE, 8), waits("asks", RED), red=quota(0), blue=quota(8))
    (wait,) = decided(of, now=NOW)
    assert isinstance(wait, Wait)
    assert wait.reason is WaitReason.NOT_LENT
    assert wait.detail == "it needs 1; the quota in optics-valley/a100 is 0, 0 in use; city has 0 of 8 left"
