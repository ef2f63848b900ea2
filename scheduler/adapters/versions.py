"""Which version each row is of, so that only what has changed is read again.

PostgreSQL stamps every version of a row with the transaction that wrote it (`xmin`): while the stamp is the same, the
row is. Nothing has to be told of a change for it to be seen, and nobody's slow transaction delays anybody's view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause, inspect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

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


@dataclass(frozen=True, slots=True)
class Queue:
    """How many workloads wait in a view of the database, and the versions, by id, of those that may be new in it."""

    waiting: int
    versions: dict[str, int]
    view: int


async def queued(tx: AsyncSession, *, since: int = 0) -> Queue:
    """The queue now. May be new: written by a transaction that was not over in the view `since`.

    Versions have 32 bits; when the upper ones of transaction numbers have changed, everything may be new.
    """
    rows = await tx.execute(
        sql("""
            SELECT count(*) AS waiting, coalesce(array_agg(id) FILTER (WHERE version >= oldest), '{}') AS ids,
                coalesce(array_agg(version) FILTER (WHERE version >= oldest), '{}') AS versions,
                pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS view
            FROM (SELECT id, xmin::text::bigint AS version FROM scheduler.workload
                WHERE state = 'queued' AND ended_at IS NULL) AS queue,
                (SELECT CASE pg_snapshot_xmin(pg_current_snapshot())::text::bigint >> 32
                    WHEN CAST(:since AS bigint) >> 32 THEN CAST(:since AS bigint) & 4294967295
                    ELSE 0 END AS oldest) AS known"""),
        {"since": since},
    )
    row = rows.one()
    return Queue(row.waiting, dict(zip(row.ids, row.versions, strict=True)), row.view)


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


async def workload_rows(tx: AsyncSession, ids: Sequence[str]) -> Sequence[Any]:
    """These workloads, as plain rows without what is bulky: to be read, not to be changed, as all that follows."""
    return await _read(tx, _WORKLOADS, ids)


async def attempt_rows(tx: AsyncSession, ids: Sequence[str]) -> dict[str, Any]:
    """These attempts, by id."""
    return {row.id: row for row in await _read(tx, _ATTEMPTS, ids)}


async def placement_rows(tx: AsyncSession, ids: Sequence[str]) -> dict[str, list[Any]]:
    """The placements of these attempts, in worker order."""
    found: dict[str, list[Any]] = {id: [] for id in ids}
    for row in await _read(tx, _PLACEMENTS, ids):
        found[row.attempt_id].append(row)
    return found


async def node_rows(tx: AsyncSession, ids: Sequence[str]) -> Sequence[Any]:
    """These nodes, and of each whether it `is_used`."""
    return await _read(tx, _NODES, ids)


async def inventory_rows(tx: AsyncSession, ids: Sequence[str]) -> Sequence[Any]:
    """What is on these nodes."""
    return await _read(tx, _INVENTORIES, ids)


async def _read(tx: AsyncSession, query: TextClause, ids: Sequence[str]) -> Sequence[Any]:
    return (await tx.execute(query, {"ids": list(ids)})).all() if ids else ()


def _all_of(table: type[SQLModel], key: str, *more: str, order: str = "") -> TextClause:
    columns = [column.name for column in inspect(table).columns if column.name not in _BULKY]
    name = f"scheduler.{table.__tablename__}"
    return sql(f"SELECT {', '.join([*columns, *more])} FROM {name} WHERE {key} = ANY(CAST(:ids AS text[])) {order}")  # noqa: S608


_WORKLOADS, _ATTEMPTS = _all_of(WorkloadRow, "id"), _all_of(AttemptRow, "id")
_PLACEMENTS = _all_of(PlacementRow, "attempt_id", order="ORDER BY attempt_id, worker")
_NODES = _all_of(NodeRow, "id", "placed_milli + placed_cpu_milli > 0 AS is_used")
_INVENTORIES = _all_of(InventoryRow, "node_id")
