"""Accelerators one by one, as a node comes to have more or fewer of them. The caller has locked the node."""

from sqlalchemy import delete, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from scheduler.adapters.tables import DeviceRow


async def last_used(tx: AsyncSession, node_id: str) -> int | None:
    """The highest index of a node's accelerators that are in use."""
    query = select(func.max(DeviceRow.index)).where(DeviceRow.node_id == node_id, col(DeviceRow.placed_milli) > 0)
    return (await tx.execute(query)).scalar_one()


async def forget(tx: AsyncSession, node_id: str, *, first: int) -> None:
    """The node has no accelerators from this index on any more."""
    await tx.execute(delete(DeviceRow).where(col(DeviceRow.node_id) == node_id, col(DeviceRow.index) >= first))
