"""Nodes and pools: seen on the cluster, lost with it, closed and drained by operators."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.db import notify
from kit.errors import InvalidInput, NotFound
from kit.units import MILLI_PER_GPU
from scheduler import attempts
from scheduler.adapters import device_store, store
from scheduler.adapters.tables import DeviceRow, NodeRow, PoolRow
from scheduler.ports import NodeReport
from scheduler.terms import Terms
from scheduler.vocabulary import JOBS_CHANNEL, AttemptState, EndCause, NodeState

log = logging.getLogger(__name__)

CENTRE_LABEL, ACCELERATOR_LABEL = "heliu.io/centre", "heliu.io/accelerator"
RESOURCE_LABEL, VARIABLE_LABEL = "heliu.io/resource", "heliu.io/devices-variable"
TOPOLOGY_PREFIX = "topology.heliu.io/"
_CENTRE, _ACCELERATOR = re.compile(r"^[a-z0-9-]+$"), re.compile(r"^[a-z0-9.-]+$")
_VARIABLE = re.compile(r"^[A-Z][A-Z0-9_]*$")
_NODE_LOST = "its node was lost"
DEVICES_VARIABLES = {"GPU": "CUDA_VISIBLE_DEVICES", "NPU": "ASCEND_RT_VISIBLE_DEVICES", "slot": None}
"""What Ray calls accelerators it knows → what names them to a program. A node's labels say it for any other."""


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
    return [row.id for row in known.values() if row.id not in listed and row.is_used]


async def give_up_on(tx: AsyncSession, node_ids: Sequence[str], *, terms: Terms, now: datetime) -> None:
    """Move what is placed on dead nodes.

    What nobody claimed is queued again at once; a runner that may still be alive is told to stop, or its lease ends.
    """
    rows = await tx.execute(
        text("""
            SELECT DISTINCT a.workload_id, a.id
            FROM scheduler.attempt a JOIN scheduler.placement p ON p.attempt_id = a.id
            WHERE a.ended_at IS NULL AND p.node_id = ANY(CAST(:nodes AS text[])) ORDER BY a.workload_id"""),
        {"nodes": list(node_ids)},
    )
    for workload_id, attempt_id in rows.all():
        workload = await store.workload(tx, workload_id, lock=True)
        attempt = await store.attempt(tx, attempt_id, lock=True)
        assert workload is not None and attempt is not None, "both were just seen"
        if attempt.state == AttemptState.PLACED:
            await attempts.end(tx, workload, attempt, EndCause.NODE_LOST, _NODE_LOST, terms=terms, now=now)
        elif attempt.state != AttemptState.ENDED:
            await attempts.request_stop(tx, attempt, EndCause.NODE_LOST, _NODE_LOST, now=now)


async def record_silence(tx: AsyncSession, *, terms: Terms, now: datetime) -> None:
    """The cluster does not answer: nodes not seen for long enough take no new work. What runs there may well go on."""
    for row in await store.nodes(tx, lock=True):
        if row.state == NodeState.READY and now - row.last_seen_at > timedelta(seconds=terms.node_silence_seconds):
            await _lose(tx, row, "its cluster does not answer", now=now)


async def cordon(tx: AsyncSession, node_id: str, reason: str, *, drain: bool, now: datetime) -> NodeRow:
    """Close a node for new work; with `drain` what runs on it is moved. Raises NotFound, InvalidInput."""
    if not reason.strip():
        raise InvalidInput("a node is closed for a reason", code="no_reason", hint="say which; whoever waits reads it")
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
    return (centre, accelerator) if capacity_of(report).gpu_milli > 0 else None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a node has, and where it stands."""

    resource: str
    devices_variable: str | None
    gpu_milli: int
    cpu_milli: int
    memory_mib: int
    topology: dict[str, str]


def capacity_of(report: NodeReport) -> Capacity:
    """What a node reports: its labels name the accelerator's resource and variable where Ray's own names do not do."""
    labels = report.labels
    names = [labels[RESOURCE_LABEL]] if RESOURCE_LABEL in labels else list(DEVICES_VARIABLES)
    resource = next((name for name in names if report.resources.get(name, 0) >= 1), names[-1])
    variable = labels.get(VARIABLE_LABEL, DEVICES_VARIABLES.get(resource))
    if variable is not None and not _VARIABLE.match(variable):
        log.warning("a label that names no variable", extra={"node": report.id, "label": variable})
        variable = None
    return Capacity(
        resource,
        variable,
        int(report.resources.get(resource, 0)) * MILLI_PER_GPU,
        int(report.resources.get("CPU", 0) * 1000),
        int(report.resources.get("memory", 0)) >> 20,
        {name.removeprefix(TOPOLOGY_PREFIX): v for name, v in labels.items() if name.startswith(TOPOLOGY_PREFIX) and v},
    )


async def _see(tx: AsyncSession, row: NodeRow | None, report: NodeReport, *, now: datetime) -> None:
    has = capacity_of(report)
    if row is None:
        pool = pool_of(report)
        assert pool is not None, "only nodes of a pool are seen"
        name = "/".join(pool)
        new_pool = {"name": name, "centre": pool[0], "accelerator": pool[1], "created_at": now}
        await tx.execute(insert(PoolRow).values(new_pool).on_conflict_do_nothing())
        row = NodeRow(
            id=report.id, pool=name, address=report.address, resource=has.resource,
            devices_variable=has.devices_variable, gpu_milli=has.gpu_milli, placed_milli=0, cpu_milli=has.cpu_milli,
            placed_cpu_milli=0, memory_mib=has.memory_mib, placed_memory_mib=0, topology=has.topology,
            state=NodeState.READY, draining=False, first_seen_at=now, last_seen_at=now,
        )  # fmt: skip
        tx.add(row)
        await tx.flush()
        tx.add_all(_devices(row.id, 0, has.gpu_milli))
        await _changed(tx, row, "node.ready", {"pool": name, "gpu_milli": has.gpu_milli}, now=now)
        return
    row.last_seen_at = now
    await _resize(tx, row, has)
    if row.state == NodeState.LOST:
        row.state = NodeState.READY
        await _changed(tx, row, "node.ready", {"pool": row.pool, "gpu_milli": row.gpu_milli}, now=now)


async def _resize(tx: AsyncSession, row: NodeRow, has: Capacity) -> None:
    """A node may come to have more; with less than is placed on it, it closes and counts as what it was."""
    if row.topology != has.topology:
        row.topology = has.topology
    if has.gpu_milli != row.gpu_milli:
        last_used = await device_store.last_used(tx, row.id)
        if last_used is not None and last_used * MILLI_PER_GPU >= has.gpu_milli:
            row.cordon_reason = row.cordon_reason or "it has fewer accelerators than work placed on it"
        else:
            await device_store.forget(tx, row.id, first=has.gpu_milli // MILLI_PER_GPU)
            tx.add_all(_devices(row.id, row.gpu_milli, has.gpu_milli))
            row.gpu_milli = has.gpu_milli
    if has.cpu_milli < row.placed_cpu_milli or has.memory_mib < row.placed_memory_mib:
        row.cordon_reason = row.cordon_reason or "it has less CPU or memory than work placed on it"
    else:
        row.cpu_milli, row.memory_mib = has.cpu_milli, has.memory_mib


def _devices(node_id: str, before_milli: int, gpu_milli: int) -> list[DeviceRow]:
    indexes = range(before_milli // MILLI_PER_GPU, gpu_milli // MILLI_PER_GPU)
    return [DeviceRow(node_id=node_id, index=index, placed_milli=0) for index in indexes]


async def _lose(tx: AsyncSession, row: NodeRow, why: str, *, now: datetime) -> None:
    row.state = NodeState.LOST
    await _changed(tx, row, "node.lost", {"why": why, "placed_milli": row.placed_milli}, now=now)


async def _node(tx: AsyncSession, node_id: str) -> NodeRow:
    row = await store.node(tx, node_id, lock=True)
    if row is None:
        raise NotFound(f"There is no node {node_id}.", code="node_not_found", hint="see: heliu node list")
    return row


async def _changed(tx: AsyncSession, row: NodeRow, topic: str, body: dict[str, object], *, now: datetime) -> None:
    await tx.flush()
    await events.append(tx, topic, row.id, body, now=now)
    await notify(tx, JOBS_CHANNEL, "*")
