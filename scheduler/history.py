"""What happened, read back: a period as a recording, and which events are decisions."""

from collections.abc import Iterable
from datetime import datetime
from itertools import product

from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import Refused
from quotas import api as quotas
from quotas.vocabulary import PoolName, QoS
from scheduler.adapters import store
from scheduler.adapters.tables import AttemptRow, WorkloadRow
from scheduler.facts import load_state
from scheduler.recording import RecordedNode, RecordedQuota, RecordedRate, RecordedSeat, RecordedWork, Recording
from scheduler.snapshot import Node
from scheduler.terms import Terms
from scheduler.vocabulary import EndCause, Spread

DECISIONS = tuple(
    f"{kind}.{verb}" for kind in ("job", "workload") for verb in ("starting", "waiting", "preempted", "requeued")
)


async def record(tx: AsyncSession, terms: Terms, *, since: datetime, until: datetime, now: datetime) -> Recording:
    """Work submitted in `[since, until)`, with the nodes that are open and the quotas in force now.

    What was cancelled before it ever ran is left out: it took nothing.
    """
    state = await load_state(tx, terms, now=now)
    work = await store.submitted_between(tx, since, until)
    return Recording(
        nodes=[_node(node) for node in state.nodes.values() if node.is_open],
        quotas=[
            RecordedQuota(
                firm_id=firm, pool=pool, nominal_milli=q.nominal, borrowing_milli=q.borrowing, lending_milli=q.lending
            )
            for (firm, pool), q in sorted(state.quotas.items())
        ],
        tree=[
            RecordedSeat(node=node, parent=seat.parent, weight_milli=seat.weight_milli)
            for node, seat in sorted(state.tree.items())
        ],
        work=[_recorded(row, last, now=now) for row, last in work if row.started_at or row.ended_at is None],
        rates=await _rates(tx, {node.pool for node in state.nodes.values()}, now=now),
        half_life_seconds=terms.half_life_seconds,
    )


async def _rates(tx: AsyncSession, pools: Iterable[PoolName], *, now: datetime) -> list[RecordedRate]:
    """List prices of this moment; what has none is left out."""
    rates: list[RecordedRate] = []
    for pool, qos in product(sorted(pools), QoS):
        try:
            rate = await quotas.gpu_rate(tx, pool=pool, qos=qos, at=now)
        except Refused:
            continue
        rates.append(RecordedRate(pool=pool, qos=qos, micro_yuan_per_gpu_hour=rate.micro_yuan_per_gpu_hour))
    return rates


def _node(node: Node) -> RecordedNode:
    return RecordedNode(
        id=node.id,
        pool=node.pool,
        gpu_milli=node.gpu_milli,
        cpu_milli=node.cpu_milli,
        memory_mib=node.memory_mib,
        topology=dict(node.topology),
    )


def _recorded(row: WorkloadRow, last: AttemptRow | None, *, now: datetime) -> RecordedWork:
    return RecordedWork(
        id=row.id, firm_id=row.firm_id, pools=row.pools, workers=row.workers, gpu_milli=row.gpu_milli,
        cpu_milli=row.cpu_milli, memory_mib=row.memory_mib, spread=Spread(row.spread), topology=row.topology,
        qos=QoS(row.qos), priority=row.priority, deadline=row.deadline, submitted_at=row.submitted_at,
        expected_seconds=row.expected_seconds, ran_seconds=_ran_seconds(row, last, now=now),
    )  # fmt: skip


def _ran_seconds(row: WorkloadRow, last: AttemptRow | None, *, now: datetime) -> int:
    """What is over ran for what its attempts kept and the last one added; what is not, runs as long as expected."""
    if row.ended_at is None:
        known = row.expected_seconds
        return int((now - (row.started_at or now)).total_seconds()) if known is None else known
    added = 0 if last is None else (last.ran_ms or 0) - (0 if last.cause == EndCause.DONE else last.kept_ms)
    return (row.kept_ms + added) // 1000
