"""Each place in the queue has its reason: the firm's share, its history, and what puts it behind its own work."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kit.units import GpuMilli
from quotas.vocabulary import CohortName, FirmId, PoolName, QoS
from scheduler.adapters.tables import WorkloadRow
from scheduler.explain import expected_finish, standings
from scheduler.ordering import in_order
from scheduler.sharing import Quota, Seat
from scheduler.snapshot import Node, State, Waiting
from scheduler.vocabulary import NodeId, Spread, Start, WorkloadId
from tests.support.deciding import decided

NOW = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)
POOL, RED, BLUE, CITY = PoolName("east/a100"), FirmId("firm_red"), FirmId("firm_blue"), CohortName("city")


def work(name: str, firm: FirmId = RED, **changes: Any) -> Waiting:
    base = Waiting(WorkloadId(name), firm, (POOL,), 1, GpuMilli(1000), 0, NOW, 600)
    return replace(base, **changes)


def told(*waiting: Waiting, nominal: int = 4, lately: dict[tuple[FirmId, PoolName], int] | None = None) -> list[str]:
    state = State(
        waiting={one.id: one for one in waiting},
        quotas={(RED, POOL): Quota(GpuMilli(nominal * 1000)), (BLUE, POOL): Quota(GpuMilli(4000))},
        tree={CITY: Seat(None), RED: Seat(CITY), BLUE: Seat(CITY)},
        lately=lately or {},
    )
    turns = in_order(state)
    return [f"{turn.workload.id}: {why}" for turn, why, _ in standings(turns, state)]


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"qos": QoS.INTERRUPTIBLE}, "a later class"),
        ({"priority": -1}, "a lower priority"),
        ({"submitted_at": NOW + timedelta(seconds=1)}, "it came later"),
        ({}, "its id"),
    ],
)
def test_behind_its_firms_own_work_a_place_names_what_puts_it_there(changes: dict[str, Any], because: str) -> None:
    assert told(work("job_1"), work("job_2", **changes)) == [
        "job_1: within quota: with it and what is before it, its firm uses 25% of its own; the first of its firm",
        "job_2: within quota: with it and what is before it, its firm uses 50% of its own; "
        f"after job_1 of its firm: {because}",
    ]


def test_the_tighter_deadline_goes_first_and_the_other_says_so() -> None:
    soon, late = work("job_2", deadline=NOW + timedelta(hours=1)), work("job_1", deadline=NOW + timedelta(hours=2))
    assert told(soon, late)[1].endswith("after job_2 of its firm: a less tight deadline")


def test_what_borrows_tells_of_its_share_and_of_what_its_firm_held_lately() -> None:
    first, second = told(work("job_1"), work("job_2", BLUE), nominal=0, lately={(RED, POOL): 1500})
    share = "with it and what is before it, its firm"
    assert first == f"job_2: within quota: {share} uses 25% of its own; the first of its firm"
    above = "has 62% above its quota, and held 1.5 above it lately"
    assert second == f"job_1: borrows: {share} {above}; the first of its firm"


def test_what_may_go_before_its_place_says_so() -> None:
    """Beside the gang before it the quota does not cover it, but the gang finds no room, and then it does."""
    wide, small = work("job_1", workers=3, spread=Spread.SAME_NODE, priority=9), work("job_2", workers=2)
    foreign = work("job_3", BLUE, submitted_at=NOW - timedelta(seconds=1))
    state = State(
        nodes={NodeId(n): Node(NodeId(n), POOL, GpuMilli(1000)) for n in ("n1", "n2")}
        | {NodeId("n3"): Node(NodeId("n3"), POOL, GpuMilli(3000), is_open=False)},
        waiting={one.id: one for one in (wide, small, foreign)},
        quotas={(RED, POOL): Quota(GpuMilli(4000)), (BLUE, POOL): Quota(GpuMilli(0))},
        tree={CITY: Seat(None), RED: Seat(CITY), BLUE: Seat(CITY)},
    )
    told = [(turn.workload.id, first) for turn, _, first in standings(in_order(state), state)]
    assert told == [("job_1", False), ("job_3", False), ("job_2", True)]
    (starts,) = [decision for decision in decided(state, now=NOW) if isinstance(decision, Start)]
    assert starts.workload_id == "job_2"
    *_, (_, why, _) = standings(in_order(state), state)
    assert why.endswith("; before all that borrows as long as its firm's work before it cannot start")


def test_what_borrows_comes_after_what_its_firms_quota_holds() -> None:
    small, large = work("job_2", workers=1), work("job_1", workers=6, priority=9)
    assert told(small, large)[1].endswith("after job_2 of its firm: that is within quota")


def under_way(**changes: Any) -> WorkloadRow:
    """A job of 600 s that has kept 200 s in a checkpoint and runs again since 100 s, an hour after its first start."""
    fields: dict[str, Any] = {
        "state": "running",
        "expected_seconds": 600,
        "kept_ms": 200_000,
        "started_at": NOW - timedelta(hours=1),
        "running_since": NOW - timedelta(seconds=100),
    }
    return WorkloadRow(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 300),
        ({"kept_ms": 0}, 500),
        ({"progress": {"step": 3, "total_steps": 4}}, 100),  # three quarters took 300 s
        ({"progress": {"step": 4, "total_steps": 4}}, 0),
        ({"state": "starting"}, 400),
        ({"state": "queued", "eta": NOW + timedelta(seconds=50)}, 450),
        ({"state": "queued", "eta": NOW - timedelta(seconds=50)}, 400),
    ],
)
def test_a_job_is_expected_to_end_when_what_is_left_of_it_is_done(changes: dict[str, Any], seconds: int) -> None:
    assert expected_finish(under_way(**changes), now=NOW) == NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "changes",
    [
        {"running_since": NOW - timedelta(seconds=401)},  # longer than expected
        {"pause_requested_at": NOW},
        {"stop_requested_at": NOW},
        {"state": "queued", "eta": None},
        {"state": "blocked"},
        {"state": "paused", "progress": {"step": 3, "total_steps": 4}},
        {"state": "succeeded"},
        {"expected_seconds": None},
    ],
)
def test_no_end_is_told_where_nobody_knows_it(changes: dict[str, Any]) -> None:
    assert expected_finish(under_way(**changes), now=NOW) is None
