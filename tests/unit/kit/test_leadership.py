import asyncio

import psycopg
import pytest

from kit import leadership as leadership_module
from kit.errors import Unavailable
from kit.leadership import leadership


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leadership_module, "POLL_SECONDS", 0.05)


async def lead(url: str, name: str, leads: asyncio.Event, resign: asyncio.Event) -> None:
    async with leadership(url, name):
        leads.set()
        await resign.wait()


async def test_one_leads_and_the_next_follows_when_it_resigns(database_url: str) -> None:
    leads, resign = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]
    first = asyncio.create_task(lead(database_url, "controller", leads[0], resign[0]))
    await asyncio.wait_for(leads[0].wait(), 5)
    second = asyncio.create_task(lead(database_url, "controller", leads[1], resign[1]))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(leads[1].wait(), 0.3)
    resign[0].set()
    await asyncio.wait_for(leads[1].wait(), 5)
    resign[1].set()
    await asyncio.gather(first, second)


async def test_different_offices_have_different_leaders(database_url: str) -> None:
    async with leadership(database_url, "controller"), leadership(database_url, "sweeper") as other:
        assert not other.lost.is_set()


async def test_a_leader_whose_connection_dies_learns_that_it_lost(database_url: str) -> None:
    async with leadership(database_url, "controller") as leader:
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other:
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await asyncio.wait_for(leader.lost.wait(), 5)
        async with asyncio.timeout(5), leadership(database_url, "controller"):
            assert leader.lost.is_set(), "the lock is free for the next"


async def test_without_a_database_nobody_leads() -> None:
    with pytest.raises(Unavailable):
        async with leadership("postgresql://postgres:@/postgres?host=/nonexistent", "controller"):
            pytest.fail("nobody may lead")
