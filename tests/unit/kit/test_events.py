import asyncio
from contextlib import aclosing

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.clock import FixedClock
from kit.db import Database
from kit.errors import InvalidInput
from tests.support.databases import roll_back


async def record(tx: AsyncSession, clock: FixedClock, subject: str, topic: str = "job.started") -> None:
    await events.append(tx, topic, subject, {"of": subject}, now=clock.now(), firm_id="firm_1")


async def subjects(db: Database, after: events.Cursor = events.START) -> list[str]:
    async with db.transaction() as tx:
        return [event.subject for event in await events.read(tx, after=after)]


async def test_an_event_exists_if_and_only_if_its_transaction_commits(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        await record(tx, clock, "job_1")
    await roll_back(db, lambda tx: record(tx, clock, "job_2"))
    async with db.transaction() as tx:
        (event,) = await events.read(tx)
    assert (event.topic, event.subject, event.firm_id, event.body) == (
        "job.started",
        "job_1",
        "firm_1",
        {"of": "job_1"},
    )
    assert event.at == clock.now()


async def test_a_reader_never_steps_over_an_event_that_commits_late(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as slow:
        await record(slow, clock, "early number")
        async with db.transaction() as fast:
            await record(fast, clock, "late number")
        assert await subjects(db) == [], "what committed waits for the transaction that began before it"
    assert await subjects(db) == ["early number", "late number"]


async def test_a_cursor_continues_after_the_event_it_came_with(db: Database, clock: FixedClock) -> None:
    for subject in ("a", "b", "c"):
        async with db.transaction() as tx:
            await record(tx, clock, subject)
            await record(tx, clock, subject * 2)
    async with db.transaction() as tx:
        first = await events.read(tx, limit=3)
    assert [event.subject for event in first] == ["a", "aa", "b"]
    assert await subjects(db, after=first[-1].cursor) == ["bb", "c", "cc"]


async def test_events_are_picked_by_topic_and_subject(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        await record(tx, clock, "job_1", "job.started")
        await record(tx, clock, "job_1", "job.ended")
        await record(tx, clock, "job_2", "job.ended")
    async with db.transaction() as tx:
        ended = await events.read(tx, topics=["job.ended"])
        of_one = await events.read(tx, subject="job_1")
        both = await events.read(tx, topics=["job.ended"], subject="job_1")
    assert [event.subject for event in ended] == ["job_1", "job_2"]
    assert [event.topic for event in of_one] == ["job.started", "job.ended"]
    assert len(both) == 1


@pytest.mark.parametrize("cursor", ["", "1", "a-b", "1-2-3x", "-1-0", "1-"])
async def test_what_no_answer_ever_gave_is_no_cursor(db: Database, cursor: str) -> None:
    async with db.transaction() as tx:
        with pytest.raises(InvalidInput, match="is not a cursor"):
            await events.read(tx, after=events.Cursor(cursor))


async def test_a_readers_position_moves_with_its_effects_or_not_at_all(db: Database) -> None:
    async with db.transaction() as tx:
        assert await events.position(tx, "registrar") == events.START
        await events.advance(tx, "registrar", events.Cursor("5-6"))
    await roll_back(db, lambda tx: events.advance(tx, "registrar", events.Cursor("7-8")))
    async with db.transaction() as tx:
        assert await events.position(tx, "registrar") == "5-6"
        assert await events.position(tx, "another") == events.START


async def test_two_of_one_reader_take_turns(db: Database) -> None:
    second_has_it = asyncio.Event()

    async def second() -> events.Cursor:
        async with db.transaction() as tx:
            seen = await events.position(tx, "registrar")
            second_has_it.set()
            return seen

    async with db.transaction() as tx:
        await events.position(tx, "registrar")
        waiting = asyncio.create_task(second())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second_has_it.wait(), 0.2)
        await events.advance(tx, "registrar", events.Cursor("1-1"))
    assert await waiting == "1-1"


async def test_followers_are_woken_by_a_commit(db: Database, clock: FixedClock) -> None:
    async with aclosing(db.listen([events.CHANNEL])) as notices:
        await anext(notices)
        async with db.transaction() as tx:
            await record(tx, clock, "job_1", "job.ended")
        assert await asyncio.wait_for(anext(notices), 5) == (events.CHANNEL, "job.ended")
