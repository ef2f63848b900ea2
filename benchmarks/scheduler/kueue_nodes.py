"""What is beside the controller in Kueue's load, in a process of its own as in production: firms and their runners.

Firms submit, runners claim, begin, wait and report their end; orders to start come through a pipe.
"""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.scheduler.kueue_load import arrive
from kit.db import Database
from kit.together import Together
from quotas.vocabulary import FirmId, ProjectId
from scheduler import attempts, reports
from scheduler.adapters.tables import WorkloadRow
from scheduler.node.protocol import Cause, FinishedIn, Outcome
from scheduler.ports import NodeReport, Observation, RunnerState, StartOrder
from scheduler.terms import Terms
from scheduler.vocabulary import AttemptId, AttemptIdentity, WorkloadId, WorkloadKind
from scheduler.web.internal import ENDS_APART_SECONDS


class Pipe(Protocol):
    """`multiprocessing.Pipe`'s end. Orders go one way; `None` for ready, begin and over goes both."""

    def send(self, obj: Any, /) -> None: ...
    def recv(self) -> Any: ...
    def poll(self) -> bool: ...
    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Cluster:
    """`ports.ClusterRuntime` and `ports.NodeDirectory`: what it is told to start it passes on, once or more."""

    machines: Sequence[NodeReport]
    orders: Pipe | None = None

    async def start(self, order: StartOrder) -> None:
        assert self.orders is not None, "only where runners are"
        self.orders.send((order.attempt_id, order.workload_id))

    async def observe(self, attempts: Sequence[AttemptId]) -> list[Observation]:
        return [Observation(one, RunnerState.RUNNING) for one in attempts]

    async def stop(self, attempt: AttemptId) -> bool:
        return True  # asked about what has reported its end: nothing of it runs any more

    async def nodes(self) -> list[NodeReport]:
        return list(self.machines)


@dataclass(frozen=True, slots=True)
class Load:
    """When jobs are submitted, in seconds after the beginning, and how long they run: these and those already there."""

    arrivals: Sequence[tuple[float, WorkloadRow]]
    runs_ms: Mapping[str, int]


@asynccontextmanager
async def beside(url: str, load: Load, terms: Terms) -> AsyncIterator[tuple[int, Pipe]]:
    """The process, ready to begin: its id, and its pipe for `begin` and for orders."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(url, theirs, load, terms), daemon=True)
    process.start()
    theirs.close()
    try:
        await _word(ours)
        assert process.pid is not None, "it was started"
        yield process.pid, ours
    finally:
        process.terminate()
        process.join()


async def play(pipe: Pipe) -> None:
    """Have it begin, and return when every job has ended. Raises EOFError when it could not go on."""
    pipe.send(None)
    await _word(pipe)


async def _word(pipe: Pipe) -> None:
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


def _work(url: str, pipe: Pipe, load: Load, terms: Terms) -> None:
    asyncio.run(_submit_and_run(url, pipe, load, terms))


async def _submit_and_run(url: str, pipe: Pipe, load: Load, terms: Terms) -> None:
    db, loop = Database(url, pool_size=10), asyncio.get_running_loop()
    pipe.send(None)
    await _word(pipe)
    try:
        async with asyncio.TaskGroup() as tasks:
            runners = Runners(db, terms, load.runs_ms, tasks)

            def take() -> None:
                while pipe.poll():
                    runners.start(*pipe.recv())

            loop.add_reader(pipe.fileno(), take)
            await arrive(db, load.arrivals, perf_counter())
            await runners.are_over.wait()
        pipe.send(None)
    finally:
        loop.remove_reader(pipe.fileno())
        await db.close()


@dataclass(slots=True)
class Runners:
    """One for each attempt. Claims and ends that come together are written together, as the platform's server does."""

    db: Database
    terms: Terms
    runs_ms: Mapping[str, int]  # by workload
    tasks: asyncio.TaskGroup
    are_over: asyncio.Event = field(default_factory=asyncio.Event)
    _begun: Together[AttemptIdentity, bool] = field(init=False)
    _ended: Together[tuple[AttemptIdentity, FinishedIn], bool] = field(init=False)
    _known: set[AttemptId] = field(default_factory=set[AttemptId])
    _over: int = 0

    def __post_init__(self) -> None:
        self._begun, self._ended = Together(self._begin), Together(self._end, apart=ENDS_APART_SECONDS)

    def start(self, attempt: AttemptId, workload: WorkloadId) -> None:
        """An order that is repeated changes nothing."""
        if attempt not in self._known:
            self._known.add(attempt)
            self.tasks.create_task(self._run(attempt, workload))

    async def _run(self, attempt: AttemptId, workload: WorkloadId) -> None:
        identity = AttemptIdentity(attempt, workload, WorkloadKind.JOB, FirmId(""), ProjectId(""), 1, False)
        ran = self.runs_ms[workload]
        assert await self._begun.put(identity), "the first runner may begin"
        if ran:
            await asyncio.sleep(ran / 1000)
        report = FinishedIn(outcome=Outcome.SUCCEEDED, cause=Cause.DONE, message="", exit_code=0, ran_ms=ran)
        assert await self._ended.put((identity, report)), "nobody gave it up"
        self._over += 1
        if self._over == len(self.runs_ms):
            self.are_over.set()

    async def _begin(self, identities: Sequence[AttemptIdentity]) -> list[bool]:
        now = datetime.now(UTC)
        async with self.db.transaction() as tx:
            claimed = await attempts.claim_many(
                tx, {one: f"runner of {one.attempt_id}" for one in identities}, terms=self.terms, now=now
            )
            begun = await attempts.begin_many(tx, claimed, terms=self.terms, now=now)
        return [one in begun for one in identities]

    async def _end(self, reported: Sequence[tuple[AttemptIdentity, FinishedIn]]) -> list[bool]:
        async def record(tx: AsyncSession) -> set[AttemptIdentity]:
            return await reports.finished_many(tx, dict(reported), terms=self.terms, now=datetime.now(UTC))

        heard = await self.db.retrying(record)
        return [identity in heard for identity, _ in reported]
