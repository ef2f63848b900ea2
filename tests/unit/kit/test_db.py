from sqlalchemy import text

from kit.db import Database


async def test_a_block_that_raises_leaves_nothing_behind(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE seen (n int)"))
    try:
        async with db.transaction() as tx:
            await tx.execute(text("INSERT INTO seen VALUES (1)"))
            raise RuntimeError("halfway")
    except RuntimeError:
        pass
    async with db.transaction() as tx:
        assert (await tx.execute(text("SELECT count(*) FROM seen"))).scalar_one() == 0
