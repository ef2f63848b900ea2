"""Questions to the scheduler's tables and the conditional writes that carry its rules; decisions are made elsewhere."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, or_, text, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel, col, select

from kit.db import sql
from kit.units import GpuMilli
from quotas.vocabulary import FirmId, PoolName
from scheduler.adapters.tables import (
    AttemptRow,
    InputRow,
    InventoryRow,
    LogLineRow,
    NodeRow,
    PlacementRow,
    PoolRow,
    QuoteRow,
    WorkloadRow,
)
from scheduler.sharing import QuotaKey
from scheduler.snapshot import NOTHING, Node, Stock
from scheduler.vocabulary import JOB_OVER, AttemptState, JobState, NodeId, NodeState, WorkloadKind


async def insert(tx: AsyncSession, *rows: SQLModel) -> None:
    """Write rows now, so that constraints speak now."""
    tx.add_all(rows)
    await tx.flush()


# --- workloads and attempts -------------------------------------------------------------------------------------------


async def workload(tx: AsyncSession, workload_id: str, *, lock: bool = False) -> WorkloadRow | None:
    """The workload; with `lock` nobody else changes it until the transaction ends."""
    return await tx.get(WorkloadRow, workload_id, with_for_update=lock or None, populate_existing=lock)


async def workload_by_key(tx: AsyncSession, firm_id: str, kind: WorkloadKind, key: str) -> WorkloadRow | None:
    """The workload that was submitted under an idempotency key."""
    query = select(WorkloadRow).where(
        WorkloadRow.firm_id == firm_id, WorkloadRow.kind == kind, WorkloadRow.idempotency_key == key
    )
    return (await tx.execute(query)).scalar_one_or_none()


async def workloads(
    tx: AsyncSession,
    *,
    firm_id: str | None,
    kind: WorkloadKind | None = None,
    states: Sequence[JobState] = (),
    before: str | None = None,
    limit: int = 50,
) -> Sequence[WorkloadRow]:
    """Workloads, newest first (ids sort by time), with an id smaller than `before`."""
    query = select(WorkloadRow)
    if firm_id is not None:
        query = query.where(WorkloadRow.firm_id == firm_id)
    if kind is not None:
        query = query.where(WorkloadRow.kind == kind)
    if states:
        query = query.where(col(WorkloadRow.state).in_(states))
    if before is not None:
        query = query.where(col(WorkloadRow.id) < before)
    return (await tx.execute(query.order_by(col(WorkloadRow.id).desc()).limit(limit))).scalars().all()


async def not_over(tx: AsyncSession, firm_id: str) -> Sequence[WorkloadRow]:
    """All of a firm's work that waits or runs."""
    query = select(WorkloadRow).where(WorkloadRow.firm_id == firm_id, col(WorkloadRow.state).not_in(JOB_OVER))
    return (await tx.execute(query)).scalars().all()


async def submitted_between(
    tx: AsyncSession, since: datetime, until: datetime
) -> Sequence[tuple[WorkloadRow, AttemptRow | None]]:
    """Work submitted in `[since, until)` with its last attempt, if there was one; in time order."""
    last = and_(col(AttemptRow.workload_id) == col(WorkloadRow.id), col(AttemptRow.fence) == col(WorkloadRow.fence))
    query = select(WorkloadRow, AttemptRow).outerjoin(AttemptRow, last)
    query = query.where(col(WorkloadRow.submitted_at) >= since, col(WorkloadRow.submitted_at) < until)
    query = query.order_by(col(WorkloadRow.submitted_at), col(WorkloadRow.id))
    return [(row[0], row[1]) for row in await tx.execute(query)]


async def firms_at_work(tx: AsyncSession) -> Sequence[str]:
    """Firms with work that waits or runs and was not told to stop."""
    query = select(WorkloadRow.firm_id).where(
        col(WorkloadRow.ended_at).is_(None), col(WorkloadRow.stop_requested_at).is_(None)
    )
    return (await tx.execute(query.distinct())).scalars().all()


async def queued(tx: AsyncSession) -> Sequence[WorkloadRow]:
    """Everything that waits."""
    query = select(WorkloadRow).where(WorkloadRow.state == JobState.QUEUED, col(WorkloadRow.ended_at).is_(None))
    return (await tx.execute(query)).scalars().all()


async def attempt(tx: AsyncSession, attempt_id: str, *, lock: bool = False) -> AttemptRow | None:
    """The attempt. To change it, lock its workload first: that is the order of locks."""
    return await tx.get(AttemptRow, attempt_id, with_for_update=lock or None, populate_existing=lock)


async def live_attempt(tx: AsyncSession, workload_id: str) -> AttemptRow | None:
    """The attempt of a workload that is not over."""
    query = select(AttemptRow).where(AttemptRow.workload_id == workload_id, col(AttemptRow.ended_at).is_(None))
    return (await tx.execute(query.execution_options(populate_existing=True))).scalar_one_or_none()


async def live_attempts(tx: AsyncSession) -> Sequence[tuple[AttemptRow, WorkloadRow]]:
    """Every attempt that is not over, with its workload, oldest first."""
    query = (
        select(AttemptRow, WorkloadRow)
        .join(WorkloadRow, col(WorkloadRow.id) == col(AttemptRow.workload_id))
        .where(col(AttemptRow.ended_at).is_(None))
        .order_by(col(AttemptRow.id))
    )
    return [(row[0], row[1]) for row in await tx.execute(query)]


async def unclaimed_attempts(tx: AsyncSession, *, ordered_too: bool) -> list[Any]:
    """What is placed and no runner has claimed, oldest first, as plain rows with all that a start needs.

    Without `ordered_too` only what the cluster was not told to start yet.
    """
    rows = await tx.execute(
        sql(f"""
            SELECT a.id, a.workload_id, a.fence, a.ordered_at, w.workers, w.gpu_milli, w.cpu_milli, w.memory_mib,
                p.node_id, n.resource
            FROM scheduler.attempt AS a JOIN scheduler.workload AS w ON w.id = a.workload_id
            JOIN scheduler.placement AS p ON p.attempt_id = a.id AND p.worker = 0
            JOIN scheduler.node AS n ON n.id = p.node_id
            WHERE a.ended_at IS NULL AND a.state = 'placed' {"" if ordered_too else "AND a.ordered_at IS NULL"}
            ORDER BY a.id""")  # noqa: S608
    )
    return list(rows)


async def running_replicas(tx: AsyncSession) -> Sequence[tuple[AttemptRow, WorkloadRow]]:
    """Every running attempt of a replica, with its workload, oldest first."""
    is_replica = and_(col(AttemptRow.state) == AttemptState.RUNNING, col(WorkloadRow.kind) == WorkloadKind.REPLICA)
    running = and_(col(AttemptRow.ended_at).is_(None), is_replica)
    return await _attempts_where(tx, running)


async def attempts_out_of_time(
    tx: AsyncSession, *, now: datetime, unclaimed_since: datetime, silent_since: datetime
) -> Sequence[tuple[AttemptRow, WorkloadRow]]:
    """Live attempts that time may have something to say about, oldest first: a few too many rather than one too few."""
    late = and_(col(AttemptRow.state) == AttemptState.PLACED, col(AttemptRow.placed_at) <= unclaimed_since)
    longest = text(
        "attempt.started_at + make_interval(secs => workload.max_runtime_seconds - workload.kept_ms / 1000 - 1) <= :now"
    )
    silent = and_(col(AttemptRow.state) != AttemptState.PLACED, col(AttemptRow.lease_until) <= silent_since)
    over = and_(col(AttemptRow.stop_requested_at).is_(None), longest.bindparams(now=now))
    return await _attempts_where(tx, and_(col(AttemptRow.ended_at).is_(None), or_(late, silent, over)))


async def _attempts_where(tx: AsyncSession, condition: Any) -> Sequence[tuple[AttemptRow, WorkloadRow]]:
    query = select(AttemptRow, WorkloadRow).join(WorkloadRow, col(WorkloadRow.id) == col(AttemptRow.workload_id))
    return [(row[0], row[1]) for row in await tx.execute(query.where(condition).order_by(col(AttemptRow.id)))]


async def mark_ordered(tx: AsyncSession, attempt_ids: Sequence[str], *, now: datetime) -> None:
    """The cluster has taken the order to start these. One that is being claimed just now needs no such mark."""
    await tx.execute(
        sql("""
            UPDATE scheduler.attempt AS a SET ordered_at = :now FROM (
                SELECT id FROM scheduler.attempt WHERE id = ANY(CAST(:ids AS text[])) AND state = 'placed'
                FOR UPDATE SKIP LOCKED) AS placed WHERE a.id = placed.id"""),
        {"ids": list(attempt_ids), "now": now},
    )


async def mark_cleared(tx: AsyncSession, attempt_ids: Sequence[str], *, now: datetime) -> None:
    """The cluster has nothing left of these; only of what is over that is worth a word."""
    await tx.execute(
        sql("""
            UPDATE scheduler.attempt AS a SET cleared_at = :now FROM (
                SELECT id FROM scheduler.attempt WHERE id = ANY(CAST(:ids AS text[])) AND ended_at IS NOT NULL
                FOR UPDATE SKIP LOCKED) AS over WHERE a.id = over.id"""),
        {"ids": list(attempt_ids), "now": now},
    )


async def attempts_to_clear(
    tx: AsyncSession, *, claimed_before: datetime, stopping_since: datetime, limit: int = 1000
) -> Sequence[str]:
    """Attempts that are over, or should long be, and whose remains the runtime may still have.

    One that was claimed and ended after `claimed_before` still has its last words.
    """
    ended = and_(
        col(AttemptRow.ended_at).is_not(None),
        col(AttemptRow.cleared_at).is_(None),
        or_(col(AttemptRow.claimed_at).is_(None), col(AttemptRow.ended_at) <= claimed_before),
    )
    overdue = and_(col(AttemptRow.ended_at).is_(None), col(AttemptRow.stop_requested_at) <= stopping_since)
    found: list[str] = []
    for condition in (ended, overdue):
        query = select(AttemptRow.id).where(condition).order_by(col(AttemptRow.ended_at), col(AttemptRow.id))
        found += (await tx.execute(query.limit(limit))).scalars()
    return found


async def has_linked_work(tx: AsyncSession) -> bool:
    """Whether any array is open or any job waits for others."""
    found = await tx.execute(
        sql("""
            SELECT EXISTS (SELECT FROM scheduler.job_array WHERE ended_at IS NULL) OR CASE
                WHEN EXISTS (SELECT FROM scheduler.dependency) THEN EXISTS (
                    SELECT FROM scheduler.workload WHERE ended_at IS NULL AND state = 'blocked')
                ELSE false END""")
    )
    return bool(found.scalar_one())


async def attempts_of(tx: AsyncSession, workload_id: str) -> Sequence[AttemptRow]:
    """All tries at a workload, first to last."""
    query = select(AttemptRow).where(AttemptRow.workload_id == workload_id).order_by(col(AttemptRow.fence))
    return (await tx.execute(query)).scalars().all()


async def placements(tx: AsyncSession, attempt_ids: Sequence[str]) -> dict[str, list[PlacementRow]]:
    """Placements of attempts, in worker order."""
    query = select(PlacementRow).where(col(PlacementRow.attempt_id).in_(attempt_ids))
    found: dict[str, list[PlacementRow]] = {attempt_id: [] for attempt_id in attempt_ids}
    for row in (await tx.execute(query.order_by(col(PlacementRow.worker)))).scalars():
        found[row.attempt_id].append(row)
    return found


async def inputs(tx: AsyncSession, workload_id: str) -> Sequence[InputRow]:
    """The files a workload reads."""
    query = select(InputRow).where(InputRow.workload_id == workload_id).order_by(col(InputRow.name))
    return (await tx.execute(query)).scalars().all()


async def quote(tx: AsyncSession, quote_id: str) -> QuoteRow | None:
    """A quote that was given."""
    return await tx.get(QuoteRow, quote_id)


async def renew_lease(tx: AsyncSession, attempt_id: str, fence: int, until: datetime) -> bool:
    """Extend the lease if this attempt is still the one; one conditional update. The caller has locked its workload."""
    done = await tx.execute(
        update(AttemptRow)
        .where(
            col(AttemptRow.id) == attempt_id,
            col(AttemptRow.fence) == fence,
            col(AttemptRow.state).in_((AttemptState.CLAIMED, AttemptState.RUNNING)),
        )
        .values(lease_until=until)
        .execution_options(synchronize_session=False)
    )
    return _changed(done)


# --- fleet ------------------------------------------------------------------------------------------------------------


async def pools(tx: AsyncSession) -> Sequence[PoolRow]:
    """Every pool ever seen."""
    return (await tx.execute(select(PoolRow).order_by(col(PoolRow.name)))).scalars().all()


async def nodes(tx: AsyncSession, *, pool: str | None = None, lock: bool = False) -> Sequence[NodeRow]:
    """Nodes in id order."""
    query = select(NodeRow).order_by(col(NodeRow.id))
    if pool is not None:
        query = query.where(NodeRow.pool == pool)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    return (await tx.execute(query)).scalars().all()


async def node(tx: AsyncSession, node_id: str, *, lock: bool = False) -> NodeRow | None:
    """One node."""
    return await tx.get(NodeRow, node_id, with_for_update=lock or None, populate_existing=lock)


async def stocks(tx: AsyncSession) -> dict[str, Stock]:
    """What each node has, as far as anybody has told."""
    return {row.node_id: as_stock(row) for row in (await tx.execute(select(InventoryRow))).scalars()}


def as_stock(row: Any) -> Stock:
    """What a node has, as decisions see it."""
    return Stock(frozenset(row.files), frozenset(row.models), frozenset(row.warm))


def as_nodes(rows: Sequence[Any], stocks: Mapping[str, Stock]) -> dict[NodeId, Node]:
    """The nodes as decisions see them.

    A machine whose Ray node died comes back under a new id while a runner may still be alive on it: it stays closed
    until nothing is placed on the old one any more (`take` holds the same rule).
    """
    haunted = {row.address for row in rows if row.state == NodeState.LOST and row.is_used}
    nodes: dict[NodeId, Node] = {}
    for row in rows:
        is_open = row.state == NodeState.READY and row.cordon_reason is None and row.address not in haunted
        nodes[NodeId(row.id)] = Node(
            NodeId(row.id),
            PoolName(row.pool),
            GpuMilli(row.gpu_milli),
            is_open,
            row.draining,
            row.cpu_milli,
            row.memory_mib,
            row.topology,
            stocks.get(row.id, NOTHING),
        )
    return nodes


async def quota_used(tx: AsyncSession) -> dict[QuotaKey, GpuMilli]:
    """What live attempts hold, by firm and pool."""
    rows = await tx.execute(sql("SELECT firm_id, pool, used_milli FROM scheduler.quota_use"))
    return {(FirmId(firm), PoolName(pool)): GpuMilli(used) for firm, pool, used in rows}


async def count_usage(tx: AsyncSession, used: Mapping[QuotaKey, int], *, half_life_seconds: int, now: datetime) -> None:
    """Add thousandths × seconds to what firms used of pools lately; what was there before has lost weight meanwhile."""
    keys = sorted(key for key, amount in used.items() if amount)
    if not keys:
        return
    await tx.execute(
        sql("""
            INSERT INTO scheduler.firm_usage AS u (firm_id, pool, milli_seconds, as_of)
            SELECT w.firm_id, w.pool, w.amount, :now FROM unnest(CAST(:firms AS text[]), CAST(:pools AS text[]),
                CAST(:amounts AS double precision[])) AS w (firm_id, pool, amount)
            ON CONFLICT (firm_id, pool) DO UPDATE SET as_of = :now, milli_seconds = excluded.milli_seconds
                + u.milli_seconds * power(0.5, greatest(0, extract(epoch FROM :now - u.as_of)) / :half_life)"""),
        {
            "firms": [firm for firm, _ in keys],
            "pools": [pool for _, pool in keys],
            "amounts": [float(used[key]) for key in keys],
            "now": now,
            "half_life": half_life_seconds,
        },
    )


async def usage_lately(tx: AsyncSession) -> Sequence[Any]:
    """What each firm used of each pool, as it weighed when it was last added to, as plain rows."""
    return (await tx.execute(sql("SELECT firm_id, pool, milli_seconds, as_of FROM scheduler.firm_usage"))).all()


# --- logs -------------------------------------------------------------------------------------------------------------


async def add_log_lines(
    tx: AsyncSession, workload_id: str, fence: int, lines: Sequence[tuple[int, str]], now: datetime
) -> None:
    """Store lines; those already there (by fence and seq) stay as they are."""
    if lines:
        await tx.execute(
            sql("""
                INSERT INTO scheduler.log_line (workload_id, fence, seq, at, text)
                SELECT :workload, :fence, l.seq, :now, l.text
                FROM unnest(CAST(:seqs AS integer[]), CAST(:texts AS text[])) AS l (seq, text)
                ON CONFLICT DO NOTHING"""),
            {
                "workload": workload_id,
                "fence": fence,
                "now": now,
                "seqs": [seq for seq, _ in lines],
                "texts": [line.replace("\x00", "�") for _, line in lines],
            },
        )


async def log_lines(tx: AsyncSession, workload_id: str, *, after: tuple[int, int], limit: int) -> Sequence[LogLineRow]:
    """Lines after (fence, seq), in order."""
    query = (
        select(LogLineRow)
        .where(LogLineRow.workload_id == workload_id)
        .where(text("(fence, seq) > (:fence, :seq)").bindparams(fence=after[0], seq=after[1]))
        .order_by(col(LogLineRow.fence), col(LogLineRow.seq))
        .limit(limit)
    )
    return (await tx.execute(query)).scalars().all()


def _changed(result: object) -> bool:
    assert isinstance(result, CursorResult)
    return result.rowcount > 0
