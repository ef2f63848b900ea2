"""What every table of the platform holds: what a refusal must not change."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import Database

_TABLES = text("""
    SELECT schemaname || '.' || tablename FROM pg_tables
    WHERE schemaname IN ('kit', 'quotas', 'scheduler', 'serving') ORDER BY 1""")

USE = ("last_used_at",)
"""Columns that tell of a key's or a session's use, which a refused request is too."""


async def contents(db: Database) -> dict[str, tuple[int, int]]:
    """Rows per table and the sum of their hashes, holds and postings among them."""
    async with db.transaction() as tx:
        tables = list((await tx.execute(_TABLES)).scalars())
        return {table: await _content(tx, table) for table in tables}


async def _content(tx: AsyncSession, table: str) -> tuple[int, int]:
    row = f"(to_jsonb(t) - '{{{','.join(USE)}}}'::text[])::text"
    query = f"SELECT count(*), coalesce(sum(hashtextextended({row}, 0)), 0) FROM {table} t"
    count, hashes = (await tx.execute(text(query))).one()
    return count, int(hashes)


@asynccontextmanager
async def nothing_written(db: Database) -> AsyncIterator[None]:
    """Raises AssertionError naming the tables in which the block left, removed or changed rows."""
    before = await contents(db)
    assert {"quotas.operation", "quotas.transfer", "quotas.pending"} <= before.keys(), "the ledger is elsewhere"
    yield
    after = await contents(db)
    changed = {table: (before[table], content) for table, content in after.items() if before[table] != content}
    assert not changed, f"(rows, sum of hashes) before and after: {changed}"
