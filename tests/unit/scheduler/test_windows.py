"""Times for which nodes are kept: who may run there, who starts before, and who has to go."""

from datetime import UTC, datetime, timedelta

import pytest

from kit.units import GpuMilli
from quotas.vocabulary import FirmId, PoolName
from scheduler.sharing import Quota
from scheduler.snapshot import Node, Running, State, Waiting, apply, changes_between
from scheduler.vocabulary import Decision, NodeId, Placement, Preempt, Start, Wait, WaitReason, WorkloadId
from scheduler.windows import Window, WindowScope
from tests.support.deciding import decided as of_each

NOW = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
POOL, OTHER_POOL = PoolName("east/a100"), PoolName("west/a100")
FIRM, OTHER = FirmId("firm_one"), FirmId("firm_two")


def at(seconds: int) -> datetime:
    return NOW + timedelta(seconds=seconds)


def window(start: int, end: int, *, firm: FirmId | None = None, scope: str = "node", target: str = "n1") -> Window:
    return Window("win_1", WindowScope(scope), target, firm, at(start), at(end), "new fans")


def job(seconds: int | None, *, firm: FirmId = FIRM, checkpoints: bool = False, workers: int = 1) -> Waiting:
    return Waiting(
        WorkloadId("job_1"), firm, (POOL,), workers, GpuMilli(1000), 0, NOW, seconds, checkpoints=checkpoints
    )


def state(*windows: Window, waiting: Waiting | None = None, running: Running | None = None, nodes: int = 1) -> State:
    return State(
        nodes={NodeId(f"n{i}"): Node(NodeId(f"n{i}"), POOL, GpuMilli(1000)) for i in range(1, nodes + 1)},
        waiting={waiting.id: waiting} if waiting else {},
        running={running.id: running} if running else {},
        quotas={(firm, pool): Quota(GpuMilli(8000)) for firm in (FIRM, OTHER) for pool in (POOL, OTHER_POOL)},
        windows=windows,
    )


def decided(seen: State, now: datetime = NOW) -> list[Decision]:
    return of_each(seen, now=now)


@pytest.mark.parametrize(
    ("kept", "work", "starts_at"),
    [
        (window(600, 900), job(500), 0),  # it ends before
        (window(600, 900), job(600), 0),  # to the second
        (window(600, 900), job(601), 900),  # it would run into it
        (window(600, 900), job(None), 900),  # nobody knows when it ends
        (window(600, 900), job(5_000, checkpoints=True), 0),  # it is stopped then, and goes on
        (window(60, 900), job(5_000, checkpoints=True), 900),  # … but not for so little
        (window(-5, 900), job(1, checkpoints=True), 900),  # it has begun
        (window(600, 900, firm=FIRM), job(5_000), 0),  # it is kept for this firm
        (window(600, 900, firm=OTHER), job(5_000), 900),
        (window(600, 900, scope="pool", target=POOL), job(601), 900),
        (window(600, 900, scope="pool", target=OTHER_POOL), job(601), 0),
        (window(600, 900, scope="centre", target="east"), job(601), 900),
        (window(600, 900, scope="centre", target="west"), job(601), 0),
    ],
)
def test_work_starts_before_a_window_only_if_it_ends_before_or_can_be_moved(
    kept: Window, work: Waiting, starts_at: int
) -> None:
    (decision,) = decided(state(kept, waiting=work))
    if starts_at == 0:
        assert isinstance(decision, Start)
        return
    assert isinstance(decision, Wait)
    assert (decision.reason, decision.eta) == (WaitReason.WINDOW, at(starts_at))
    assert kept.target in decision.detail
    assert ("new fans" in decision.detail) == (kept.firm_id is None), "why a firm has nodes kept is its own business"
    assert OTHER not in decision.detail


def test_work_goes_to_the_node_that_is_not_kept() -> None:
    (decision,) = decided(state(window(10, 900), waiting=job(5_000), nodes=2))
    assert isinstance(decision, Start) and decision.placement.nodes == (NodeId("n2"),)


def test_two_windows_are_waited_for_one_after_the_other() -> None:
    (decision,) = decided(state(window(100, 200), window(250, 300), waiting=job(99)))
    assert isinstance(decision, Start)
    (decision,) = decided(state(window(10, 200), window(250, 300), waiting=job(99)))
    assert isinstance(decision, Wait) and decision.eta == at(300)


@pytest.mark.parametrize(
    ("kept", "now", "goes"),
    [
        (window(600, 900), 0, False),
        (window(600, 900), 589, False),
        (window(600, 900), 590, True),  # its grace ends when the window begins
        (window(600, 900), 899, True),
        (window(600, 900, firm=FIRM), 700, False),
        (window(600, 900, firm=OTHER), 700, True),
        (window(600, 900, target="n2"), 700, False),
    ],
)
def test_what_still_runs_where_a_window_begins_is_told_to_stop_with_its_grace(
    kept: Window, now: int, goes: bool
) -> None:
    placed = Placement(POOL, (NodeId("n1"),), GpuMilli(1000), ((0,),))
    work = Running(WorkloadId("job_2"), FIRM, placed, at(5_000), since=NOW)
    told = [d for d in decided(state(kept, running=work), at(now)) if isinstance(d, Preempt)]
    assert [(d.workload_id, d.why) for d in told] == ([("job_2", "window")] if goes else [])


def test_windows_are_facts_that_come_and_go_with_changes() -> None:
    before, after = state(window(1, 2), waiting=job(9)), state(window(1, 3), window(5, 6), waiting=job(9))
    assert apply(before, changes_between(before, after)) == after
    assert changes_between(after, after) == []
