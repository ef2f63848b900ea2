"""What an engine leaves on its node when it is killed: shared memory and sockets, named after their owner.

The name holds the replica host's process id and start time, so a later host knows which of them nobody owns any more.
"""

import os
import re
import shutil
from pathlib import Path

SHM_PREFIX = "HELIU_ENGINE_SHM_PREFIX"
_SHM = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is
_SOCKETS = Path("/tmp")  # noqa: S108 - socket paths may have 107 characters; a folder of our own lies below
_TAG = re.compile(r"^(heliu-(\d+)-(\d+))(?:$|_)")


def own_tag() -> str:
    """The name of what this process's engine leaves."""
    return f"heliu-{os.getpid()}-{_start_time(os.getpid())}"


def folder_of(tag: str) -> Path:
    """A private folder for the engine's sockets and temporary files."""
    return _SOCKETS / tag


def remove(tag: str, *, shm: Path = _SHM, sockets: Path = _SOCKETS) -> None:
    """Remove all that bears this name; its engine is over."""
    shutil.rmtree(sockets / tag, ignore_errors=True)
    for segment in shm.glob(f"{tag}_*"):
        segment.unlink(missing_ok=True)


def sweep(*, shm: Path = _SHM, sockets: Path = _SOCKETS) -> set[str]:
    """Remove what hosts that are no more have left; the names removed."""
    found = {match[1] for path in (*shm.glob("heliu-*"), *sockets.glob("heliu-*")) if (match := _TAG.match(path.name))}
    dead = {tag for tag in found if not _is_owner_alive(tag)}
    for tag in dead:
        remove(tag, shm=shm, sockets=sockets)
    return dead


def _is_owner_alive(tag: str) -> bool:
    _, pid, start_time = tag.split("-")
    return _start_time(int(pid)) == start_time


def _start_time(pid: int) -> str:
    """When a process started, in ticks since boot (proc(5), field 22); empty when none runs, as a zombie does not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
