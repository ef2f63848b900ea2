"""End a transaction between any two of its steps: by an error in the caller, or by ending its server process."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import Database
from kit.errors import Unavailable
from quotas import api
from tests.support.databases import TestServer
from tests.support.money import publish_prices

START = datetime(2026, 11, 2, tzinfo=UTC)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kill:
    """Before which statement it ends (the COMMIT counts as one), and whether the server's process ends with it."""

    step: int
    process: bool


kills = st.none() | st.builds(Kill, st.integers(0, 24), st.sampled_from([False, False, False, True]))
"""Mostly one kill in two; a step behind the last one kills nobody."""


class _Killed(Exception):
    pass


class Killer:
    """Runs work in transactions of `db`, and kills as it is told."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._kill: Kill | None = None
        self._steps = 0
        self.killed = 0
        engine = db.engine.sync_engine
        event.listen(engine, "before_cursor_execute", self._before_statement)
        event.listen(engine, "commit", self._step)

    async def run(self, work: Callable[[AsyncSession], Awaitable[T]], kill: Kill | None) -> tuple[T] | None:
        """The result of `work`, or None when it was killed; what else it raises is passed on."""
        self._kill, self._steps = kill, 0
        try:
            async with self._db.transaction() as tx:
                return (await work(tx),)
        except (_Killed, Unavailable):
            if self._kill is not None:
                raise
            return None
        finally:
            self._kill = None

    def _before_statement(self, connection: Any, *_: object) -> None:
        self._step(connection)

    def _step(self, connection: Any) -> None:
        if self._kill is None:
            return
        if self._steps < self._kill.step:
            self._steps += 1
            return
        process, self._kill = self._kill.process, None
        self.killed += 1
        if not process:
            raise _Killed
        pid = connection.connection.driver_connection.info.backend_pid
        with psycopg.connect(self._db.url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))


class KilledMachine(RuleBasedStateMachine):
    """Each step is killed somewhere, then done; `compare` must hold after the kill and after the step."""

    url: str
    killers: list[Killer]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.db = Database(self.url, pool_size=1)
        self.killer = Killer(self.db)
        self.killers.append(self.killer)
        self.at: datetime = START
        self.begin()

    def begin(self) -> None:
        """Make what the example is about."""

    async def compare(self, tx: AsyncSession) -> None:
        """Assert that the database says what the model says."""

    def run(self, work: Callable[[AsyncSession], Awaitable[T]], kill: Kill | None = None) -> T:
        done = self.runner.run(self.killer.run(work, kill))
        if done is None:  # killed: nothing of it may be there
            self.look()
            done = self.runner.run(self.killer.run(work, None))
            assert done is not None
        return done[0]

    def look(self) -> None:
        self.runner.run(self.killer.run(self.compare, None))

    @invariant()
    def the_same_as_on_paper(self) -> None:
        self.look()

    def teardown(self) -> None:
        try:
            assert self.run(api.check_ledger) == []
        finally:
            self.runner.run(self.db.close())
            self.runner.close()


def run_killed(machine: type[KilledMachine], postgres: TestServer, *, examples: int = 12) -> int:
    """Let Hypothesis attack a machine on a database of its own. Returns how many transactions were killed."""
    killers: list[Killer] = []
    with postgres.database() as url:
        db = Database(url, pool_size=1)
        asyncio.run(_publish(db))
        here = type("OnThisDatabase", (machine,), {"url": url, "killers": killers})
        run_state_machine_as_test(
            here,
            settings=settings(
                max_examples=examples,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
    return sum(killer.killed for killer in killers)


async def _publish(db: Database) -> None:
    await publish_prices(db, now=START)
    await db.close()
