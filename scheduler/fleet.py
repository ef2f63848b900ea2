"""Nodes and pools: seen on the cluster, lost with it, closed and drained by operators."""

import logging
import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.db import notify
from kit.errors import InvalidInput, NotFound
from scheduler import attempts
from scheduler.adapters import store
from scheduler.adapters.tables import NodeRow, PoolRow
from scheduler.ports import NodeReport
from scheduler.terms import Terms
from scheduler.vocabulary import JOBS_CHANNEL, AttemptState, EndCause, NodeState

log = logging.getLogger(__name__)

CENTRE_LABEL, ACCELERATOR_LABEL = "heliu.io/centre", "heliu.io/accelerator"
_CENTRE, _ACCELERATOR = re.compile(r"^[a-z0-9-]+$"), re.compile(r"^[a-z0-9.-]+$")
RESOURCES = ("GPU", "slot")


async def record_nodes(tx: AsyncSession, reports: Sequence[NodeReport], *, now: datetime) -> list[str]:
    """What the cluster lists becomes the node table: new nodes open, missing ones are lost.

    Returns the nodes that are gone while work is placed on them: what a cluster does not list is dead for good in Ray.
    """
    known = {row.id: row for row in await store.nodes(tx, lock=True)}
    usable = [report for report in reports if pool_of(report) is not None]
    for report in usable:
        await _see(tx, known.get(report.id), report, now=now)
    listed = {report.id for report in usable}
    for row in known.values():
        if row.id not in listed and row.state == NodeState.READY:
            await _lose(tx, row, "its cluster does not list it any more", now=now)
    return [row.id for row in known.values() if row.id not in listed and row.placed_milli > 0]


async def give_up_on(tx: AsyncSession, node_ids: Sequence[str], *, terms: Terms, now: datetime) -> None:
    """Move what is placed on dead nodes.

    What nobody claimed is queued again at once; a runner that may still be alive is told to stop, or its lease ends.
    """
    rows = await tx.execute(
        text("""
            SELECT DISTINCT a.workload_id, a.id
            FROM scheduler.attempt a JOIN scheduler.placement p ON p.attempt_id = a.id
            WHERE a.state <> 'ended' AND p.node_id = ANY(CAST(:nodes AS text[])) ORDER BY a.workload_id"""),
        {"nodes": list(node_ids)},
    )
    for workload_id, attempt_id in rows.all():
        workload = await store.workload(tx, workload_id, lock=True)
        attempt = await store.attempt(tx, attempt_id, lock=True)
        assert workload is not None and attempt is not None, "both were just seen"
        if attempt.state == AttemptState.PLACED:
            await attempts.end(tx, workload, attempt, EndCause.NODE_LOST, "its node was lost", terms=terms, now=now)
        elif attempt.state != AttemptState.ENDED:
            await attempts.request_stop(tx, attempt, EndCause.NODE_LOST, now=now)


async def record_silence(tx: AsyncSession, *, terms: Terms, now: datetime) -> None:
    """The cluster does not answer: nodes not seen for long enough take no new work. What runs there may well go on."""
    for row in await store.nodes(tx, lock=True):
        if row.state == NodeState.READY and now - row.last_seen_at > timedelta(seconds=terms.node_silence_seconds):
            await _lose(tx, row, "its cluster does not answer", now=now)


async def cordon(tx: AsyncSession, node_id: str, reason: str, *, drain: bool, now: datetime) -> NodeRow:
    """Close a node for new work; with `drain` what runs on it is moved. Raises NotFound, InvalidInput."""
    if not reason.strip():
        raise InvalidInput("a node is closed for a reason; say which", code="no_reason")
    row = await _node(tx, node_id)
    row.cordon_reason, row.draining = reason.strip(), drain or row.draining
    await _changed(tx, row, "node.draining" if row.draining else "node.cordoned", {"reason": reason}, now=now)
    return row


async def uncordon(tx: AsyncSession, node_id: str, *, now: datetime) -> NodeRow:
    """Open a node again. Raises NotFound."""
    row = await _node(tx, node_id)
    row.cordon_reason, row.draining, row.failed_setups = None, False, 0
    await _changed(tx, row, "node.opened", {}, now=now)
    return row


def pool_of(report: NodeReport) -> tuple[str, str] | None:
    """Centre and accelerator of a node that lends accelerators; None for others, such as a bare head."""
    centre, accelerator = report.labels.get(CENTRE_LABEL, ""), report.labels.get(ACCELERATOR_LABEL, "")
    if not centre and not accelerator:
        return None
    if not _CENTRE.match(centre) or not _ACCELERATOR.match(accelerator):
        log.warning("node with labels that name no pool", extra={"node": report.id, "labels": dict(report.labels)})
        return None
    return (centre, accelerator) if _accelerators(report)[1] > 0 else None


def _accelerators(report: NodeReport) -> tuple[str, int]:
    for resource in RESOURCES:
        if count := int(report.resources.get(resource, 0)):
            return resource, count * 1000
    return RESOURCES[-1], 0


async def _see(tx: AsyncSession, row: NodeRow | None, report: NodeReport, *, now: datetime) -> None:
    resource, gpu_milli = _accelerators(report)
    if row is None:
        pool = pool_of(report)
        assert pool is not None, "only nodes of a pool are seen"
        name = "/".join(pool)
        new_pool = {"name": name, "centre": pool[0], "accelerator": pool[1], "created_at": now}
        await tx.execute(insert(PoolRow).values(new_pool).on_conflict_do_nothing())
        row = NodeRow(
            id=report.id, pool=name, address=report.address, resource=resource, gpu_milli=gpu_milli, placed_milli=0,
            state=NodeState.READY, draining=False, first_seen_at=now, last_seen_at=now,
        )  # fmt: skip
        tx.add(row)
        await _changed(tx, row, "node.ready", {"pool": name, "gpu_milli": gpu_milli}, now=now)
        return
    row.last_seen_at = now
    if gpu_milli < row.gpu_milli and gpu_milli < row.placed_milli:
        row.cordon_reason = row.cordon_reason or "it has fewer accelerators than work placed on it"
    else:
        row.gpu_milli = gpu_milli
    if row.state == NodeState.LOST:
        row.state = NodeState.READY
        await _changed(tx, row, "node.ready", {"pool": row.pool, "gpu_milli": row.gpu_milli}, now=now)


async def _lose(tx: AsyncSession, row: NodeRow, why: str, *, now: datetime) -> None:
    row.state = NodeState.LOST
    await _changed(tx, row, "node.lost", {"why": why, "placed_milli": row.placed_milli}, now=now)


async def _node(tx: AsyncSession, node_id: str) -> NodeRow:
    row = await store.node(tx, node_id, lock=True)
    if row is None:
        raise NotFound(f"There is no node {node_id}.", code="node_not_found")
    return row


async def _changed(tx: AsyncSession, row: NodeRow, topic: str, body: dict[str, object], *, now: datetime) -> None:
    await tx.flush()
    await events.append(tx, topic, row.id, body, now=now)
    await notify(tx, JOBS_CHANNEL, "*")
