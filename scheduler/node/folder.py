"""The attempt's folder on the node: for one runner at a time, removed with it or, had it been killed, by the next."""

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from scheduler.node.protocol import Plan


class AlreadyRunning(Exception):
    """Another runner on this node holds this attempt's folder."""


class WorkFolder:
    """`<root>/<attempt>/{plan.json,inputs/,outputs/,checkpoint/,saved/}`, mode 0700, held by a lock beside it."""

    def __init__(self, root: Path, attempt_id: str) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = root / attempt_id
        self.inputs = self.path / "inputs"
        self.outputs = self.path / "outputs"
        self.checkpoint = self.path / "checkpoint"
        self.saved = self.path / "saved"  # packed checkpoints on their way up
        held = _hold(_lock_path(self.path))
        if held is None:
            raise AlreadyRunning(f"attempt {attempt_id} already runs on this node")
        self._lock = held

    def __enter__(self) -> "WorkFolder":
        _remove(self.path)
        for folder in (self.path, self.inputs, self.outputs, self.checkpoint, self.saved):
            folder.mkdir(mode=0o700)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self.path)
        _lock_path(self.path).unlink(missing_ok=True)
        os.close(self._lock)

    def write_plan(self, plan: Plan) -> None:
        """Where the program finds its parameters."""
        (self.path / "plan.json").write_text(plan.model_dump_json(), encoding="utf-8")


def sweep(root: Path) -> list[str]:
    """Remove the folders of attempts whose runner is gone; the names removed."""
    removed: list[str] = []
    for lock in root.glob(".*.lock"):
        held = _hold(lock)
        if held is None:
            continue
        name = lock.name[1 : -len(".lock")]
        _remove(root / name)
        lock.unlink(missing_ok=True)
        os.close(held)
        removed.append(name)
    return removed


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _hold(lock: Path) -> int | None:
    """An open descriptor that holds the lock, or None when somebody else does."""
    while True:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), lock.stat()):
                return fd
        os.close(fd)  # it was removed between opening and locking


def _remove(folder: Path) -> None:
    """A script may have left folders that even their owner cannot enter."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for path, _, _ in os.walk(folder):
            with suppress(OSError):
                Path(path).chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
