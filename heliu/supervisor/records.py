"""What runs and which processes that is: `<home>/run/<name>.json`, written by the supervisor, read by everybody.

A process is named by its id *and* its start time, so a number the system gave to somebody else is never touched.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

INSTANCE_VARIABLE = "HELIU_INSTANCE"
"""Every process of one `heliu up` inherits this variable; its value is random per start."""
START_TIME_TOLERANCE_SECONDS = 0.5


class ProcessRef(BaseModel):
    """One process of this machine, now or ever."""

    model_config = ConfigDict(frozen=True)

    pid: int
    create_time: float

    @classmethod
    def of(cls, process: psutil.Process) -> "ProcessRef":
        """The reference to a process that is there."""
        return cls(pid=process.pid, create_time=process.create_time())

    def find(self) -> psutil.Process | None:
        """The process itself when it still runs; None when it ended, is a zombie, or its id has a new owner."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < START_TIME_TOLERANCE_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


class ServiceRecord(BaseModel):
    """A supervised service: its process, the processes below it when last looked at, how often it was restarted."""

    name: str
    process: ProcessRef
    tree: list[ProcessRef] = []
    restarts: int = 0
    ready: bool = False


class InstanceRecord(BaseModel):
    """One `heliu up`: its supervisor and the mark its processes carry."""

    id: str
    supervisor: ProcessRef
    ready: bool = False


class RunFolder:
    """The records of one home."""

    def __init__(self, home: Path) -> None:
        self.path = home / "run"

    def write(self, name: str, record: BaseModel) -> None:
        """Put the record under its name, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f".{name}.json.{os.getpid()}"
        draft.write_text(record.model_dump_json())
        draft.replace(self.path / f"{name}.json")

    def instance(self) -> InstanceRecord | None:
        """The instance that was started last and not ended by `heliu down`."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return InstanceRecord.model_validate_json((self.path / "instance.json").read_text())
        return None

    def services(self) -> list[ServiceRecord]:
        """Every recorded service, by name."""
        found: list[ServiceRecord] = []
        for file in sorted(self.path.glob("*.json")):
            if file.name == "instance.json":
                continue
            with contextlib.suppress(FileNotFoundError, ValueError):
                found.append(ServiceRecord.model_validate(json.loads(file.read_text())))
        return found

    def remove(self, name: str) -> None:
        """Forget one record."""
        (self.path / f"{name}.json").unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all of them."""
        for file in self.path.glob("*.json"):
            file.unlink(missing_ok=True)


def tree_below(process: psutil.Process) -> list[ProcessRef]:
    """Every descendant at this moment; empty when the process is gone."""
    refs: list[ProcessRef] = []
    with contextlib.suppress(psutil.Error):
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                refs.append(ProcessRef.of(child))
    return refs


def marked(instance_id: str) -> Iterator[ProcessRef]:
    """Every process that inherited the mark of this instance, except the one that asks."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(INSTANCE_VARIABLE) == instance_id:
                yield ProcessRef.of(process)


def alive(refs: Iterable[ProcessRef]) -> list[psutil.Process]:
    """Those that still run, each once."""
    found = {process.pid: process for ref in refs if (process := ref.find()) is not None}
    return list(found.values())


def end(refs: Iterable[ProcessRef], *, grace_seconds: float) -> int:
    """Ask these processes and all below them to end, kill what is left after the grace; returns how many there were."""
    roots = list(refs)
    below = [ref for process in alive(roots) for ref in tree_below(process)]
    everyone = [ref for ref in dict.fromkeys([*roots, *below]) if ref.find() is not None]
    left = _ask(everyone, "terminate", wait_seconds=grace_seconds)
    _ask(left, "kill", wait_seconds=5)
    return len(everyone)


def _ask(refs: list[ProcessRef], signal_name: str, *, wait_seconds: float) -> list[ProcessRef]:
    """Signal each and wait; returns those still there. Nobody's exit status is taken: that belongs to the parent."""
    for process in alive(refs):
        with contextlib.suppress(psutil.Error):
            getattr(process, signal_name)()
    deadline = time.monotonic() + wait_seconds
    while refs := [ref for ref in refs if ref.find() is not None]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return refs
