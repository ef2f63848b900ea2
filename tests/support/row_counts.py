"""How many rows every table of the platform holds: what a refusal must not change."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text

from kit.db import Database

_TABLES = text("""
    SELECT schemaname || '.' || tablename FROM pg_tables
    WHERE schemaname IN ('kit', 'quotas', 'scheduler', 'serving') ORDER BY 1""")


async def row_counts(db: Database) -> dict[str, int]:
    """Rows per table, holds and postings among them."""
    async with db.transaction() as tx:
        tables = list((await tx.execute(_TABLES)).scalars())
        return {table: (await tx.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() for table in tables}


@asynccontextmanager
async def nothing_written(db: Database) -> AsyncIterator[None]:
    """Raises AssertionError naming the tables in which the block left or removed rows."""
    before = await row_counts(db)
    assert {"quotas.operation", "quotas.transfer", "quotas.pending"} <= before.keys(), "the ledger is elsewhere"
    yield
    after = await row_counts(db)
    changed = {table: (before[table], count) for table, count in after.items() if before[table] != count}
    assert not changed, f"rows before and after: {changed}"
