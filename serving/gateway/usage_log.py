"""The gateway's durable usage log: what is appended while others are at work is synced together.

The kernel syncs while the loop goes on. Where it cannot, or the disk refuses, a thread does: it writes again, for as
long as the disk refuses.

A segment is a file of lines (`usage_lines.py`). A small ballast file is given up when the disk fills, so that what
runs can still be logged while nothing new is admitted.
"""

import asyncio
import fcntl
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kit.errors import Conflict
from serving.gateway.faults import where
from serving.gateway.kernel_sync import KernelSync

log = logging.getLogger(__name__)

BALLAST_BYTES = 4 << 20
SEGMENT_BYTES = 8 << 20
"""A segment is filled with zeros first: overwriting changes no file size, and syncing takes half as long."""
RETRY_SECONDS = 0.2
GATHER_SECONDS = 0.002
"""So long a record waits at most for others to share its sync: a sync costs as much as a request or two."""
SHARE = 2
"""A sync waits for no more than so many records for each request that is still at work."""


@dataclass(slots=True, eq=False)
class Segment:
    """A file of the log. `needed`: requests with a line in it that the ledger does not have yet."""

    path: Path
    needed: int = 0


@dataclass(slots=True)
class _Batch:
    segment: Segment
    until: float
    """When it is written at the latest, on the loop's clock."""
    lines: list[bytes] = field(default_factory=list)
    done: list[Callable[[], None]] = field(default_factory=list)
    seen: int = 0
    """Lines in it when the loop last looked."""


class UsageLog:
    """Appends records to the current segment. `healthy` is False from the first failed write until one succeeds."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.healthy = True
        self.at_work: Callable[[], int] = lambda: 1
        """How many are at work who may have something to log soon."""
        self._loop = asyncio.get_running_loop()
        self._owner = _own(folder)
        self.left_behind = sorted(folder.glob("usage-*.log"))
        """Segments of an earlier gateway, to be replayed."""
        self._number = max((int(path.stem.removeprefix("usage-")) for path in self.left_behind), default=0) + 1
        self.segment = self._numbered()
        self.bytes_in_segment = 0
        self._batch: _Batch | None = None
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._handed = 0
        """Batches that are being written, by whomever: until none is left nothing more is written, but for `_flush`."""
        self._kernel = _kernel_sync(self._loop)
        self._syncing = False
        """Whether the kernel is at it; what the thread is to write meanwhile is in `_held`."""
        self._held: list[_Batch] = []
        self._stopping = False
        self._ballast = folder / "ballast"
        self._spare = folder / "spare"
        self._spare.unlink(missing_ok=True)  # an earlier gateway may have died while filling it
        self._filler: threading.Thread | None = None
        self._fd_segment: Segment | None = None
        self._fd = -1
        self._synced = 0  # bytes of the open segment that are known to be on disk
        self._begin()
        self._thread = threading.Thread(target=self._write_loop, name="usage-log", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self.segment.path

    def append(self, line: bytes, done: Callable[[], None] | None = None) -> Segment:
        """Queue one encoded record, return its segment; `done` is called on the loop, in order, once it is durable.

        What is appended while every turn of the loop brings more is written and synced together.
        """
        batch = self._batch
        if batch is None:
            batch = self._batch = _Batch(self.segment, self._loop.time() + GATHER_SECONDS)
            self._loop.call_soon(self._gather, batch)
        batch.lines.append(line)
        if done is not None:
            batch.done.append(done)
        self.bytes_in_segment += len(line)
        return self.segment

    def rotate(self) -> None:
        """What is appended from now on goes to a new segment."""
        self._flush()
        self._number += 1
        self.segment = self._numbered()
        self.bytes_in_segment = 0

    def _begin(self) -> None:
        """Open the first segment; on a full disk without: what an earlier gateway left is shipped and makes room."""
        if not self._usable():
            self._ballast.unlink(missing_ok=True)
            self._spare.unlink(missing_ok=True)
        self.healthy = self._usable() and self._make_ballast()
        if not self.healthy:
            log.error("the disk is too full for the usage log; nothing is admitted until there is room")

    def _numbered(self) -> Segment:
        return Segment(self.folder / f"usage-{self._number:08d}.log")

    def close(self) -> None:
        """Write what is queued and stop; again is no change."""
        if self._stopping:
            return
        self._stopping = True
        self._flush()
        if self._kernel is not None:
            self._kernel.close()
        self._queue.put(None)
        self._thread.join(timeout=10)
        if self._filler is not None:
            self._filler.join(timeout=10)
        if self._fd >= 0:
            os.close(self._fd)
        os.close(self._owner)

    def _gather(self, batch: _Batch) -> None:
        """A turn of the loop is over: write when it brought nothing more, or enough has come, or it is time."""
        if batch is not self._batch or self._handed:
            return
        count = len(batch.lines)
        if batch.seen < count < SHARE * self.at_work() and self._loop.time() < batch.until:
            batch.seen = count
            self._loop.call_soon(self._gather, batch)
            return
        self._batch = None
        self._handed += 1
        if not (self.healthy and batch.segment is self._fd_segment and self._write_beside(batch)):
            self._queue.put(batch)

    def _flush(self) -> None:
        """Have the thread write what has gathered, even while something is written."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        self._handed += 1
        if self._syncing:
            self._held.append(batch)
        else:
            self._queue.put(batch)

    def _write_beside(self, batch: _Batch) -> bool:
        """Write now and have the kernel sync; False leaves it to the thread."""
        if self._kernel is None:
            return False
        data = b"".join(batch.lines)
        try:
            written = os.pwrite(self._fd, data, self._synced)
        except OSError:
            return False  # the thread meets it again, and knows what to do
        self._syncing = written == len(data) and self._kernel.begin(
            self._fd, partial(self._synced_beside, batch, written)
        )
        return self._syncing

    def _synced_beside(self, batch: _Batch, size: int, on_disk: bool) -> None:
        self._syncing = False
        if on_disk:
            self._synced += size
        else:
            self._held.insert(0, batch)
        for held in self._held:
            self._queue.put(held)
        self._held.clear()
        if on_disk:
            self._all_done([batch])

    def _write_loop(self) -> None:
        while True:
            batches = self._next_batches()
            for segment, group in itertools.groupby(filter(None, batches), key=lambda batch: batch.segment):
                self._write_durably(segment, list(group))
            if not self.healthy and self._usable() and self._make_ballast():
                self.healthy = True
                log.info("the usage log can be written again; requests are admitted")
            if None in batches:
                return

    def _next_batches(self) -> list[_Batch | None]:
        """All that is queued, at least one batch; nothing after a while when the log is ill."""
        batches: list[_Batch | None] = []
        try:
            batches.append(self._queue.get(timeout=None if self.healthy else RETRY_SECONDS))
            while True:
                batches.append(self._queue.get_nowait())
        except queue.Empty:
            return batches

    def _write_durably(self, segment: Segment, batches: Sequence[_Batch]) -> None:
        """Write and sync batches, however long the disk refuses.

        What is not known to be on disk is written again in its place: after a sync that failed, the system may have
        dropped it and call the next sync a success.
        """
        data = b"".join([line for batch in batches for line in batch.lines])
        while True:
            try:
                if segment is not self._fd_segment:
                    self._switch_to(segment)
                written = 0
                while written < len(data):
                    written += os.pwrite(self._fd, data[written:], self._synced + written)
                os.fdatasync(self._fd)
                break
            except OSError as error:
                self._on_refusal(error)
        self._synced += len(data)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._all_done, batches)

    def _all_done(self, batches: Sequence[_Batch]) -> None:
        self._handed -= len(batches)
        for batch in batches:
            _call_all(batch.done)
        if self._batch is not None:
            self._gather(self._batch)

    def _usable(self) -> bool:
        """Whether there is a segment to write in; one is made where there was no room for it."""
        if self._fd_segment is not None:
            return True
        try:
            self._switch_to(self.segment)
        except OSError:
            return False
        return True

    def _switch_to(self, segment: Segment) -> None:
        fd = self._open(segment.path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd_segment, self._fd, self._synced = segment, fd, 0

    def _open(self, path: Path) -> int:
        """Begin a segment: the spare one if it is ready; a new spare is then made beside."""
        if self._filler is not None:
            self._filler.join()
        if not self._spare.exists():
            _fill(self._spare)
        self._spare.rename(path)
        fd = os.open(path, os.O_WRONLY)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # a segment whose name is lost is lost itself
        finally:
            os.close(folder)
        self._filler = threading.Thread(target=_fill_quietly, args=(self._spare,), name="usage-log-spare", daemon=True)
        self._filler.start()
        return fd

    def _on_refusal(self, error: OSError) -> None:
        if self.healthy:
            self.healthy = False
            log.error("the usage log cannot be written; nothing is admitted until it can", extra={"why": str(error)})
        if self._ballast.exists():
            self._ballast.unlink()
        else:
            time.sleep(RETRY_SECONDS)

    def _make_ballast(self) -> bool:
        try:
            if not self._ballast.exists():
                with self._ballast.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        except OSError:
            self._ballast.unlink(missing_ok=True)
            return False
        return True


def _kernel_sync(loop: asyncio.AbstractEventLoop) -> KernelSync | None:
    try:
        return KernelSync(loop)
    except OSError:
        return None


def _call_all(done: list[Callable[[], None]]) -> None:
    for call in done:
        try:
            call()
        except Exception as error:  # one request's answer must not keep the others of its batch from theirs
            log.error("a logged request could not be answered", extra={"fault": where(error)})


def _fill(path: Path) -> None:
    """Make a segment of zeros, on disk."""
    with path.open("wb") as file:
        for _ in range(SEGMENT_BYTES >> 17):
            file.write(bytes(1 << 17))
        file.flush()
        os.fsync(file.fileno())


def _fill_quietly(path: Path) -> None:
    try:
        _fill(path)
    except OSError:
        path.unlink(missing_ok=True)  # the segment is then filled, or refused, when it is needed


def _own(folder: Path) -> int:
    """Lock the folder for this process. Raises Conflict when another gateway writes there."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Conflict(
            f"another gateway writes its usage log in {folder}",
            hint="stop it, or give this one a folder of its own: HELIU_GATEWAY_FOLDER",
        ) from None
    return fd
