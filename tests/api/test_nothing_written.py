"""The check that a refusal wrote nothing sees also a row that only changed."""

import pytest
from sqlalchemy import text

from kit.clock import FixedClock
from kit.db import Database
from tests.support.money import open_firm
from tests.support.row_counts import nothing_written


async def test_a_row_that_only_changed_is_named_with_its_table(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
    with pytest.raises(AssertionError, match=r"quotas\.firm"):
        async with nothing_written(db), db.transaction() as tx:
            await tx.execute(text("UPDATE quotas.firm SET name = 'another' WHERE id = :id"), {"id": str(firm)})


async def test_nothing_done_is_nothing_written(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        await open_firm(tx, now=clock.now())
    async with nothing_written(db):
        pass
