"""The audit log's chain in PostgreSQL: seal, blocks, and the lines they cover."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession


@dataclass(frozen=True, slots=True)
class AuditBlock:
    """A sealed run of entries: all those of the transactions in [from_xid, until_xid)."""

    number: int
    from_xid: str
    until_xid: str
    entries: int
    previous: bytes
    hash: bytes
    sealed_at: datetime


async def seal(tx: AsyncSession, *, now: datetime, at_most: int = 10_000) -> AuditBlock | None:
    """Seal what is committed and not sealed yet into one block; None when there is nothing."""
    asked = {"now": now, "at_most": at_most}
    row = (await tx.execute(text("SELECT * FROM quotas.seal_audit(:now, :at_most)"), asked)).first()
    return None if row is None else AuditBlock(**row._mapping)


async def blocks(tx: AsyncSession, *, after: int = 0) -> list[AuditBlock]:
    """Every sealed block above a number, in order."""
    query = text("SELECT * FROM quotas.audit_block WHERE number > :after ORDER BY number")
    return [AuditBlock(**row._mapping) for row in await tx.execute(query, {"after": after})]


async def block_lines(tx: AsyncSession, block: AuditBlock) -> str:
    """The text a block's hash covers, computed anew from its entries."""
    row = await tx.execute(
        text("SELECT quotas.audit_lines(CAST(:start AS xid8), CAST(:stop AS xid8))"),
        {"start": block.from_xid, "stop": block.until_xid},
    )
    return str(row.scalar_one() or "")


async def counts(tx: AsyncSession) -> tuple[int, int]:
    """How many entries there are, and how many of them no block has sealed yet."""
    row = await tx.execute(
        text("""SELECT count(*), count(*) FILTER (WHERE xid >=
            coalesce((SELECT max(until_xid) FROM quotas.audit_block), '0')) FROM quotas.audit_entry""")
    )
    many, unsealed = row.one()
    return int(many), int(unsealed)


async def lines(tx: AsyncSession, *, firm_id: str | None) -> AsyncIterator[str]:
    """Every entry as the JSON line that is hashed, in the order of the chain; of one firm or of all."""
    query = text("""
        SELECT quotas.audit_line(e) FROM quotas.audit_entry e
        WHERE CAST(:firm AS text) IS NULL OR e.firm_id = :firm ORDER BY e.xid, e.seq""")
    async for line in await tx.stream_scalars(query, {"firm": firm_id}):
        yield str(line)
