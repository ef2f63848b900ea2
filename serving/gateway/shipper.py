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
from serving.gateway.usage_lines import decode, encode, read_lines, read_segment
from serving.gateway.usage_log import SEGMENT_BYTES, Segment, UsageLog
from serving.metering import Closed, Counted, Opened, Outcome, Subject, Tokens, follow

log = logging.getLogger(__name__)

BATCH_MAX = 5_000
IN_MEMORY_MAX = 20_000
"""Records that wait in memory; those after them are left on disk."""
ROTATE_BYTES = SEGMENT_BYTES - (256 << 10)


@dataclass(slots=True)
class _Parcel:
    """Closed requests that go to the ledger together, and what leases owe for them in all.

    They wait as lines in memory, or (`segment`) on disk, from where they are read again.
    """

    segment: Segment | None = None
    lines: list[bytes] = field(default_factory=list[bytes])
    needs: Counter[Segment] = field(default_factory=Counter[Segment])
    leases: dict[int, tuple[Lease, int, int]] = field(default_factory=dict[int, tuple[Lease, int, int]])
    records: int = 0
    sealed: bool = False
    """Whether it is being charged: what comes meanwhile goes into another."""

    def add(self, line: bytes, segments: Sequence[Segment], lease: Lease | None, charge: int, tokens: int) -> None:
        """One more closed request waits there; `segments` are needed until the ledger has it."""
        self.records += 1
        if self.segment is None:
            self.lines.append(line)
        for segment in segments:
            self.needs[segment] += 1
        if lease is not None:
            _, charged, counted = self.leases.get(id(lease), (lease, 0, 0))
            self.leases[id(lease)] = lease, charged + charge, counted + tokens

    def taken(self) -> None:
        """The ledger has all of it."""
        for lease, charge, tokens in self.leases.values():
            shipped(lease, charge, tokens=tokens)
        for segment, times in self.needs.items():
            segment.needed -= times


class Shipper:
    """Writes records to the log and owes each closed one to the ledger until the ledger has it."""

    def __init__(self, usage_log: UsageLog, sink: Ledger, *, backlog_bytes_max: int) -> None:
        self.log = usage_log
        self._sink = sink
        self._backlog_bytes_max = backlog_bytes_max
        self._in_memory: deque[_Parcel] = deque()
        self._on_disk: deque[_Parcel] = deque()  # what came after those in memory
        self._last = _Parcel(sealed=True)  # the one that took the last record
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
        return sum(parcel.records for waiting in (self._in_memory, self._on_disk) for parcel in waiting)

    def count(self, subject: Subject, tokens: Tokens) -> None:
        """Log the running count of an open stream."""
        if self.log.bytes_in_segment > ROTATE_BYTES:
            self._rotate()
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
            self._rotate()
        line = encode(closed)
        segments = self._open.pop(closed.subject.id, None) or []
        segment = self.log.append(line, partial(self._durable, done, line, segments, lease, charge, tokens))
        self._need(segments, segment)

    def _rotate(self) -> None:
        self.log.rotate()
        self._weigh()

    def _weigh(self) -> None:
        """Set `full`: a segment counts whole, since it is made whole."""
        waiting = sum(1 for segment in self._segments if segment is not self.log.segment)
        self.full = waiting * SEGMENT_BYTES + self.log.bytes_in_segment >= self._backlog_bytes_max

    def _durable(
        self,
        done: Callable[[], None],
        line: bytes,
        segments: Sequence[Segment],
        lease: Lease | None,
        charge: int,
        tokens: int,
    ) -> None:
        last = self._last
        if last.segment is not None or last.sealed or last.records >= BATCH_MAX:
            last = self._last = self._parcel(segments[-1])
            self._more.set()
        last.add(line, segments, lease, charge, tokens)
        done()

    def _parcel(self, segment: Segment) -> _Parcel:
        """Where the next record waits: in memory, but behind those that wait on disk already."""
        if self._on_disk or self.backlog > IN_MEMORY_MAX - BATCH_MAX:
            waiting, where = self._on_disk, segment
        else:
            waiting, where = self._in_memory, None
        if not waiting or waiting[-1].sealed or waiting[-1].segment is not where or where is None:
            waiting.append(_Parcel(where))
        return waiting[-1]

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
            self._on_disk.append(_Parcel(segment, needs=Counter(segments), records=closed))
        if cut:
            self._in_memory.append(_Parcel())
        for opened in cut.values():
            killed = Closed(opened.subject, opened.tokens, Outcome.GATEWAY_KILLED)
            self._in_memory[0].add(encode(killed), segments, None, 0, 0)
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
        """Ship everything owed by now; whether the ledger took it. What comes meanwhile goes together the next time."""
        async with self._shipping:
            return await self._ship()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Ship what is owed, then nothing until the block ends."""
        async with self._shipping:
            await self._ship()
            yield

    async def _ship(self) -> bool:
        for _ in range(len(self._in_memory) + len(self._on_disk)):
            waiting = self._in_memory or self._on_disk
            parcel = waiting[0]
            parcel.sealed = True
            work = self._charge_lines(parcel.lines) if parcel.segment is None else self._charge_segment(parcel.segment)
            if not await work:
                self.late = True
                self._weigh()
                return False
            waiting.popleft()
            parcel.taken()
            self.late = False
            self._delete_shipped()
        if not self.backlog:
            self._more.clear()
        return True

    async def _charge_segment(self, segment: Segment) -> bool:
        """All that is in it; some may have been charged before, which changes nothing."""
        if segment is self.log.segment:
            self.log.rotate()  # what is durable of it is read; what is not yet comes later
        closed = (line for line, record in read_lines(segment.path) if isinstance(record, Closed))
        while batch := list(itertools.islice(closed, BATCH_MAX)):
            if not await self._charge_lines(batch):
                return False
        return True

    async def _charge_lines(self, lines: Sequence[bytes]) -> bool:
        """Have the ledger take these, but for what it will never take; False when it takes nothing now."""
        try:
            bad = await self._refused(lines)
        except (HeliuError, OSError) as error:
            if not self.late:
                log.warning("usage could not be shipped; it is kept and tried again", extra={"why": str(error)})
            return False
        if len(bad) == len(lines) and all(error.code == UNFORESEEN for _, error in bad):
            log.error("the ledger fails on all usage in a way nobody foresaw; it is kept and tried again")
            return False
        if bad:
            await asyncio.to_thread(self._quarantine, bad)
        self.shipped += len(lines) - len(bad)
        return True

    async def _refused(self, lines: Sequence[bytes]) -> list[tuple[bytes, InvalidInput]]:
        """The lines that the ledger refuses, whenever they come: found by halves, so that they hold up no other."""
        try:
            await self._sink.ingest(lines)
        except InvalidInput as error:
            if len(lines) == 1:
                return [(lines[0], error)]
            half = len(lines) // 2
            return [*await self._refused(lines[:half]), *await self._refused(lines[half:])]
        return []

    def _quarantine(self, bad: Iterable[tuple[bytes, InvalidInput]]) -> None:
        with (self.log.folder / "quarantine.log").open("ab") as file:
            for line, why in bad:
                file.write(line)
                self.quarantined += 1
                record = decode(line.rstrip(b"\n"))
                log.error(
                    "the ledger will never take a record of usage; it is kept in quarantine.log and not charged",
                    extra={"request": record.subject.id if isinstance(record, Closed) else "", "why": str(why)},
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
