"""Watch an attempt's programs to their end: the paid clock, orders to stop, limits, and what it all came to."""

import queue
import threading
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, assert_never

from scheduler.node.heart import Heart
from scheduler.node.lease import boottime
from scheduler.node.logs import LogBuffer
from scheduler.node.process import Exited, Line, Notice, Told
from scheduler.node.protocol import Cause, FinishedIn, Inventory, Outcome, Plan, Progress
from scheduler.node.report import Checkpointed, Failed, Progressed, Started

_LOOK_SECONDS = 1.0

ORDERED = Cause.STOPPED, "stopped as ordered"
TERMINATED = Cause.KILLED, "the node's runtime ended it (SIGTERM) before its work was done"


class Team(Protocol):
    """The attempt's workers, wherever they run."""

    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def over_limit(self) -> bool: ...
    def upload(self, stop: threading.Event) -> None: ...
    def keep_checkpoint(self) -> None: ...
    def inventories(self) -> list[Inventory]: ...
    def close(self) -> None: ...


class StopReason(StrEnum):
    ORDER = "order"
    TERMINATED = "terminated"  # the node's runtime ends what runs here; nobody asked this attempt to stop
    TIME_LIMIT = "time_limit"
    OUTPUT_LIMIT = "output_limit"
    PEER_FAILED = "peer_failed"  # another worker of the gang has failed


@dataclass
class Course:
    """What has happened so far."""

    workers: int
    started_at: float | None = None
    ended_at: float | None = None
    exit_codes: dict[int, int] = field(default_factory=dict[int, int])
    failure: Failed | None = None
    stopping: StopReason | None = None
    kill_at: float | None = None

    @property
    def is_over(self) -> bool:
        return len(self.exit_codes) == self.workers

    @property
    def ran_ms(self) -> int:
        """From the first worker's start to the last worker's exit."""
        if self.started_at is None or self.ended_at is None:
            return 0
        return max(0, round((self.ended_at - self.started_at) * 1000))

    @property
    def exit_code(self) -> int | None:
        """The first one that is not 0, by rank; 0 when all are."""
        codes = [self.exit_codes[rank] for rank in sorted(self.exit_codes)]
        return next((code for code in codes if code != 0), 0 if codes else None)


class Supervisor:
    """Notices come in from any thread by `notice`; `watch` returns when every worker is over."""

    def __init__(self, plan: Plan, heart: Heart, logs: LogBuffer, stop: threading.Event) -> None:
        self._plan = plan
        self._heart = heart
        self._logs = logs
        self._stop = stop
        self.stop_grace_seconds = plan.grace_seconds
        self._inbox: queue.Queue[Told | Exited | None] = queue.Queue()

    def notice(self, notice: Notice) -> None:
        """Take one notice of a worker."""
        if isinstance(notice, Line):
            self._logs.append(f"[{notice.rank}] {notice.text}" if self._plan.workers > 1 else notice.text)
        else:
            self._inbox.put(notice)

    def wake(self) -> None:
        """Look at the stop order now."""
        self._inbox.put(None)

    def watch(self, team: Team) -> Course:
        """Follow the team to the end of its last worker."""
        course = Course(self._plan.workers)
        while not course.is_over:
            try:
                self._take(course, self._inbox.get(timeout=_LOOK_SECONDS), team)
            except queue.Empty:
                if course.stopping is None and team.over_limit():
                    self._end(course, team, StopReason.OUTPUT_LIMIT)
            self._look(course, team)
        return course

    def _take(self, course: Course, notice: Told | Exited | None, team: Team) -> None:
        match notice:
            case Told():
                self._hear(course, notice)
            case Exited():
                course.exit_codes[notice.rank] = notice.exit_code
                course.ended_at = notice.at
                if notice.exit_code != 0 and not course.is_over and course.stopping is None:
                    self._end(course, team, StopReason.PEER_FAILED)
            case None:
                pass
            case _:
                assert_never(notice)

    def _hear(self, course: Course, told: Told) -> None:
        match told.event:
            case Started():
                if course.started_at is None:
                    course.started_at = told.at
                    self._heart.started()
            case Progressed() as news:
                if told.rank == 0:
                    self._heart.progress(Progress(step=news.step, total_steps=news.total_steps, metrics=news.metrics))
            case Checkpointed():
                pass  # its worker keeps it
            case Failed() as failure:
                course.failure = course.failure or failure
            case _:
                assert_never(told.event)

    def _look(self, course: Course, team: Team) -> None:
        """Act on what time and orders demand."""
        if course.is_over:
            return
        now = boottime()
        if course.kill_at is not None and now >= course.kill_at:
            course.kill_at = None
            team.kill()
        if course.stopping is not None:
            return
        limit = self._plan.max_runtime_seconds
        if self._stop.is_set():
            self._end(course, team, StopReason.ORDER)
        elif limit is not None and course.started_at is not None and now - course.started_at >= limit:
            self._end(course, team, StopReason.TIME_LIMIT)

    def _end(self, course: Course, team: Team, reason: StopReason) -> None:
        course.stopping = reason
        grace = self.stop_grace_seconds if reason is StopReason.ORDER else self._plan.grace_seconds
        if reason is StopReason.OUTPUT_LIMIT or grace == 0:
            team.kill()
            return
        course.kill_at = boottime() + grace
        team.terminate()


def verdict(course: Course, plan: Plan, *, out_of_memory: bool) -> FinishedIn:
    """What the course came to, before its outputs are looked at."""
    code = course.exit_code

    def say(outcome: Outcome, cause: Cause, message: str) -> FinishedIn:
        return FinishedIn(outcome=outcome, cause=cause, message=message, exit_code=code, ran_ms=course.ran_ms)

    if course.stopping is StopReason.ORDER:
        return say(Outcome.STOPPED, *ORDERED)
    if course.stopping is StopReason.TERMINATED:
        return say(Outcome.STOPPED, *TERMINATED)
    if course.stopping is StopReason.TIME_LIMIT:
        return say(Outcome.FAILED, Cause.TIME_LIMIT, f"it ran for its limit of {plan.max_runtime_seconds} seconds")
    if course.stopping is StopReason.OUTPUT_LIMIT:
        return say(Outcome.FAILED, Cause.OUTPUT_REFUSED, f"it wrote more than {plan.output_bytes_max} bytes")
    if code == 0:
        return say(Outcome.SUCCEEDED, Cause.DONE, "")
    if course.failure is not None:
        return say(Outcome.FAILED, course.failure.cause, course.failure.message)
    assert code is not None
    if out_of_memory and code in (-9, 137):
        return say(Outcome.FAILED, Cause.OUT_OF_MEMORY, "the node ran out of memory and the program was ended")
    if code < 0:
        return say(Outcome.FAILED, Cause.KILLED, f"the program was ended by signal {-code}")
    return say(Outcome.FAILED, Cause.PROGRAM_FAILED, f"the program ended with exit code {code}")


def oom_kills() -> int:
    """How many processes the kernel has killed for memory since boot; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
