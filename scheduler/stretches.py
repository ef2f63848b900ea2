"""One node over time: what is free of it from each moment at which something begins or ends there to the next.

What begins or ends cuts a stretch in two and changes those in between, so a plan costs what it covers. Plain numbers
and no arrays: a node has few accelerators, and one node at a time is asked about.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from kit.units import MILLI_PER_GPU
from quotas.vocabulary import FirmId
from scheduler.vocabulary import Shape

FOREVER = datetime.max.replace(tzinfo=UTC)
_ANY = -(1 << 62)
"""What is free may be negative where a node has lost some: who asks for none of it does not mind."""


@dataclass(frozen=True, slots=True)
class Use:
    """One worker on a node in `[start, end)`; `may_overrun`: nobody has told it to stop."""

    start: datetime
    end: datetime
    devices: tuple[int, ...]
    shape: Shape
    firm: FirmId
    may_overrun: bool = False


@dataclass(frozen=True, slots=True)
class Free:
    """What is free of a node: CPU, memory, thousandths of each accelerator."""

    cpu_milli: int
    memory_mib: int
    gpu_milli: Sequence[int]


_Share: TypeAlias = tuple[datetime, datetime, int, FirmId]
"""From when to when which accelerator is shared by whom."""


class Stretches:
    """The future of one node from an instant on. Mutable. The last stretch never ends."""

    def __init__(self, empty: Free, running: Iterable[Use], now: datetime) -> None:
        """`running` lies there and leaves at its ends, all of them after `now`."""
        self._at = [now]
        self._cpu_milli, self._memory_mib = [empty.cpu_milli], [empty.memory_mib]
        self._gpu_milli = [tuple(empty.gpu_milli)]
        self._whole = [_at_least(MILLI_PER_GPU, empty.gpu_milli)]  # a bit for each wholly free accelerator
        self._shares: list[_Share] = []
        uses = sorted(running, key=lambda use: use.end)
        for use in uses:
            self._change(0, use, -1)
        for use in uses:
            if use.end < FOREVER:
                self._change(self._cut(use.end), use, +1)
        self._shares += [_share(use) for use in uses if use.shape.is_share]

    def take(self, use: Use) -> None:
        """It lies there in its time."""
        for i in self._span(use.start, use.end):
            self._change(i, use, -1)
        if use.shape.is_share:
            self._shares.append(_share(use))

    def end(self, use: Use, at: datetime) -> None:
        """What was to lie there until its end does until another moment."""
        sign = +1 if at < use.end else -1
        for i in self._span(min(at, use.end), max(at, use.end)):
            self._change(i, use, sign)
        if use.shape.is_share:
            self._shares.remove(_share(use))
            self._shares.append(_share(replace(use, end=at)))

    def first(self, shape: Shape, firm: FirmId, seconds: int | None, not_before: datetime) -> datetime | None:
        """The first moment from which on there is room for one worker throughout its time; None: never."""
        at, cpu, memory = self._at, self._cpu_milli, self._memory_mib
        cpu_milli, memory_mib, gpus = shape.cpu_milli or _ANY, shape.memory_mib or _ANY, shape.gpus
        open_ = self._open_to(shape.gpu_milli, firm) if shape.is_share else self._whole
        time = None if seconds is None else timedelta(seconds=seconds)
        i, start = bisect_right(at, not_before) - 1, not_before
        while True:
            end, j, both = FOREVER if time is None else start + time, i, open_[i]
            while True:
                if cpu[j] < cpu_milli or memory[j] < memory_mib or open_[j].bit_count() < gpus:
                    i = j + 1
                    break
                both &= open_[j]
                if both.bit_count() < gpus:  # enough of them, but not the same ones all the time
                    i += 1
                    break
                j += 1
                if j == len(at) or at[j] >= end:
                    return start
            if i == len(at):
                return None
            start = at[i]

    def whole(self, start: datetime, end: datetime) -> list[int]:
        """The accelerators that are wholly free throughout `[start, end)`."""
        free = ~0
        for whole in self._whole[self._part(start, end)]:
            free &= whole
        return [device for device in range(len(self._gpu_milli[0])) if free >> device & 1]

    def least(self, start: datetime, end: datetime) -> Free:
        """The least that is free at any time of `[start, end)`."""
        part = self._part(start, end)
        gpus = [min(milli) for milli in zip(*self._gpu_milli[part], strict=True)]
        return Free(min(self._cpu_milli[part]), min(self._memory_mib[part]), gpus)

    def sharers(self, start: datetime, end: datetime) -> Iterable[tuple[int, FirmId]]:
        """Accelerators of which somebody has a share at some time of `[start, end)`, each with the firm."""
        return ((device, firm) for begins, ends, device, firm in self._shares if begins < end and ends > start)

    def _open_to(self, gpu_milli: int, firm: FirmId) -> list[int]:
        """For each stretch a bit for each accelerator of which the firm may have such a share."""
        open_ = [_at_least(gpu_milli, free) for free in self._gpu_milli]
        for start, end, device, of in self._shares:
            if of != firm:
                for i in range(*self._part(start, end).indices(len(open_))):
                    open_[i] &= ~(1 << device)
        return open_

    def _part(self, start: datetime, end: datetime) -> slice:
        """The stretches that `[start, end)` meets, at least the one that `start` lies in."""
        first = max(bisect_right(self._at, start) - 1, 0)
        return slice(first, max(bisect_left(self._at, end), first + 1))

    def _span(self, start: datetime, end: datetime) -> range:
        """The stretches that make up `[start, end)`, cut so that they do."""
        first = self._cut(max(start, self._at[0]))
        return range(first, len(self._at) if end >= FOREVER else self._cut(end))

    def _cut(self, moment: datetime) -> int:
        """The stretch that begins at this moment; one is cut in two if none does."""
        i = bisect_left(self._at, moment)
        if i == len(self._at) or self._at[i] != moment:
            self._at.insert(i, moment)
            for numbers in (self._cpu_milli, self._memory_mib, self._whole):
                numbers.insert(i, numbers[i - 1])
            self._gpu_milli.insert(i, self._gpu_milli[i - 1])
        return i

    def _change(self, i: int, use: Use, sign: int) -> None:
        """In one stretch there is so much more or less."""
        self._cpu_milli[i] += sign * use.shape.cpu_milli
        self._memory_mib[i] += sign * use.shape.memory_mib
        if use.devices:
            gpus = list(self._gpu_milli[i])
            for device in use.devices:
                gpus[device] += sign * use.shape.gpu_milli
            self._gpu_milli[i] = tuple(gpus)
            self._whole[i] = _at_least(MILLI_PER_GPU, gpus)


def _share(use: Use) -> _Share:
    return use.start, use.end, use.devices[0], use.firm


def _at_least(milli: int, gpus: Iterable[int]) -> int:
    """A bit for each accelerator with so many thousandths."""
    return sum(1 << device for device, free in enumerate(gpus) if free >= milli)
