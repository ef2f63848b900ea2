import asyncio
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import Database, insert_many, is_conflict, notify, update_many, violated_constraint, wait_until_ready
from kit.errors import Unavailable
from tests.support.databases import TestServer, roll_back

NOWHERE = "postgresql://postgres:@/postgres?host=/nonexistent"


@pytest.fixture
async def counter(db: Database) -> Database:
    """A database with one row, `counter.n = 0`, that may not pass 10."""
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE counter (n int NOT NULL CONSTRAINT at_most_ten CHECK (n <= 10))"))
        await tx.execute(text("INSERT INTO counter VALUES (0)"))
    return db


async def count(db: Database) -> int:
    async with db.transaction() as tx:
        return int((await tx.execute(text("SELECT n FROM counter"))).scalar_one())


async def test_a_block_that_ends_is_committed(counter: Database) -> None:
    async with counter.transaction() as tx:
        await tx.execute(text("UPDATE counter SET n = 1"))
    assert await count(counter) == 1


async def test_a_block_that_raises_leaves_nothing_behind(counter: Database) -> None:
    async def update(tx: AsyncSession) -> None:
        await tx.execute(text("UPDATE counter SET n = 1"))

    await roll_back(counter, update)
    assert await count(counter) == 0


async def test_a_cancelled_block_leaves_nothing_behind(counter: Database) -> None:
    updated = asyncio.Event()

    async def work() -> None:
        async with counter.transaction() as tx:
            await tx.execute(text("UPDATE counter SET n = 1"))
            updated.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await updated.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await count(counter) == 0


async def test_sessions_speak_utc(db: Database) -> None:
    async with db.transaction() as tx:
        assert (await tx.execute(text("SHOW timezone"))).scalar_one() == "UTC"


async def test_the_constraint_that_refused_a_row_is_known_by_name(counter: Database) -> None:
    with pytest.raises(IntegrityError) as refused:
        async with counter.transaction() as tx:
            await tx.execute(text("UPDATE counter SET n = 11"))
    assert violated_constraint(refused.value) == "at_most_ten"


async def test_an_error_that_is_no_constraint_has_no_constraint_name(db: Database) -> None:
    with pytest.raises(DBAPIError) as refused:
        async with db.transaction() as tx:
            await tx.execute(text("SELECT 1 / 0"))
    assert violated_constraint(refused.value) is None
    assert not is_conflict(refused.value)


async def test_conflicting_transactions_are_tried_again_until_each_has_counted(counter: Database) -> None:
    async def increment(tx: AsyncSession) -> None:
        await tx.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        n = (await tx.execute(text("SELECT n FROM counter"))).scalar_one()
        await tx.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})

    await asyncio.gather(*(counter.retrying(increment, attempts=50) for _ in range(6)))
    assert await count(counter) == 6


async def test_what_is_no_conflict_is_not_tried_again(counter: Database) -> None:
    tries = 0

    async def overshoot(tx: AsyncSession) -> None:
        nonlocal tries
        tries += 1
        await tx.execute(text("UPDATE counter SET n = 11"))

    with pytest.raises(IntegrityError):
        await counter.retrying(overshoot)
    assert tries == 1


async def test_a_notice_arrives_when_its_transaction_commits_and_only_then(db: Database) -> None:
    async with aclosing(db.listen(["heliu_keys", "heliu_jobs"])) as notices:
        assert await anext(notices) == ("", ""), "says that it listens"
        await roll_back(db, lambda tx: notify(tx, "heliu_keys", "rolled back"))
        async with db.transaction() as tx:
            await notify(tx, "heliu_jobs", "job_1")
        assert await asyncio.wait_for(anext(notices), 5) == ("heliu_jobs", "job_1")
        async with db.transaction() as tx:
            await notify(tx, "heliu_jobs", "job_2", "job_3")
        told = [await asyncio.wait_for(anext(notices), 5) for _ in range(2)]
        assert told == [("heliu_jobs", "job_2"), ("heliu_jobs", "job_3")]


async def test_rows_are_written_and_changed_many_in_one_statement_whatever_their_columns_hold(db: Database) -> None:
    noon = datetime(2026, 11, 27, 12, 0, 0, 1, tzinfo=UTC)
    rows = [
        {
            "id": "a",
            "at": noon,
            "hash": b"\x00\xff",
            "n": 2**53,
            "body": {"x": [1]},
            "names": ["o'", '"'],
            "note": None,
        },
        {"id": "b", "at": None, "hash": b"", "n": 0, "body": {}, "names": [], "note": "{}\\"},
    ]
    async with db.transaction() as tx:
        await tx.execute(
            text("""CREATE TABLE public.thing
                (id text, at timestamptz, hash bytea, n bigint, body jsonb, names text[], note text)""")
        )
        await insert_many(tx, "public.thing", rows)
        found = await tx.execute(text("SELECT * FROM public.thing ORDER BY id"))
        assert [dict(row) for row in found.mappings()] == rows
        await update_many(tx, "public.thing", [{"id": "b", "n": 7, "note": None}, {"id": "c", "n": 8, "note": "no"}])
        found = await tx.execute(text("SELECT * FROM public.thing ORDER BY id"))
        assert [dict(row) for row in found.mappings()] == [rows[0], {**rows[1], "n": 7, "note": None}]


async def test_a_listener_whose_connection_breaks_is_told(db: Database) -> None:
    async with aclosing(db.listen(["heliu_keys"])) as notices:
        await anext(notices)
        async with db.transaction() as tx:
            await tx.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        with pytest.raises(Unavailable):
            await asyncio.wait_for(anext(notices), 5)


async def test_a_broken_connection_is_replaced_for_the_next_transaction(counter: Database) -> None:
    with pytest.raises(Unavailable):
        async with counter.transaction() as tx:
            await tx.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert await count(counter) == 0


async def test_connections_that_the_server_closed_while_nobody_used_them_are_replaced_unnoticed(
    counter: Database,
) -> None:
    async def hold() -> None:
        async with counter.transaction() as tx:
            await tx.execute(text("SELECT pg_sleep(0.1)"))

    await asyncio.gather(*(hold() for _ in range(3)))  # three connections lie in the pool
    others = text("""
        SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()""")
    async with counter.transaction() as tx:
        assert (await tx.execute(others)).scalar_one() == 2
    await asyncio.gather(*(hold() for _ in range(3)))
    assert await count(counter) == 0


async def test_a_statement_in_sql_means_what_it_says_with_marks_of_the_driver_in_it(counter: Database) -> None:
    async with counter.transaction() as tx:
        assert (await tx.execute(text("SELECT 'a%' LIKE '%!%' ESCAPE '!'"))).scalar_one() is True
        row = (
            await tx.execute(
                text("SELECT '%(no)s' || CAST(:a AS text) AS said, :n % 3, '1'::int + :n"), {"a": "%", "n": 8}
            )
        ).one()
        assert (row.said, *row[1:]) == ("%(no)s%", 2, 9)
        assert (await tx.execute(text("SELECT :given").bindparams(given=7))).scalar_one() == 7
        with pytest.raises(StatementError, match="given"):
            await tx.execute(text("SELECT :given"), {"other": 7})


async def test_a_savepoint_takes_back_what_statements_in_sql_did_since(counter: Database) -> None:
    async with counter.transaction() as tx:
        await tx.execute(text("UPDATE counter SET n = 1"))
        async with tx.begin_nested() as tried:
            await tx.execute(text("UPDATE counter SET n = 2"))
            await tried.rollback()
        assert (await tx.execute(text("SELECT n FROM counter"))).scalar_one() == 1
    assert await count(counter) == 1


async def test_a_database_that_is_not_there_is_unavailable() -> None:
    nowhere = Database(NOWHERE)
    with pytest.raises(Unavailable):
        async with nowhere.transaction() as tx:
            await tx.execute(text("SELECT 1"))
    with pytest.raises(Unavailable):
        await anext(nowhere.listen(["heliu_keys"]))
    await nowhere.close()


async def test_waiting_for_a_database_ends_at_its_answer_or_its_deadline(postgres: TestServer) -> None:
    there, nowhere = Database(postgres.admin_url), Database(NOWHERE)
    await wait_until_ready(there, seconds=1)
    with pytest.raises(Unavailable):
        await wait_until_ready(nowhere, seconds=0.1)
    await there.close()
    await nowhere.close()
