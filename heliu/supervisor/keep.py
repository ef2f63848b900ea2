"""Start every service when those before it are ready, watch each, start it again when it dies, end all in reverse."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from heliu.supervisor import records
from heliu.supervisor.backoff import failures_in_a_row, restart_delay_seconds
from heliu.supervisor.records import InstanceRecord, ProcessRef, RunFolder, ServiceRecord
from heliu.supervisor.services import Service
from kit.errors import Unavailable

READY_POLL_SECONDS = 0.25
TREE_POLL_SECONDS = 3.0
LOG_BYTES_MAX = 64 * 1024 * 1024
START_TRIES = 4
"""A service that ends this often in a row before it was ready once will not start by itself."""
LAST_WORDS_LINES, LAST_WORDS_CHARS = 4, 300

Report = Callable[[str, str], None]
"""Called with a service's name and what just happened to it."""


@dataclass(slots=True)
class _Kept:
    service: Service
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    hopeless: asyncio.Event = field(default_factory=asyncio.Event)
    record: ServiceRecord | None = None
    restarts: int = 0
    failures: int = 0
    why: str = ""


class Supervisor:
    """Keeps the services of one instance running until `stop` is called."""

    def __init__(self, services: list[Service], *, home: Path, instance_id: str, report: Report) -> None:
        self._kept = {service.name: _Kept(service) for service in services}
        self._home = home
        self._run = RunFolder(home)
        self._instance = InstanceRecord(id=instance_id, supervisor=ProcessRef.of(psutil.Process()))
        self._report = report
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self) -> None:
        """Return when everything is ready. Raises Unavailable when a service does not get there in its time."""
        (self._home / "logs").mkdir(parents=True, exist_ok=True)
        self._run.write("instance", self._instance)
        self._tasks = [asyncio.create_task(self._keep(kept)) for kept in self._kept.values()]
        self._tasks.append(asyncio.create_task(self._note_trees()))
        await asyncio.gather(*(self._until_ready(kept) for kept in self._kept.values()))
        self._run.write("instance", self._instance.model_copy(update={"ready": True}))

    async def stop(self) -> None:
        """End every service, the last started first, with all below it; then forget the instance."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for kept in reversed(self._kept.values()):
            await self._end(kept)
        await asyncio.to_thread(self._sweep)
        self._run.clear()

    def _sweep(self) -> None:
        records.end(records.marked(self._instance.id), grace_seconds=3)

    async def _until_ready(self, kept: _Kept) -> None:
        for name in kept.service.after:
            await self._kept[name].ready.wait()
        name, seconds = kept.service.name, kept.service.ready_seconds_max
        waits = {asyncio.create_task(kept.ready.wait()), asyncio.create_task(kept.hopeless.wait())}
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not kept.ready.is_set():
            why = kept.why or f"it did not answer within {seconds:.0f} s"
            raise Unavailable(f"{name} does not start: {why}", hint=f"its log: {self._log_file(name)}")

    async def _keep(self, kept: _Kept) -> None:
        service = kept.service
        while not self._stopping:
            for name in service.after:
                await self._kept[name].ready.wait()
            started = time.monotonic()
            child = await self._launch(kept)
            getting_ready = asyncio.create_task(self._wait_ready(kept))
            try:
                code = await child.wait()
            finally:
                getting_ready.cancel()
            kept.ready.clear()
            if service.once and code == 0:
                kept.record = None
                self._report(service.name, "done")
                kept.ready.set()
                self._run.remove(service.name)
                return
            await self._after_death(kept, code, ran_seconds=time.monotonic() - started)

    async def _after_death(self, kept: _Kept, code: int, *, ran_seconds: float) -> None:
        service = kept.service
        await asyncio.to_thread(self._end_leftovers, kept)
        for other in self._kept.values():
            if service.name in other.service.ends_with:
                other.ready.clear()
                await self._end(other)
        kept.failures = failures_in_a_row(kept.failures, ran_seconds=ran_seconds)
        kept.restarts += 1
        delay = restart_delay_seconds(kept.failures)
        kept.why = f"it ended with code {code}: {self._last_words(service.name)}"
        if kept.failures >= START_TRIES:
            kept.hopeless.set()
        self._report(service.name, f"ended with code {code}; starting again in {delay:.1f} s")
        await asyncio.sleep(delay)

    async def _launch(self, kept: _Kept) -> asyncio.subprocess.Process:
        service = kept.service
        log = self._log_file(service.name)
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_suffix(".log.1"))
        environment = _clean_environment() | dict(service.environment())
        environment[records.INSTANCE_VARIABLE] = self._instance.id
        with log.open("ab") as sink:
            child = await asyncio.create_subprocess_exec(
                *service.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment,
                cwd=self._home,
                start_new_session=True,
            )
        with contextlib.suppress(psutil.NoSuchProcess):
            process = ProcessRef.of(psutil.Process(child.pid))
            kept.record = ServiceRecord(name=service.name, process=process, restarts=kept.restarts)
            self._run.write(service.name, kept.record)
        self._report(service.name, "started" if not kept.restarts else f"started again (restart {kept.restarts})")
        return child

    async def _wait_ready(self, kept: _Kept) -> None:
        if kept.service.once:
            return
        while not await kept.service.ready():  # noqa: ASYNC110 - it looks at another process
            await asyncio.sleep(READY_POLL_SECONDS)
        self._note(kept, ready=True)
        kept.ready.set()
        self._report(kept.service.name, "ready")

    async def _note_trees(self) -> None:
        while True:
            await asyncio.sleep(TREE_POLL_SECONDS)
            for kept in self._kept.values():
                self._note(kept)

    def _note(self, kept: _Kept, *, ready: bool | None = None) -> None:
        record = kept.record
        process = record and record.process.find()
        if record is None or process is None:
            return
        known = {ref.pid: ref for ref in [*record.tree, *records.tree_below(process)]}
        tree = [ref for ref in known.values() if ref.find() is not None] if kept.service.sweeps_below else []
        kept.record = record.model_copy(update={"tree": tree, "ready": record.ready if ready is None else ready})
        if kept.record != record:
            self._run.write(kept.service.name, kept.record)

    def _end_leftovers(self, kept: _Kept) -> None:
        if kept.record:
            records.end(kept.record.tree, grace_seconds=2)

    async def _end(self, kept: _Kept) -> None:
        self._note(kept)
        if kept.record is None:
            return
        refs = [kept.record.process, *kept.record.tree]
        await asyncio.to_thread(records.end, refs, grace_seconds=kept.service.stop_seconds_max)
        if self._stopping:
            self._run.remove(kept.service.name)
            self._report(kept.service.name, "stopped")

    def _last_words(self, name: str) -> str:
        lines = self._log_file(name).read_text(errors="replace").split("\n")[-LAST_WORDS_LINES:]
        return " ".join(line.strip() for line in lines if line.strip())[-LAST_WORDS_CHARS:] or "without a word"

    def _log_file(self, name: str) -> Path:
        return self._home / "logs" / f"{name}.log"


def json_reporter(sink: Path) -> Report:
    """Writes what happens as one JSON object a line, like every other log of the platform."""

    def report(name: str, what: str) -> None:
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": "info", "process": "supervisor"}
        with sink.open("a") as log:
            log.write(json.dumps(line | {"service": name, "message": what}) + "\n")

    return report


def _clean_environment() -> dict[str, str]:
    """Ours, without what another cluster or a proxy would mix in."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
