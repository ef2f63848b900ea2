"""Leadership by PostgreSQL advisory lock: at most one controller works, the others wait their turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256

import psycopg

from kit.errors import Unavailable

POLL_SECONDS = 1.0


class Leader:
    """Held by the process that leads; `lost` is set when its connection, and so its lock, is gone."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()


@asynccontextmanager
async def leadership(url: str, name: str) -> AsyncIterator[Leader]:
    """Wait until this process leads `name`, then yield. The lock lives and dies with one connection.

    A leader that was paused may still believe in itself: what it records must be fenced all the same.
    Raises Unavailable when the database does not answer.
    """
    key = int.from_bytes(sha256(name.encode()).digest()[:8], "big", signed=True)
    try:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True, keepalives_idle=5)
    except psycopg.OperationalError as error:
        raise Unavailable("the database does not answer", hint="try again") from error
    async with connection:
        while True:
            row = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", (key,))).fetchone()
            if row and row[0]:
                break
            await asyncio.sleep(POLL_SECONDS)
        leader = Leader()
        watch = asyncio.create_task(_watch(connection, leader))
        try:
            yield leader
        finally:
            watch.cancel()


async def _watch(connection: psycopg.AsyncConnection[tuple[object, ...]], leader: Leader) -> None:
    try:
        while True:
            await connection.execute("SELECT 1")
            await asyncio.sleep(POLL_SECONDS)
    except psycopg.Error:
        leader.lost.set()
