"""Usage records on their way to the ledger: replayed at start, shipped in idempotent batches, segments then deleted.

A few records wait in memory; when the ledger is away for longer the rest waits in the segments they are in anyway, and
is read again when its turn comes. What waits is bounded by its bytes on disk.
"""

import asyncio
import itertools
import logging
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from kit.errors import HeliuError, InvalidInput
from serving.admission import Lease, shipped
from serving.gateway.ports import UNFORESEEN, Ledger
from serving.gateway.usage_log import SEGMENT_BYTES, Segment, UsageLog, encode, read_segment
from serving.metering import Closed, Counted, Opened, Outcome, Subject, Tokens, follow

log = logging.getLogger(__name__)

BATCH_MAX = 500
IN_MEMORY_MAX = 10_000
"""Records that wait in memory; those after them are left on disk."""
ROTATE_BYTES = SEGMENT_BYTES - (256 << 10)


@dataclass(slots=True)
class _Owed:
    """A closed request that the ledger does not have yet, and the segments that are needed until it has."""

    closed: Closed
    segments: list[Segment]
    lease: Lease | None
    charge: int
    tokens: int


@dataclass(slots=True)
class _OnDisk:
    """Closed requests that are read from their segment again, with what their leases owe in all."""

    segment: Segment
    needs: Counter[Segment] = field(default_factory=Counter[Segment])
    leases: dict[int, tuple[Lease, int, int]] = field(default_factory=dict[int, tuple[Lease, int, int]])
    records: int = 0

    def add(self, owed: _Owed) -> None:
        """One more waits there."""
        self.records += 1
        self.needs.update(owed.segments)
        if owed.lease is not None:
            _, charge, tokens = self.leases.get(id(owed.lease), (owed.lease, 0, 0))
            self.leases[id(owed.lease)] = owed.lease, charge + owed.charge, tokens + owed.tokens


class Shipper:
    """Writes records to the log and owes each closed one to the ledger until the ledger has it."""

    def __init__(self, usage_log: UsageLog, sink: Ledger, *, backlog_bytes_max: int) -> None:
        self.log = usage_log
        self._sink = sink
        self._backlog_bytes_max = backlog_bytes_max
        self._backlog: deque[_Owed] = deque()
        self._on_disk: deque[_OnDisk] = deque()  # what came after the backlog in memory
        self._segments: set[Segment] = set()  # those with lines that are not yet shipped
        self._open: dict[str, list[Segment]] = {}  # open stream → the segments with a line of it
        self._more = asyncio.Event()
        self._shipping = asyncio.Lock()
        self.shipped = 0
        self.quarantined = 0
        """Records that the ledger will never take; they are in `quarantine.log`."""
        self.late = False
        """Whether the last attempt to ship failed."""
        self.full = False
        """Whether nothing more may be admitted until the ledger has taken some."""
        self._replay([Segment(path) for path in usage_log.left_behind])

    @property
    def backlog(self) -> int:
        """Records that the ledger does not have yet."""
        return len(self._backlog) + sum(one.records for one in self._on_disk)

    def count(self, subject: Subject, tokens: Tokens) -> None:
        """Log the running count of an open stream."""
        self._rotate_when_full()
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
        self._rotate_when_full()
        owed = _Owed(closed, self._open.pop(closed.subject.id, None) or [], lease, charge, tokens)
        segment = self.log.append(encode(closed), partial(self._durable, owed, done, self.log.segment))
        self._need(owed.segments, segment)

    def _rotate_when_full(self) -> None:
        if self.log.bytes_in_segment > ROTATE_BYTES:
            self.log.rotate()
            self._weigh()

    def _weigh(self) -> None:
        """Set `full`: a segment counts whole, since it is made whole."""
        waiting = sum(1 for segment in self._segments if segment is not self.log.segment)
        self.full = waiting * SEGMENT_BYTES + self.log.bytes_in_segment >= self._backlog_bytes_max

    def _durable(self, owed: _Owed, done: Callable[[], None], segment: Segment) -> None:
        if len(self._backlog) < IN_MEMORY_MAX and not self._on_disk:
            self._backlog.append(owed)
        else:
            if not self._on_disk or self._on_disk[-1].segment is not segment:
                self._on_disk.append(_OnDisk(segment))
            self._on_disk[-1].add(owed)
        self._more.set()
        done()

    def _need(self, segments: list[Segment], segment: Segment) -> None:
        if segment not in segments:
            segments.append(segment)
            segment.needed += 1
            self._segments.add(segment)

    def _replay(self, segments: list[Segment]) -> None:
        """Owe the ledger what an earlier gateway left: closed requests, and open streams at their last count.

        No segment of an earlier gateway goes before all of them can: a stream may have lines in any.
        """
        cut: dict[str, Opened] = {}
        for segment in segments:
            closed = follow(cut, read_segment(segment.path))
            self._on_disk.append(_OnDisk(segment, Counter(segments), records=closed))
        for opened in cut.values():
            killed = Closed(opened.subject, opened.tokens, Outcome.GATEWAY_KILLED)
            self._backlog.append(_Owed(killed, segments, None, 0, 0))
        for segment in segments:
            segment.needed = len(segments) + len(cut)
        self._segments.update(segments)
        if segments:
            log.info("usage of an earlier gateway is replayed", extra={"records": self.backlog, "cut": len(cut)})
            self._more.set()
        self._weigh()

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
        while self._backlog or self._on_disk:
            if not (await self._ship_from_memory() if self._backlog else await self._ship_from_disk()):
                self.late = True
                self._weigh()
                return False
            self.late = False
            self._delete_shipped()
        self._more.clear()
        return True

    async def _ship_from_memory(self) -> bool:
        batch = list(itertools.islice(self._backlog, BATCH_MAX))
        if not await self._charge([owed.closed for owed in batch]):
            return False
        for owed in batch:
            self._backlog.popleft()
            if owed.lease is not None:
                shipped(owed.lease, owed.charge, tokens=owed.tokens)
            for segment in owed.segments:
                segment.needed -= 1
        return True

    async def _ship_from_disk(self) -> bool:
        """A segment at a time; some of it may have been shipped before, which changes nothing."""
        waiting = self._on_disk.popleft()
        if waiting.segment is self.log.segment:
            self.log.rotate()  # what is durable of it is read; what is not yet comes later
        records = read_segment(waiting.segment.path)
        closed = (record for record in records if isinstance(record, Closed))
        while batch := list(itertools.islice(closed, BATCH_MAX)):
            if not await self._charge(batch):
                self._on_disk.appendleft(waiting)
                return False
        for lease, charge, tokens in waiting.leases.values():
            shipped(lease, charge, tokens=tokens)
        for segment, times in waiting.needs.items():
            segment.needed -= times
        return True

    async def _charge(self, batch: Sequence[Closed]) -> bool:
        """Have the ledger take these, but for what it will never take; False when it takes nothing now."""
        try:
            bad = await self._refused(batch)
        except (HeliuError, OSError) as error:
            if not self.late:
                log.warning("usage could not be shipped; it is kept and tried again", extra={"why": str(error)})
            return False
        if len(bad) == len(batch) and all(error.code == UNFORESEEN for _, error in bad):
            log.error("the ledger fails on all usage in a way nobody foresaw; it is kept and tried again")
            return False
        if bad:
            await asyncio.to_thread(self._quarantine, bad)
        self.shipped += len(batch) - len(bad)
        return True

    async def _refused(self, batch: Sequence[Closed]) -> list[tuple[Closed, InvalidInput]]:
        """The records that the ledger refuses, whenever they come: found by halves, so that they hold up no other."""
        try:
            await self._sink.ingest(batch)
        except InvalidInput as error:
            if len(batch) == 1:
                return [(batch[0], error)]
            half = len(batch) // 2
            return [*await self._refused(batch[:half]), *await self._refused(batch[half:])]
        return []

    def _quarantine(self, bad: Iterable[tuple[Closed, InvalidInput]]) -> None:
        with (self.log.folder / "quarantine.log").open("ab") as file:
            for closed, why in bad:
                file.write(encode(closed))
                self.quarantined += 1
                log.error(
                    "the ledger will never take a record of usage; it is kept in quarantine.log and not charged",
                    extra={"request": closed.subject.id, "why": str(why)},
                )
            file.flush()
            os.fsync(file.fileno())

    def _delete_shipped(self) -> None:
        """Remove segments of which the ledger has everything."""
        for segment in [segment for segment in self._segments if segment.needed == 0]:
            if segment is not self.log.segment:
                self._segments.remove(segment)
                segment.path.unlink(missing_ok=True)
        self._weigh()
