"""What really happens on the nodes: runner processes with clocks of their own, on a network that loses and repeats.

A process is the truth that the checks compare the platform's books with: which program ran, where, when, how long.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random

import httpx

from scheduler.ports import StartOrder
from scheduler.terms import Terms
from scheduler.vocabulary import AttemptId, NodeId, WorkloadId
from tests.support.scheduling import City, Runner

PREPARING = timedelta(seconds=1)  # from the claim to the program's start
Call = Callable[[], Awaitable[httpx.Response]]


class Stage(StrEnum):
    """How far a runner's process is."""

    SPAWNED = "spawned"
    CLAIMED = "claimed"
    RUNNING = "running"
    GONE = "gone"


class Verdict(StrEnum):
    """How a program ends if nobody stops it."""

    DONE = "done"
    PROGRAM_FAILED = "program_failed"
    SETUP_FAILED = "setup_failed"


@dataclass(frozen=True, slots=True)
class Fate:
    """What a job's program does when it runs: for so long, to this end."""

    seconds: float
    verdict: Verdict = Verdict.DONE


@dataclass(frozen=True, slots=True)
class Place:
    """What one worker has of a machine: these accelerators, each with so many thousandths."""

    node: NodeId
    devices: tuple[int, ...]
    milli_each: int


@dataclass
class Letter:
    """A message that is still on its way."""

    runner: Runner
    ran_ms: int
    outcome: str
    cause: str
    due: datetime


@dataclass
class Program:
    """One runner's process on a node, from its spawn to its end."""

    order: StartOrder
    firm_id: str
    places: tuple[Place, ...]
    runner: Runner
    fate: Fate
    stage: Stage = Stage.SPAWNED
    lease_until: datetime | None = None
    began: datetime | None = None
    ended: datetime | None = None
    next_beat: datetime | None = None
    stop_at: datetime | None = None  # told to stop, it ends then

    @property
    def attempt_id(self) -> AttemptId:
        """Whose program it is."""
        return self.order.attempt_id

    @property
    def workload_id(self) -> WorkloadId:
        """Which job's program it is."""
        return self.order.workload_id

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """Where its workers are."""
        return tuple(place.node for place in self.places)

    @property
    def milli(self) -> int:
        """Thousandths of accelerators that all its workers have."""
        return sum(len(place.devices) * place.milli_each for place in self.places)

    def holds_room(self, now: datetime) -> bool:
        """Whether it occupies its GPUs: claimed, not gone, and its own clock has not ended it."""
        claimed = self.stage in (Stage.CLAIMED, Stage.RUNNING)
        return claimed and self.lease_until is not None and now < self.lease_until

    def ran_ms(self, now: datetime) -> int:
        """How long its program has run."""
        if self.began is None:
            return 0
        return max(0, ((self.ended or now) - self.began) // timedelta(milliseconds=1))

    def die(self, now: datetime) -> None:
        """The process ends, at the end of its lease at the latest."""
        if self.stage is not Stage.GONE:
            self.ended = self.ended or (min(now, self.lease_until) if self.lease_until else now)
            self.stage = Stage.GONE


@dataclass
class Weather:
    """How likely each fault of the network is, in percent."""

    lost: int = 6
    unanswered: int = 6
    repeated: int = 6
    late: int = 4

    def clear_up(self) -> None:
        """No more faults."""
        self.lost = self.unanswered = self.repeated = self.late = 0


@dataclass
class Nodes:
    """All processes there ever were, what lies between them and the platform, and who is cut off from it."""

    city: City
    random: Random
    weather: Weather = field(default_factory=Weather)
    programs: list[Program] = field(default_factory=list[Program])
    letters: list[Letter] = field(default_factory=list[Letter])
    cut_off: set[NodeId] = field(default_factory=set[NodeId])

    @property
    def alive(self) -> list[Program]:
        """Processes that have not ended."""
        return [program for program in self.programs if program.stage is not Stage.GONE]

    def kill(self, program: Program) -> None:
        """The process dies without a word."""
        program.die(self.city.clock.now())

    def next_instant(self, until: datetime) -> datetime:
        """When the next process has something to do, at the latest `until`, which is later than now."""
        now, times = self.city.clock.now(), [until]
        for program in self.alive:
            times += [at for at in (program.lease_until, program.next_beat, program.stop_at) if at]
            if program.stage is Stage.RUNNING:
                times.append(self._end_of(program))
        times += [letter.due for letter in self.letters]
        return min(at for at in times if at > now)

    async def act(self, terms: Terms) -> None:
        """Everybody does what is due now."""
        now = self.city.clock.now()
        for program in self.alive:
            if program.lease_until is not None and now >= program.lease_until:
                program.die(now)
            elif self.cut_off.isdisjoint(program.nodes[:1]):
                await self._work(program, terms, now)
        due = [letter for letter in self.letters if letter.due <= now]
        self.letters = [letter for letter in self.letters if letter.due > now]
        for letter in due:
            await letter.runner.finished(ran_ms=letter.ran_ms, outcome=letter.outcome, cause=letter.cause)

    async def _work(self, program: Program, terms: Terms, now: datetime) -> None:
        match program.stage:
            case Stage.SPAWNED:
                if await self._asked(program, await self._send(program.runner.plan), terms, now):
                    program.stage = Stage.CLAIMED
            case Stage.CLAIMED if program.fate.verdict is Verdict.SETUP_FAILED:
                await self._end(program, 0, "failed", Verdict.SETUP_FAILED, terms, now)
            case Stage.CLAIMED:
                if await self._asked(program, await self._send(program.runner.started), terms, now):
                    program.stage, program.began = Stage.RUNNING, now
                    program.next_beat = now + timedelta(seconds=terms.heartbeat_seconds)
            case Stage.RUNNING:
                await self._run(program, terms, now)
            case Stage.GONE:
                pass

    async def _run(self, program: Program, terms: Terms, now: datetime) -> None:
        if now >= self._end_of(program):
            if program.fate.verdict is Verdict.DONE:
                await self._end(program, program.ran_ms(now), "succeeded", "done", terms, now)
            else:
                await self._end(program, program.ran_ms(now), "failed", program.fate.verdict, terms, now)
        elif program.stop_at is not None and now >= program.stop_at:
            await self._end(program, program.ran_ms(now), "stopped", "stopped", terms, now)
        elif program.next_beat is None or now >= program.next_beat:
            program.next_beat = now + timedelta(seconds=terms.heartbeat_seconds)
            answer = await self._send(program.runner.heartbeat)
            if await self._asked(program, answer, terms, now) and answer is not None:
                wants_stop = answer.json()["command"] == "stop" and program.stop_at is None
                program.stop_at = now + timedelta(seconds=self.random.randint(0, 3)) if wants_stop else program.stop_at

    async def _end(self, program: Program, ran_ms: int, outcome: str, cause: str, terms: Terms, now: datetime) -> None:
        """Report the end until somebody answers; the program itself is over now."""
        program.ended = program.ended or now
        if self._happens(self.weather.late):
            due = now + timedelta(seconds=self.random.randint(1, 60))
            self.letters.append(Letter(program.runner, ran_ms, outcome, cause, due))
            program.die(now)
            return

        async def finished() -> httpx.Response:
            return await program.runner.finished(ran_ms=ran_ms, outcome=outcome, cause=cause)

        answer = await self._send(finished)
        if answer is None:
            program.next_beat = now + timedelta(seconds=terms.heartbeat_seconds)  # again, as long as the lease holds
        else:
            assert answer.status_code in (200, 409), answer.text
            program.die(now)

    async def _asked(self, program: Program, answer: httpx.Response | None, terms: Terms, now: datetime) -> bool:
        """Take an answer that renews the lease. False: there was none, or it told the process to end."""
        if answer is None:
            program.next_beat = now + timedelta(seconds=1)
            return False
        if answer.status_code in (401, 409):
            program.die(now)
            return False
        assert answer.status_code == 200, answer.text
        program.lease_until = now + timedelta(seconds=terms.lease_seconds)
        program.next_beat = now + PREPARING if program.stage is Stage.SPAWNED else program.next_beat
        return True

    async def _send(self, call: Call) -> httpx.Response | None:
        """One message over this network: None when it, or its answer, was lost."""
        if self._happens(self.weather.lost):
            return None
        answer = await call()
        if self._happens(self.weather.repeated):
            answer = await call()
        return None if self._happens(self.weather.unanswered) else answer

    def _happens(self, percent: int) -> bool:
        return self.random.randrange(100) < percent

    def _end_of(self, program: Program) -> datetime:
        assert program.began is not None, "only a program that runs comes to its end"
        return program.ended or program.began + timedelta(seconds=program.fate.seconds)
