"""Elastic gangs: as many workers as fit now, never fewer than their least, and nobody before them is delayed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kit.units import GpuMilli
from quotas.vocabulary import CohortName, FirmId, PoolName
from scheduler.cycle import Policy, decide, refusal
from scheduler.sharing import Quota, Seat
from scheduler.snapshot import Node, Placed, Queued, Running, State, Waiting
from scheduler.vocabulary import NodeId, Placement, Preempt, RejectReason, Start, Wait, WaitReason, WorkloadId
from tests.support.deciding import decided

NOW = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
POOL, FIRM = PoolName("east/a100"), FirmId("firm_one")


def gang(least: int | None, most: int, *, name: str = "job_1", priority: int = 0) -> Waiting:
    return Waiting(WorkloadId(name), FIRM, (POOL,), most, GpuMilli(1000), priority, NOW, 100, workers_min=least)


def state(*waiting: Waiting, nodes: int, used: int = 0, quota: int = 16) -> State:
    placed = Placement(POOL, tuple(NodeId(f"n{i}") for i in range(used)), GpuMilli(1000), ((0,),) * used)
    running = Running(WorkloadId("job_0"), FIRM, placed, NOW + timedelta(seconds=50), since=NOW)
    return State(
        nodes={NodeId(f"n{i}"): Node(NodeId(f"n{i}"), POOL, GpuMilli(1000)) for i in range(nodes)},
        waiting={one.id: one for one in waiting},
        running={running.id: running} if used else {},
        quotas={(FIRM, POOL): Quota(GpuMilli(quota * 1000))},
    )


@pytest.mark.parametrize(
    ("least", "most", "nodes", "used", "quota", "workers"),
    [
        (2, 8, 8, 0, 16, 8),
        (2, 8, 5, 0, 16, 5),
        (2, 8, 8, 5, 16, 3),
        (2, 8, 8, 6, 16, 2),
        (2, 8, 8, 7, 16, None),
        (2, 8, 8, 0, 4, 4),  # the quota allows four
        (1, 8, 1, 0, 16, 1),
        (None, 8, 8, 1, 16, None),  # of a fixed size: all or none
    ],
)
def test_it_starts_with_what_fits(
    least: int | None, most: int, nodes: int, used: int, quota: int, workers: int | None
) -> None:
    (decision,) = decided(state(gang(least, most), nodes=nodes, used=used, quota=quota), now=NOW)
    if workers is None:
        assert isinstance(decision, Wait) and decision.reason is WaitReason.NO_ROOM
        assert f"{least or most} workers" in decision.detail and decision.eta == NOW + timedelta(seconds=50)
    else:
        assert isinstance(decision, Start) and len(decision.placement.nodes) == workers


def test_it_leaves_to_work_before_it_what_that_is_promised() -> None:
    first, second = gang(None, 3, name="job_1", priority=5), gang(1, 8, name="job_2")
    decisions = {d.workload_id: d for d in decided(state(first, second, nodes=5), now=NOW)}
    assert [len(d.placement.nodes) for d in decisions.values() if isinstance(d, Start)] == [3, 2]


def test_a_gang_is_refused_only_if_not_even_its_fewest_could_ever_run() -> None:
    assert refusal(gang(4, 8), state(nodes=4)) is None
    rejected = refusal(gang(5, 8), state(nodes=4))
    assert rejected is not None and rejected.reason is RejectReason.TOO_LARGE


def test_stopped_for_promised_work_it_starts_again_with_what_that_leaves() -> None:
    other, city = FirmId("firm_two"), CohortName("city")
    quotas = {(FIRM, POOL): Quota(GpuMilli(2000)), (other, POOL): Quota(GpuMilli(6000))}
    tree = {city: Seat(None), FIRM: Seat(city), other: Seat(city)}
    alone = replace(state(gang(2, 8), nodes=8), quotas=quotas, tree=tree)
    (start,) = decided(alone, now=NOW)
    assert isinstance(start, Start) and len(start.placement.nodes) == 8, "it borrows all that nobody uses"

    running = Running(start.workload_id, FIRM, start.placement, NOW + timedelta(seconds=900), since=NOW)
    promised = Waiting(WorkloadId("job_2"), other, (POOL,), 3, GpuMilli(1000), 0, NOW, 100)
    later = NOW + timedelta(seconds=120)
    alone, decisions = decide(alone, [Placed(running), Queued(promised)], Policy(), now=later)
    assert [d.why for d in decisions.made if isinstance(d, Preempt)] == ["reclaim"]

    gone = later + timedelta(seconds=10)
    _, decisions = decide(alone, [Queued(gang(2, 8))], Policy(), now=gone)
    sizes = {d.workload_id: len(d.placement.nodes) for d in decisions.made if isinstance(d, Start)}
    assert sizes == {"job_2": 3, "job_1": 5}
