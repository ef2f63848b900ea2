"""Usage records on their way to the ledger: replayed at start, shipped in idempotent batches, segments then deleted."""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kit.errors import HeliuError
from serving.admission import Lease, shipped
from serving.gateway.ports import Ledger
from serving.gateway.usage_log import SEGMENT_BYTES, Segment, UsageLog, encode, read_segment
from serving.metering import Closed, Counted, Opened, Subject, Tokens, replay

log = logging.getLogger(__name__)

BATCH_MAX = 500
ROTATE_BYTES = SEGMENT_BYTES - (256 << 10)


@dataclass(slots=True)
class _Owed:
    """A closed request that the ledger does not have yet, and the segments that are needed until it has."""

    closed: Closed
    segments: list[Segment]
    lease: Lease | None
    charge: int
    tokens: int


class Shipper:
    """Writes records to the log and owes each closed one to the ledger until the ledger has it."""

    def __init__(self, usage_log: UsageLog, sink: Ledger, *, backlog_max: int) -> None:
        self.log = usage_log
        self._sink = sink
        self._backlog_max = backlog_max
        self._backlog: deque[_Owed] = deque()
        self._segments: set[Segment] = set()  # those with lines that are not yet shipped
        self._open: dict[str, list[Segment]] = {}  # open stream → the segments with a line of it
        self._more = asyncio.Event()
        self._shipping = asyncio.Lock()
        self._segments_left: list[Path] = []
        self._replayed = Segment(usage_log.folder)  # stands for all that an earlier gateway left
        self.shipped = 0
        self.late = False
        """Whether the last attempt to ship failed."""
        self._replay(usage_log.left_behind)

    @property
    def backlog(self) -> int:
        """Records that the ledger does not have yet."""
        return len(self._backlog)

    @property
    def full(self) -> bool:
        """Whether nothing more may be admitted until the ledger has taken some."""
        return len(self._backlog) >= self._backlog_max

    def count(self, subject: Subject, tokens: Tokens) -> None:
        """Log the running count of an open stream."""
        opened = subject.id in self._open
        segment = self.log.append(encode(Counted(subject.id, tokens) if opened else Opened(subject, tokens)))
        self._need(self._open.setdefault(subject.id, []), segment)

    def end(
        self,
        closed: Closed,
        done: Callable[[], None],
        *,
        lease: Lease | None = None,
        charge: int = 0,
        tokens: int = 0,
    ) -> None:
        """Log the end of a request; `done` is called once it is on disk. It is shipped after that.

        `charge` and `tokens` were settled from `lease` and stay owed there until the ledger has taken them.
        """
        if self.log.bytes_in_segment > ROTATE_BYTES:
            self.log.rotate()
        owed = _Owed(closed, self._open.pop(closed.subject.id, None) or [], lease, charge, tokens)
        self._need(owed.segments, self.log.append(encode(closed), partial(self._durable, owed, done)))

    def _durable(self, owed: _Owed, done: Callable[[], None]) -> None:
        self._backlog.append(owed)
        self._more.set()
        done()

    def _need(self, segments: list[Segment], segment: Segment) -> None:
        if segment not in segments:
            segments.append(segment)
            segment.needed += 1
            self._segments.add(segment)

    def _replay(self, segments: list[Path]) -> None:
        """Owe the ledger what an earlier gateway left: closed requests, and open streams at their last count."""
        records = itertools.chain.from_iterable(read_segment(path) for path in segments)
        left = replay(records)
        self._segments_left = segments
        self._backlog.extend(_Owed(closed, [self._replayed], None, 0, 0) for closed in left)
        self._replayed.needed = len(left)
        if left:
            log.info("usage of an earlier gateway is replayed", extra={"records": len(left)})
            self._more.set()
        self._delete_shipped()

    async def run(self, every_seconds: float) -> None:
        """Ship for ever; when the ledger is down, try again with growing pauses."""
        pause = every_seconds
        while True:
            await self._more.wait()
            await asyncio.sleep(pause)
            pause = every_seconds if await self.ship() else min(pause * 2, 5.0)

    async def ship(self) -> bool:
        """Ship everything owed; whether the ledger took it."""
        async with self._shipping:
            return await self._ship()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Ship what is owed, then nothing until the block ends."""
        async with self._shipping:
            await self._ship()
            yield

    async def _ship(self) -> bool:
        while self._backlog:
            batch = list(itertools.islice(self._backlog, BATCH_MAX))
            try:
                await self._sink.ingest([owed.closed for owed in batch])
            except (HeliuError, OSError) as error:
                if not self.late:
                    log.warning("usage could not be shipped; it is kept and tried again", extra={"why": str(error)})
                self.late = True
                return False
            for owed in batch:
                self._backlog.popleft()
                if owed.lease is not None:
                    shipped(owed.lease, owed.charge, tokens=owed.tokens)
                for segment in owed.segments:
                    segment.needed -= 1
            self.shipped += len(batch)
            self.late = False
            self._delete_shipped()
        self._more.clear()
        return True

    def _delete_shipped(self) -> None:
        """Remove segments of which the ledger has everything."""
        if self._replayed.needed == 0:
            for path in self._segments_left:
                path.unlink(missing_ok=True)
            self._segments_left = []
        for segment in [segment for segment in self._segments if segment.needed == 0]:
            if segment is not self.log.segment:
                self._segments.remove(segment)
                segment.path.unlink(missing_ok=True)
