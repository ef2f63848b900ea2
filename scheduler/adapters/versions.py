"""Which version each row is of, so that only what has changed is read again.

PostgreSQL stamps every version of a row with the transaction that wrote it (`xmin`): while the stamp is the same, the
row is. Nothing has to be told of a change for it to be seen, and nobody's slow transaction delays anybody's view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel, col

from kit.db import sql
from scheduler.adapters.tables import AttemptRow, InventoryRow, NodeRow, PlacementRow, WorkloadRow

_BULKY = {"params", "progress", "request_hash", "told"}
"""What no decision reads of a workload or an attempt."""


@dataclass(frozen=True, slots=True)
class Live:
    """A live attempt, its workload, and the versions of both rows."""

    attempt_id: str
    workload_id: str
    version: tuple[int, int]


async def one_view(tx: AsyncSession) -> None:
    """All that this transaction reads is of one instant. Its first statement."""
    await tx.execute(sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))


async def queued(tx: AsyncSession) -> dict[str, int]:
    """The version of every workload that waits, by id."""
    rows = await tx.execute(
        sql("""SELECT id, xmin::text::bigint AS version FROM scheduler.workload
            WHERE state = 'queued' AND ended_at IS NULL""")
    )
    return {str(row.id): int(row.version) for row in rows}


async def live(tx: AsyncSession) -> list[Live]:
    """Every attempt that is not over, oldest first."""
    rows = await tx.execute(
        sql("""
            SELECT a.id, w.id, a.xmin::text::bigint, w.xmin::text::bigint FROM scheduler.attempt AS a
            JOIN scheduler.workload AS w ON w.id = a.workload_id WHERE a.ended_at IS NULL ORDER BY a.id""")
    )
    return [Live(attempt, workload, (one, other)) for attempt, workload, one, other in rows]


async def nodes(tx: AsyncSession) -> dict[str, tuple[int, int]]:
    """The versions of every node and of what is known to be on it (0: nothing), by id."""
    rows = await tx.execute(
        sql("""
            SELECT n.id, n.xmin::text::bigint, coalesce(i.xmin::text::bigint, 0) FROM scheduler.node AS n
            LEFT JOIN scheduler.node_inventory AS i ON i.node_id = n.id ORDER BY n.id""")
    )
    return {id: (node, inventory) for id, node, inventory in rows}


async def workload_rows(tx: AsyncSession, ids: Sequence[str]) -> list[Any]:
    """These workloads, as plain rows without what is bulky: to be read, not to be changed."""
    return await _read(tx, select(*_columns(WorkloadRow)).where(col(WorkloadRow.id).in_(ids)), ids)


async def attempt_rows(tx: AsyncSession, ids: Sequence[str]) -> dict[str, Any]:
    """These attempts, as plain rows, by id."""
    query = select(*_columns(AttemptRow)).where(col(AttemptRow.id).in_(ids))
    return {row.id: row for row in await _read(tx, query, ids)}


async def placement_rows(tx: AsyncSession, ids: Sequence[str]) -> dict[str, list[Any]]:
    """The placements of these attempts, as plain rows in worker order."""
    query = select(*_columns(PlacementRow)).where(col(PlacementRow.attempt_id).in_(ids))
    found: dict[str, list[Any]] = {id: [] for id in ids}
    for row in await _read(tx, query.order_by(col(PlacementRow.worker)), ids):
        found[row.attempt_id].append(row)
    return found


async def node_rows(tx: AsyncSession, ids: Sequence[str]) -> Sequence[NodeRow]:
    """These nodes."""
    query = select(NodeRow).where(col(NodeRow.id).in_(ids)).execution_options(populate_existing=True)
    return (await tx.execute(query)).scalars().all() if ids else []


async def inventory_rows(tx: AsyncSession, ids: Sequence[str]) -> Sequence[InventoryRow]:
    """What is on these nodes."""
    query = select(InventoryRow).where(col(InventoryRow.node_id).in_(ids)).execution_options(populate_existing=True)
    return (await tx.execute(query)).scalars().all() if ids else []


def _columns(table: type[SQLModel]) -> list[Any]:
    return [column for column in inspect(table).columns if column.name not in _BULKY]


async def _read(tx: AsyncSession, query: Any, ids: Sequence[str]) -> list[Any]:
    return list((await tx.execute(query)).all()) if ids else []
