"""What a node keeps of the files its attempts fetched, so that the next attempt copies instead of fetching.

Names are made of the firm and the hash: firms share no entry, because finding one would tell of the other's files. An
entry is a whole file that was checked when it came, and its copy is checked again when it is used. Its time is its last
use: beyond the bounds the longest unused go.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scheduler.node.protocol import HELD_FILES_MAX, held_as

WORTH_BYTES = 64 << 10
"""A smaller file is fetched as fast as it is copied."""
_LARGEST_PART = 4
"""No entry takes more than this part of the bound: one large file does not push out all others."""
_FORGOTTEN_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in the cache: its name, its size, and when it was last used."""

    name: str
    size: int
    used_at: float


def surplus(entries: Sequence[Entry], *, bytes_max: int, files_max: int) -> list[Entry]:
    """What has to go for the rest to stay within the bounds: the longest unused first."""
    total, count = sum(entry.size for entry in entries), len(entries)
    going: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: (entry.used_at, entry.name)):
        if total <= bytes_max and count <= files_max:
            break
        going.append(entry)
        total, count = total - entry.size, count - 1
    return going


class Cache:
    """One firm's view of the node's cache. Each worker on the node opens its own; a lock orders removals."""

    def __init__(self, folder: Path, firm_id: str, *, bytes_max: int) -> None:
        self._folder = folder
        self._firm_id = firm_id
        self._bytes_max = bytes_max
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def copy_to(self, sha256: str, target: Path) -> bool:
        """Put the file there; False when it is not here. One that has gone bad is dropped."""
        entry = self._path(sha256)
        try:
            with entry.open("rb") as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            os.utime(entry)
        except FileNotFoundError:
            target.unlink(missing_ok=True)
            return False
        with target.open("rb") as copied:
            if hashlib.file_digest(copied, "sha256").hexdigest() == sha256:
                return True
        target.unlink()
        self.drop(sha256)
        return False

    def keep(self, sha256: str, source: Path) -> None:
        """Keep a copy of a checked file. What the disk does not hold is not kept: a cache fails nobody."""
        if not WORTH_BYTES <= source.stat().st_size <= self._bytes_max // _LARGEST_PART:
            return
        draft = self._folder / f".{os.getpid()}-{sha256[:16]}.part"
        try:
            shutil.copyfile(source, draft)
            draft.replace(self._path(sha256))
        except OSError:
            draft.unlink(missing_ok=True)
        self.trim()

    def drop(self, sha256: str) -> None:
        """Forget a file."""
        self._path(sha256).unlink(missing_ok=True)

    def trim(self, *, bytes_max: int | None = None) -> None:
        """Remove what is beyond the bounds, and drafts that nobody finishes."""
        most = self._bytes_max if bytes_max is None else bytes_max
        with self._alone():
            for entry in surplus(self.entries(), bytes_max=most, files_max=HELD_FILES_MAX):
                (self._folder / entry.name).unlink(missing_ok=True)
            for draft in self._folder.glob(".*.part"):
                with suppress(FileNotFoundError):
                    if time.time() - draft.stat().st_mtime > _FORGOTTEN_SECONDS:
                        draft.unlink()

    def make_room(self, bytes_needed: int) -> None:
        """Give disk back when that much is not free: running work comes before what may be of use some day."""
        missing = bytes_needed - shutil.disk_usage(self._folder).free
        if missing > 0:
            self.trim(bytes_max=max(0, sum(entry.size for entry in self.entries()) - missing))

    def entries(self) -> list[Entry]:
        """Everything that is here, of all firms."""
        found: list[Entry] = []
        with os.scandir(self._folder) as files:
            for file in files:
                with suppress(FileNotFoundError):
                    if not file.name.startswith("."):
                        seen = file.stat(follow_symlinks=False)
                        found.append(Entry(file.name, seen.st_size, seen.st_mtime))
        return found

    def _path(self, sha256: str) -> Path:
        return self._folder / held_as(self._firm_id, sha256)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
