"""Whoever runs a real Ray or a real engine on this machine holds its lock: memory is finite, and ports are few.

Locks are files in the temporary folder, held for as short a scope as will do (a module, the platform's package). They
are always taken in one order, so two test sessions on a machine never wait for each other in a circle.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

RAY_LOCK, ENGINE_LOCK = "ray", "vllm"
WAIT_SECONDS = 1800
POLL_SECONDS = 0.2

_held: list[str] = []
"""What this process holds, in the order it was taken."""


class DeadlockByConstruction(AssertionError):
    """This process would wait for itself, or in a circle with another one."""


@contextmanager
def machine_locks(*names: str, seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the named locks. Raises AssertionError when another process keeps one for `seconds`.

    Raises DeadlockByConstruction at once when this process holds one of them already, or one that comes after them.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        for name in sorted(names):
            stack.enter_context(_lock(name, deadline, seconds))
        yield


@contextmanager
def _lock(name: str, deadline: float, seconds: float) -> Iterator[None]:
    _assert_can_wait_for(name)
    path = Path(tempfile.gettempdir()) / f"{name}.lock"
    with path.open("a+") as file:
        while not _taken(file.fileno()):
            assert time.monotonic() < deadline, (
                f"{path} was not free within {seconds:g} s; {_holder(path)}. "
                "Wait until that test session is over, or end it, and run again."
            )
            time.sleep(POLL_SECONDS)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _held.append(name)
        try:
            yield
        finally:
            _held.remove(name)


def _assert_can_wait_for(name: str) -> None:
    if name in _held:
        raise DeadlockByConstruction(
            f"this process asks for the machine's lock {name!r} and holds it already: it would wait for itself for "
            "ever. Give the fixture that holds it a smaller scope, or let both share it."
        )
    if _held and _held[-1] > name:
        raise DeadlockByConstruction(
            f"this process holds the machine's lock {_held[-1]!r} and asks for {name!r}, which comes before it: "
            "another session that takes them in order would wait in a circle with this one. Take both in one call."
        )


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> str:
    pid = path.read_text().strip()
    try:
        command = Path(f"/proc/{int(pid)}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, ValueError):
        return "its holder did not say who it is"
    return f"process {pid} holds it ({command[:120]})"
