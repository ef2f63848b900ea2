"""Controllers that die between any two steps, and two that both believe they lead."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import Database
from scheduler import loop
from scheduler.loop import Controller


class Killed(BaseException):
    """The controller's process ended here. No `except Exception` may go on after it."""


class LeadersDatabase(Database):
    """One controller's connections: it can be killed before a statement, or stand still before a transaction."""

    def __init__(self, url: str) -> None:
        super().__init__(url, pool_size=2)
        self._statements_left: int | None = None
        self._transactions_left: int | None = None
        self.stands = asyncio.Event()
        self.goes_on = asyncio.Event()
        engine = self.engine.sync_engine
        event.listen(engine, "before_cursor_execute", self._count)
        event.listen(engine, "commit", self._count)

    def kill_after(self, statements: int | None) -> None:
        """Die before a statement or commit, so many of them from now; None: live."""
        self._statements_left = statements

    def stand_after(self, transactions: int) -> None:
        """Stand still before a transaction, so many of them from now, until `goes_on` is set."""
        self._transactions_left = transactions
        self.stands.clear()
        self.goes_on.clear()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """As Database's, but it may have to wait."""
        if self._transactions_left is not None:
            self._transactions_left -= 1
            if self._transactions_left < 0:
                self._transactions_left = None
                self.stands.set()
                await self.goes_on.wait()
        async with super().transaction() as tx:
            yield tx

    def _count(self, *_: Any) -> None:
        if self._statements_left is None:
            return
        self._statements_left -= 1
        if self._statements_left < 0:
            self._statements_left = None
            raise Killed


@dataclass
class Leaders:
    """The controller in office, and one that was in office before and does not know that it is over."""

    make: Callable[[Database], Controller]
    url: str

    def __post_init__(self) -> None:
        self._databases = (LeadersDatabase(self.url), LeadersDatabase(self.url))
        self._first, self._second = (self.make(db) for db in self._databases)

    async def step(self) -> None:
        """One round of the one in office."""
        await loop.step(self._first)

    async def step_and_die(self, statements: int) -> bool:
        """A round that ends after so many statements; its successor knows nothing of it. False: it got to its end."""
        db = self._databases[0]
        db.kill_after(statements)
        try:
            await loop.step(self._first)
        except Killed:
            self._first = self.make(db)
            return True
        finally:
            db.kill_after(None)
        return False

    async def step_both(self, transactions: int) -> None:
        """The old one stands still between two transactions of its round; the one in office does a whole round."""
        db = self._databases[1]
        db.stand_after(transactions)
        old = asyncio.create_task(loop.step(self._second))
        stands = asyncio.create_task(db.stands.wait())
        await asyncio.wait((old, stands), return_when=asyncio.FIRST_COMPLETED)
        await loop.step(self._first)
        db.goes_on.set()
        await old
        stands.cancel()

    async def close(self) -> None:
        """Close their connections."""
        for db in self._databases:
            await db.close()
