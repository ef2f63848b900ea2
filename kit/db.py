"""PostgreSQL sessions: one request, one transaction; conflicts are retried here and nowhere else."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.sql import SQL, Identifier
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from kit.errors import Unavailable

T = TypeVar("T")


class Database:
    """A pool of connections to one PostgreSQL database."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.url = url
        self.engine: AsyncEngine = create_async_engine(
            url.replace("postgresql://", "postgresql+psycopg://", 1),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            pool_timeout=15,
            hide_parameters=True,  # a failing statement is logged; the secrets it carried must not be
            connect_args={"options": "-c timezone=UTC -c lock_timeout=20s", "connect_timeout": 5},
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Raises Unavailable when the server cannot be reached.
        """
        session = AsyncSession(self.engine, expire_on_commit=False)
        try:
            try:
                async with session.begin():
                    yield session
            finally:
                await session.close()
        except DBAPIError as error:
            if is_connection_loss(error):
                raise Unavailable("the database does not answer", hint="try again in a few seconds") from error
            raise

    async def retrying(self, work: Callable[[AsyncSession], Awaitable[T]], *, attempts: int = 8) -> T:
        """Run `work` in a transaction of its own, again after a deadlock or serialization conflict."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(is_conflict),
            wait=wait_random_exponential(multiplier=0.01, max=0.5),
            stop=stop_after_attempt(attempts),
            reraise=True,
        ):
            with attempt:
                async with self.transaction() as tx:
                    return await work(tx)
        raise AssertionError("tenacity either returns or raises")

    async def listen(self, channels: Sequence[str]) -> AsyncGenerator[tuple[str, str], None]:
        """Yield (channel, payload) of every NOTIFY on `channels`, on a connection of its own.

        Yields ("", "") once it listens, so that a caller can look once after subscribing and miss nothing.
        Raises Unavailable when the connection breaks; the caller subscribes again.
        """
        try:
            connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
            async with connection:
                for channel in channels:
                    await connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
                yield "", ""
                async for notice in connection.notifies():
                    yield notice.channel, notice.payload
        except psycopg.OperationalError as error:
            raise Unavailable("the database does not answer", hint="subscribe again") from error

    async def close(self) -> None:
        """Close every connection of the pool."""
        await self.engine.dispose()


@cache
def sql(query: str) -> TextClause:
    """A statement in SQL, made once: for what is asked again and again. Only for queries of which there are few."""
    return text(query)


async def notify(tx: AsyncSession, channel: str, *payloads: str) -> None:
    """Send a NOTIFY for each payload, or one without; they arrive when this transaction commits."""
    await tx.execute(
        sql("SELECT pg_notify(:channel, payload) FROM unnest(CAST(:payloads AS text[])) AS payload"),
        {"channel": channel, "payloads": list(payloads) or [""]},
    )


async def insert_many(tx: AsyncSession, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows in one statement, whatever their number; they have the same columns.

    Table and columns are the caller's own words, never somebody's input.
    """
    if rows:
        names = ", ".join(f'"{name}"' for name in rows[0])
        await tx.execute(sql(f"INSERT INTO {table} ({names}) SELECT {names} FROM {_rows_of(table)}"), _as_json(rows))  # noqa: S608


async def update_many(tx: AsyncSession, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Change rows, found by their `id`, in one statement; they have the same columns, and nobody else changes them.

    Table and columns are the caller's own words, never somebody's input.
    """
    if rows:
        changes = ", ".join(f'"{name}" = new."{name}"' for name in rows[0] if name != "id")
        await tx.execute(
            sql(f"UPDATE {table} AS old SET {changes} FROM {_rows_of(table)} AS new WHERE old.id = new.id"),  # noqa: S608
            _as_json(rows),
        )


def _rows_of(table: str) -> str:
    return f"json_populate_recordset(CAST(NULL AS {table}), CAST(:rows AS json))"


def _as_json(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {"rows": json.dumps(list(rows), default=_written)}


def _written(value: object) -> str:
    """As PostgreSQL reads it: bytes in hexadecimal, times in ISO 8601."""
    return "\\x" + value.hex() if isinstance(value, bytes) else str(value)


def is_conflict(error: BaseException) -> bool:
    """Whether trying the same transaction again may succeed: deadlock, serialization failure, lock time-out."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(origin, (pg.DeadlockDetected, pg.SerializationFailure, pg.LockNotAvailable))


def is_connection_loss(error: DBAPIError) -> bool:
    """Whether the server went away, is starting, or never answered."""
    return error.connection_invalidated or (isinstance(error.orig, psycopg.OperationalError) and not is_conflict(error))


def violated_constraint(error: DBAPIError) -> str | None:
    """Name of the CHECK, unique or foreign-key constraint that refused the row, if that is what happened."""
    origin = error.orig
    return origin.diag.constraint_name if isinstance(origin, pg.IntegrityError) else None


async def wait_until_ready(db: Database, *, seconds: float = 30) -> None:
    """Return once the database answers. Raises Unavailable after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            async with db.transaction() as tx:
                await tx.execute(text("SELECT 1"))
                return
        except Unavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)
