"""The state a decision sees, read from the database in one transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from kit.units import GpuMilli
from quotas import api as quotas
from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.adapters import store
from scheduler.adapters.records import AnyAttempt
from scheduler.adapters.tables import AttemptRow, PlacementRow, WorkloadRow
from scheduler.kept_times import as_window, open_windows
from scheduler.lifetimes import seconds_left
from scheduler.lines import Kind
from scheduler.sharing import Quota, QuotaKey, Seat
from scheduler.snapshot import Running, State, Waiting
from scheduler.terms import Terms
from scheduler.usage import Holding, Lately, holdings
from scheduler.vocabulary import NodeId, Placement, Spread, WaitReason, WorkloadId

HOLDING = frozenset({WaitReason.BACKOFF, WaitReason.NO_MONEY, WaitReason.NO_PRICE})


async def load_state(tx: AsyncSession, terms: Terms, *, now: datetime) -> State:
    """Nodes, quotas, and all workloads that are not over."""
    live = await store.live_attempts(tx)
    placed = await store.placements(tx, [attempt.id for attempt, _ in live])
    running = [as_running(w, a, placed[a.id], terms, now=now) for a, w in live]
    waiting = [as_waiting(row) for row in await store.queued(tx)]
    nodes = store.as_nodes(await store.nodes(tx), await store.stocks(tx))
    as_they_are = await terms_of(tx, waiting, holdings(running), terms, now=now)
    return replace(as_they_are, nodes=nodes, waiting={w.id: w for w in waiting}, running={r.id: r for r in running})


async def terms_of(
    tx: AsyncSession,
    waiting: Iterable[Waiting | Kind],
    held: Mapping[QuotaKey, Holding],
    terms: Terms,
    *,
    now: datetime,
) -> State:
    """A state without nodes and work: the quotas, tree, history, kept times and prices of this instant."""
    limits = await quotas.quota_limits(tx, at=now)
    tree = await quotas.cohort_tree(tx, at=now)
    return State(
        quotas={key: Quota(v.nominal, v.borrowing, v.lending) for key, v in limits.items()},
        tree={node: Seat(seat.parent, seat.weight_milli) for node, seat in tree.items()},
        lately=_lately(await store.usage_lately(tx), held, terms, now=now),
        windows=tuple(as_window(row) for row in await open_windows(tx, now=now)),
        rates=await rates_for(tx, waiting, now=now),
    )


async def rates_for(tx: AsyncSession, waiting: Iterable[Waiting | Kind], *, now: datetime) -> dict[PoolName, int]:
    """Prices of the pools between which price decides: those that somebody likes equally."""
    pools = {pool for work in waiting if work.ranks for pool in work.pools}
    return dict(await quotas.gpu_rates(tx, sorted(pools), at=now)) if pools else {}


def as_waiting(row: WorkloadRow) -> Waiting:
    """A queued workload as decisions see it."""
    held = WaitReason(row.wait_reason) if row.wait_reason in HOLDING and row.held_until else None
    return Waiting(
        id=WorkloadId(row.id),
        firm_id=FirmId(row.firm_id),
        pools=tuple(PoolName(pool) for pool in row.pools),
        workers=row.workers,
        workers_min=row.workers_min,
        gpu_milli=GpuMilli(row.gpu_milli),
        priority=row.priority,
        submitted_at=row.submitted_at,
        seconds=seconds_left(row.expected_seconds, row.kept_ms),
        held=held,
        held_until=row.held_until if held else None,
        qos=QoS(row.qos),
        deadline=row.deadline,
        cpu_milli=row.cpu_milli,
        memory_mib=row.memory_mib,
        spread=Spread(row.spread),
        topology=row.topology,
        checkpoints=row.checkpoints,
        model=row.model,
        files=tuple(sorted(row.files.items())),
        ranks=tuple(row.pool_ranks or ()),
    )


def placement_of(attempt: AnyAttempt, placed: Sequence[PlacementRow]) -> Placement:
    """Where an attempt lies, from its rows in worker order."""
    return Placement(
        PoolName(attempt.pool),
        tuple(NodeId(row.node_id) for row in placed),
        GpuMilli(placed[0].gpu_milli),
        tuple(tuple(row.devices) for row in placed),
        placed[0].cpu_milli,
        placed[0].memory_mib,
    )


def as_running(
    workload: WorkloadRow, attempt: AttemptRow, placed: list[PlacementRow], terms: Terms, *, now: datetime
) -> Running:
    """A placed workload as decisions see it: it ends when its expected duration has passed since its start."""
    ends_at: datetime | None = None
    if attempt.stop_requested_at is not None:
        ends_at = attempt.stop_requested_at + timedelta(seconds=terms.grace_seconds)
    elif workload.expected_seconds is not None:
        left = seconds_left(workload.expected_seconds, workload.kept_ms) or 0
        ends_at = (attempt.started_at or now) + timedelta(seconds=left)
    return Running(
        WorkloadId(workload.id),
        FirmId(workload.firm_id),
        placement_of(attempt, placed),
        ends_at,
        attempt.stop_requested_at is not None,
        QoS(workload.qos),
        attempt.started_at,
        attempt.kept_at,
    )


def _lately(
    rows: Sequence[Any], held: Mapping[QuotaKey, Holding], terms: Terms, *, now: datetime
) -> dict[QuotaKey, int]:
    lately = Lately(terms.half_life_seconds)
    for row in rows:
        lately.keep((FirmId(row.firm_id), PoolName(row.pool)), row.milli_seconds, as_of=row.as_of)
    return lately.held(held, now=now)
