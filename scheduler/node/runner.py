"""An attempt's runner, the entrypoint of its Ray job: `python -m scheduler.node.runner`.

Plan → inputs → program → outputs → finished, while a heartbeat thread keeps the lease. It ends its program and itself
when the lease ends or the fence is lost (invariant S2). Exit codes are for people reading Ray's logs; the control plane
knows only what was reported.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scheduler.node.client import Away, ControlPlane, Denied
from scheduler.node.environment import ATTEMPT_ID, CONTROL_URL, TOKEN
from scheduler.node.folder import AlreadyRunning, WorkFolder, sweep
from scheduler.node.heart import Heart
from scheduler.node.lease import Lease, exit_now
from scheduler.node.logs import LogBuffer
from scheduler.node.protocol import MESSAGE_CHARS_MAX, FinishedIn, Outcome, Plan
from scheduler.node.staging import NotReady, Stopped
from scheduler.node.supervise import ORDERED, TERMINATED, Course, StopReason, Supervisor, Team, oom_kills, verdict
from scheduler.node.worker import Worker

PLAN_SECONDS_MAX = 60
"""How long the plan is asked for; nothing runs before it is known."""

EXIT_REPORTED = 0
EXIT_UNREPORTED = 74
EXIT_LEASE_OVER = 75
EXIT_FENCE_LOST = 76
EXIT_NO_PLAN = 77
EXIT_ALREADY_RUNNING = 78


@dataclass(frozen=True, slots=True)
class Settings:
    control_url: str
    attempt_id: str
    token: str
    home: Path

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises KeyError naming what is missing."""
        for name in ("HELIU_HOME", CONTROL_URL, ATTEMPT_ID, TOKEN):
            if not environ.get(name):
                raise KeyError(name)
        home = Path(environ["HELIU_HOME"])
        return cls(environ[CONTROL_URL], environ[ATTEMPT_ID], environ[TOKEN], home)

    @property
    def access(self) -> dict[str, str]:
        """What the workers of a gang need to speak as the attempt. Only inside the cluster."""
        return {"url": self.control_url, "token": self.token, "home": str(self.home)}

    @property
    def work_root(self) -> Path:
        return self.home / "work"


class Runner:
    """One attempt, from its plan to its end."""

    def __init__(self, settings: Settings, control: ControlPlane, plan: Plan) -> None:
        self._settings = settings
        self._control = control
        self._plan = plan
        self._lease = Lease(self._lease_over)
        self._logs = LogBuffer()
        self._stop = threading.Event()
        self._terminated = False  # by the node's runtime, not by an order of the control plane
        self._team: Team | None = None
        self._over = False  # nothing runs any more; only the ending is to be told
        self._heart = Heart(
            control, self._lease, self._logs, plan, on_stop=self._ordered_to_stop, on_fence_lost=self._fence_lost
        )
        self._supervisor = Supervisor(plan, self._heart, self._logs, self._stop)

    def run(self, asked_at: float) -> int:
        """The process's exit code. `asked_at`: when the plan, which gives the first lease, was asked for."""
        self._lease.renew(asked_at, self._plan.lease_seconds)
        # Ray ends a job with it. A plain death would end the program without its grace and tell nobody.
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._heart.start()
        sweep(self._settings.work_root)
        try:
            with WorkFolder(self._settings.work_root, self._plan.attempt_id) as folder:
                ending = self._attempt(folder)
        except AlreadyRunning as other:
            _say(str(other))
            self._lease.close()
            return EXIT_ALREADY_RUNNING
        reported = self._finish(ending)
        self._lease.close()
        return EXIT_REPORTED if reported else EXIT_UNREPORTED

    def _attempt(self, folder: WorkFolder) -> FinishedIn:
        """Run it and store what it made; the verdict, not yet reported."""
        course: Course | None = None
        try:
            kills_before = oom_kills()
            team = self._start(folder)
            self._heart.inventories(team.inventories())
            course = self._supervisor.watch(team)
            if self._terminated and course.stopping in (None, StopReason.ORDER):
                # Ray signals the program too. Whatever it made of that, its work need not be done.
                course.stopping = StopReason.TERMINATED
            ending = verdict(course, self._plan, out_of_memory=oom_kills() > kills_before)
            if ending.outcome is Outcome.SUCCEEDED:
                team.upload(self._stop)
            else:
                team.keep_checkpoint()  # the clock has stopped: this is free
                self._heart.inventories(team.inventories())
            return ending
        except Stopped:
            outcome, (cause, message) = Outcome.STOPPED, TERMINATED if self._terminated else ORDERED
        except NotReady as problem:
            outcome, cause, message = Outcome.FAILED, problem.cause, problem.message
        finally:
            if self._team is not None:
                self._team.close()
        return FinishedIn(
            outcome=outcome,
            cause=cause,
            message=message[:MESSAGE_CHARS_MAX],
            exit_code=course.exit_code if course else None,
            ran_ms=course.ran_ms if course else 0,
        )

    def _start(self, folder: WorkFolder) -> Team:
        """The team, running. Raises NotReady or Stopped."""
        if self._plan.workers > 1:
            from scheduler.node.gang import Gang  # imports Ray, which takes seconds

            self._team = gang = Gang(
                self._plan, self._settings.access, self._lease, self._supervisor.notice, say=self._logs.append
            )
            gang.start(self._stop)
            return gang
        self._team = worker = Worker(self._control, self._plan, folder, self._supervisor.notice, say=self._logs.append)
        worker.stage(self._stop)
        worker.launch({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
        return worker

    def _finish(self, ending: FinishedIn) -> bool:
        """Hand over the last lines and the ending, insisting until the lease is over. Whether it was taken."""
        self._over = True
        self._heart.flush()
        pause = 0.2
        while self._lease.remaining() > 0:
            try:
                self._control.finished(ending)
                self._heart.close()
                return True
            except Away:
                time.sleep(min(pause, self._lease.remaining()))
                pause = min(pause * 2, 2.0)
            except Denied as refusal:
                _say(f"the ending was refused: {refusal}")
                return False
        return False

    def _on_sigterm(self, _number: int, _frame: object) -> None:
        self._terminated = True
        # In a thread: the main thread may have been interrupted while it held the very locks this takes.
        threading.Thread(target=self._ordered_to_stop, args=(self._plan.grace_seconds,), daemon=True).start()

    def _ordered_to_stop(self, grace_seconds: int) -> None:
        self._supervisor.stop_grace_seconds = grace_seconds
        self._stop.set()
        self._supervisor.wake()

    def _lease_over(self) -> None:
        self._leave("the lease is over: no heartbeat was answered in time", EXIT_LEASE_OVER)

    def _fence_lost(self) -> None:
        self._leave("the control plane has taken this attempt's right to run", EXIT_FENCE_LOST)

    def _leave(self, why: str, code: int) -> None:
        """End everything at once; the folder is swept by the next runner."""
        if self._over:
            return
        if self._team is not None:
            self._team.kill()
        _say(why)
        exit_now(code)


def fetch_plan(control: ControlPlane) -> tuple[Plan, float] | None:
    """The plan and when it was asked for; None when it cannot be had."""
    give_up_at = time.monotonic() + PLAN_SECONDS_MAX
    pause = 0.2
    while True:
        try:
            return control.plan()
        except Denied as refusal:
            _say(f"no plan: {refusal}")
            return None
        except Away as reason:
            if time.monotonic() >= give_up_at:
                _say(f"no plan: {reason}")
                return None
        time.sleep(pause)
        pause = min(pause * 2, 2.0)


def main() -> int:
    """Run the attempt named by the environment."""
    try:
        settings = Settings.read(os.environ)
    except KeyError as missing:
        _say(f"the runner needs {missing.args[0]} in its environment")
        return EXIT_NO_PLAN
    control = ControlPlane(settings.control_url, settings.attempt_id, settings.token)
    found = fetch_plan(control)
    if found is None:
        return EXIT_NO_PLAN
    plan, asked_at = found
    return Runner(settings, control, plan).run(asked_at)


def _say(text: str) -> None:
    """Into Ray's log of the job."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
