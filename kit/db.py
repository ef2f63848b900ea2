"""PostgreSQL sessions: one request, one transaction; conflicts are retried here and nowhere else."""

import asyncio
import json
import select
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache, lru_cache
from typing import Any, TypeVar, cast

import psycopg
from psycopg import errors as pg
from psycopg.sql import SQL, Identifier
from sqlalchemy import Connection, TextClause, event, text
from sqlalchemy.dialects.postgresql import psycopg as dialect
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.exc import DBAPIError, DisconnectionError
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
            pool_timeout=15,
            hide_parameters=True,  # a failing statement is logged; the secrets it carried must not be
            connect_args={"options": "-c timezone=UTC -c lock_timeout=20s", "connect_timeout": 5},
        )
        event.listen(self.engine.sync_engine, "checkout", _look_whether_open)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Raises Unavailable when the server cannot be reached.
        """
        session = _Transaction(self.engine, expire_on_commit=False)
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


def _look_whether_open(connection: Any, _record: object, _proxy: object) -> None:
    """A connection that the server has closed while nobody used it has its end to read; the pool opens another.

    It is a look at the socket, where a question to the server would cost as much as most statements.
    """
    driver: psycopg.AsyncConnection[Any] = connection.driver_connection
    if not driver.closed:
        socket = select.poll()
        socket.register(driver.fileno(), select.POLLIN)
        if not socket.poll(0):
            return
    raise DisconnectionError


class _Transaction(AsyncSession):
    """A session that hands statements in SQL to the driver itself, on its own connection and in its own transaction.

    They are most of what Heliu asks, and the way through SQLAlchemy costs more than the statement. As there, what was
    changed in objects has to be flushed before a statement in SQL sees it.
    """

    _innermost: object = None  # transaction or savepoint that the connection was last asked for in: it opens them
    _connection: Connection
    _cursor: "psycopg.AsyncCursor[tuple[Any, ...]]"

    async def execute(self, statement: Any, params: Any = None, **options: Any) -> Any:
        """As in SQLAlchemy; raises the same errors, and tells the same listeners."""
        if type(statement) is not TextClause or options or isinstance(params, list):
            return await super().execute(statement, params, **options)
        query, names = _as_the_driver_wants(statement.text)
        if names.difference(params or ()):
            return await super().execute(statement, params)  # bound to the statement itself, or missing
        connection, cursor = await self._on()
        for heard in connection.dispatch.before_cursor_execute:
            heard(connection, cursor, query, params, None, False)
        try:
            await cursor.execute(cast(Any, query), params or {})
            rows = await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise DBAPIError.instance(query, None, error, psycopg.Error, hide_parameters=True) from error
        return IteratorResult(_keys(tuple(column.name for column in cursor.description or ())), iter(rows))

    async def _on(self) -> "tuple[Connection, psycopg.AsyncCursor[tuple[Any, ...]]]":
        session = self.sync_session
        innermost = session.get_nested_transaction() or session.get_transaction()
        if innermost is None or innermost is not self._innermost:
            connection = (await self.connection()).sync_connection
            assert connection is not None, "it was opened just now"
            driver = cast("psycopg.AsyncConnection[Any]", connection.connection.driver_connection)
            self._connection, self._cursor = connection, driver.cursor()
            self._innermost = session.get_nested_transaction() or session.get_transaction()
        return self._connection, self._cursor


@lru_cache(maxsize=1000)
def _as_the_driver_wants(statement: str) -> tuple[str, frozenset[str]]:
    """The statement with the driver's marks for its parameters, and their names."""
    compiled = text(statement).compile(dialect=dialect.dialect())
    return str(compiled), frozenset(compiled.params)


@lru_cache(maxsize=1000)
def _keys(names: tuple[str, ...]) -> SimpleResultMetaData:
    return SimpleResultMetaData(names)


@cache
def sql(query) -> TextClause:
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
