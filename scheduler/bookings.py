"""The room of one pool over time: what runs gives back when it ends, what is planned takes from its start on.

Nodes on which nothing is planned only get emptier, so the occupancy's sweep says for good when one has room. The few
others, those planned on in this cycle or with work that has been told to stop, are looked at use by use.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias

import numpy as np

from kit.units import MILLI_PER_GPU
from quotas.vocabulary import FirmId
from scheduler.occupancy import FREE_NOW, NEVER, Occupancy, Use, Wish, instant, microseconds, wish_of
from scheduler.placement import Ask, could_hold
from scheduler.rooms import NOBODY, Ground, Ints, Room, workers_of
from scheduler.snapshot import Running
from scheduler.usage import FOREVER
from scheduler.vocabulary import Placement, Shape

_SEVERAL = -1  # firms, one after the other: no share fits beside them
_TimedWish: TypeAlias = tuple[Wish, int | None]
"""What one worker asks of a node, and for how many seconds."""


@dataclass(frozen=True, slots=True)
class Horizon:
    """When running work is expected to end, seen from `now`: what is late soon, what was told to stop at once."""

    now: datetime
    late: datetime

    @property
    def soon(self) -> datetime:
        """The first moment that is not now."""
        return self.now + timedelta(seconds=1)

    def end(self, end: datetime, *, may_overrun: bool) -> datetime:
        """The moment at which work is expected to be gone."""
        return max(end, self.late if may_overrun else self.soon)

    def end_of(self, work: Running) -> datetime:
        """The moment at which running work is expected to be gone."""
        return FOREVER if work.ends_at is None else self.end(work.ends_at, may_overrun=not work.is_stopping)


@dataclass(frozen=True, slots=True)
class _Steps:
    """A node from each of its moments to the next: free CPU and memory, and a bit for each wholly free accelerator."""

    at: list[datetime]
    cpu_milli: list[int]
    memory_mib: list[int]
    gpus: list[int]

    def hold(self, shape: Shape, start: datetime, end: datetime) -> bool:
        """Whether the same accelerators, CPU and memory are free throughout `[start, end)`."""
        i = max(bisect_right(self.at, start) - 1, 0)
        free = self.gpus[i]
        while i < len(self.at) and self.at[i] < end:
            free &= self.gpus[i]
            if free.bit_count() < shape.gpus or self.cpu_milli[i] < shape.cpu_milli:
                return False
            if self.memory_mib[i] < shape.memory_mib:
                return False
            i += 1
        return True


class Bookings:
    """An occupancy and what a cycle plans on it. Mutable, made anew for one decision and gone with it."""

    def __init__(self, base: Occupancy, horizon: Horizon) -> None:
        self.ground: Ground = base.ground
        self._base, self._horizon, self._now = base, horizon, horizon.now
        self.room_now = base.room.copy()
        self._uses: dict[int, list[Use]] = {}  # of the nodes that were looked at, with their ends as seen from now
        self._apart: set[int] = set(base.stopping)  # nodes that do not only get emptier
        self._is_apart = np.zeros(len(base.ground.ids), dtype=bool)
        self._is_apart[list(base.stopping)] = True
        self._started: dict[int, list[Use]] = {}  # what this cycle starts now, by node
        self._sweeps: dict[Wish, Ints] = {}  # of nodes that only get emptier; the others never have room here
        self._holds: dict[Ask, bool] = {}  # at this instant
        self._free: int | None = None
        self._steps: dict[int, _Steps] = {}
        self._first: dict[_TimedWish, dict[int, tuple[datetime, datetime | None]]] = {}

    def add(self, start: datetime, end: datetime, placement: Placement, firm: FirmId) -> None:
        """The gang lies there in `[start, end)`."""
        for node, devices in workers_of(placement, self.ground):
            use = Use(start, end, devices, placement.shape, firm)
            self._on(node).append(use)
            self._forget(node)
            if start <= self._now:
                self.room_now.take(node, devices, placement.shape, firm)
                self._started.setdefault(node, []).append(use)
                self._holds, self._free = {}, None
                self._sweep_again(node)
            else:
                self._set_apart(node)

    def end(self, placement: Placement, firm: FirmId, before: datetime, after: datetime) -> None:
        """The gang that was to lie there until `before` does until `after`."""
        for node, devices in workers_of(placement, self.ground):
            uses = self._on(node)
            told = before, devices, placement.shape, firm
            i = next(i for i, use in enumerate(uses) if (use.end, use.devices, use.shape, use.firm) == told)
            uses[i] = replace(uses[i], end=after)
            self._forget(node)
            self._set_apart(node)

    def earliest(self, ask: Ask, seconds: int | None, not_before: datetime) -> tuple[datetime, int] | None:
        """When a node first has room for one worker throughout its time, not before an instant, and which node."""
        assert ask.workers == 1 and ask.topology is None, "gangs look at all nodes together"
        first = self._sweep(ask)
        at_best = max(int(first.min(initial=NEVER)), microseconds(not_before))
        best, found = FOREVER if at_best >= NEVER else instant(at_best), None
        for node, at in self._firsts_apart(ask, seconds, not_before):
            if at is not None and (at < best or (at == best and at > self._now)):
                best, found = at, node
        if best >= FOREVER:
            return None
        return best, _tightest(first, at_best) if found is None else found

    def holds_now(self, ask: Ask) -> bool:
        """Whether a gang has room at this instant, the future left out."""
        ask = replace(ask, firm=ask.firm if ask.shape.is_share else FirmId(""), model=None, files=())
        if ask not in self._holds:
            self._holds[ask] = could_hold(self.room_now, ask)
        return self._holds[ask]

    @property
    def free_milli(self) -> int:
        """Thousandths that are free at this instant."""
        if self._free is None:
            self._free = int(self.room_now.gpu_milli.sum())
        return self._free

    def on(self, node: int, start: datetime, end: datetime) -> Room:
        """What is free of one node throughout `[start, end)`, as a room of that node alone."""
        room = self.ground.empty_of(node)
        self._look(room, node, start, end, at=0)
        return room

    def room(self, ask: Ask, start: datetime, seconds: int | None) -> Room | None:
        """What is free for a gang throughout its time; None where not even one worker of it has room.

        Nodes apart that have no room for a worker are shown as full.
        """
        fits = [node for node, at in self._firsts_apart(ask, seconds, start) if at == start]
        if not fits and int(self._sweep(ask).min(initial=NEVER)) > microseconds(start):
            return None
        room = self._from(start)
        shut = sorted(self._apart.difference(fits))
        room.cpu_milli[shut], room.memory_mib[shut], room.gpu_milli[shut] = 0, 0, 0
        for node in fits:
            self._look(room, node, start, _end(start, seconds))
        return room

    def may_hold(self, ask: Ask, start: datetime) -> bool:
        """Whether it might fit from `start` on, taking nodes apart for empty; once it might, it might for ever."""
        room, all_of, apart = self._from(start), self.ground.rooms, sorted(self._apart)
        room.cpu_milli[apart], room.memory_mib[apart] = all_of.cpu_milli[apart], all_of.memory_mib[apart]
        room.gpu_milli[apart], room.firm[apart] = all_of.gpu_milli[apart], NOBODY
        return could_hold(room, ask)

    def moments(self, after: datetime) -> Iterator[datetime]:
        """When something comes back after an instant; never is not a moment."""
        late = microseconds(self._horizon.late)
        ends = np.unique(np.maximum(self._base.by_end().at, late))
        first = int(np.searchsorted(ends, microseconds(after), side="right"))
        yield from (instant(int(us)) for us in ends[first:] if us < NEVER)
        yield from (use.end for uses in self._uses.values() for use in uses if after < use.end < FOREVER)
        for node in self._base.stopping:
            yield from (use.end for use in self._on(node) if after < use.end < FOREVER)

    def _on(self, node: int) -> list[Use]:
        """What lies on a node, and what is planned there."""
        if node not in self._uses:
            end = self._horizon.end
            self._uses[node] = [
                replace(use, end=end(use.end, may_overrun=use.may_overrun)) for use in self._base.uses[node]
            ]
        return self._uses[node]

    def _set_apart(self, node: int) -> None:
        self._apart.add(node)
        self._is_apart[node] = True
        for first in self._sweeps.values():
            first[node] = NEVER

    def _forget(self, node: int) -> None:
        self._steps.pop(node, None)
        for first in self._first.values():
            first.pop(node, None)

    def _sweep(self, ask: Ask) -> Ints:
        """When each node that only gets emptier has room for one worker, in microseconds [N]."""
        wish = wish_of(ask)
        if wish not in self._sweeps:
            first, late = self._base.sweep(ask), microseconds(self._horizon.late)
            seen = np.where(first == FREE_NOW, microseconds(self._now), np.maximum(first, late))
            seen[self._is_apart] = NEVER
            self._sweeps[wish] = seen
            for node in self._started:
                self._sweep_one(wish, node)
        return self._sweeps[wish]

    def _sweep_again(self, node: int) -> None:
        """Something begins on a node now: what was swept of it is swept again, of it alone."""
        for wish in self._sweeps:
            self._sweep_one(wish, node)

    def _sweep_one(self, wish: Wish, node: int) -> None:
        if not self._is_apart[node]:
            shape, firm = wish
            at = self._earliest_on(node, Ask(firm or FirmId(""), shape), None, self._now)
            self._sweeps[wish][node] = NEVER if at is None else microseconds(at)

    def _firsts_apart(
        self, ask: Ask, seconds: int | None, not_before: datetime
    ) -> Iterator[tuple[int, datetime | None]]:
        """When each node apart first has room for one worker throughout its time, not before an instant."""
        firsts = self._first.setdefault((wish_of(ask), seconds), {})
        for node in sorted(self._apart):
            known = firsts.get(node)
            if known is not None and known[0] <= not_before and (known[1] is None or known[1] >= not_before):
                yield node, known[1]
            else:
                yield node, self._earliest_on(node, ask, seconds, not_before)

    def _earliest_on(self, node: int, ask: Ask, seconds: int | None, not_before: datetime) -> datetime | None:
        firsts = self._first.setdefault((wish_of(ask), seconds), {})
        known = firsts.get(node)
        if known is not None and known[0] <= not_before and (known[1] is None or known[1] >= not_before):
            return known[1]
        found = self._first_on(node, ask, seconds, not_before)
        firsts[node] = not_before, found
        return found

    def _first_on(self, node: int, ask: Ask, seconds: int | None, not_before: datetime) -> datetime | None:
        moments = sorted({not_before, *(use.end for use in self._on(node) if not_before < use.end < FOREVER)})
        steps = None if ask.shape.is_share else self._steps_of(node)
        one = replace(ask, workers=1, topology=None) if ask.workers > 1 or ask.topology else ask
        for moment in moments:
            until = _end(moment, seconds)
            fits = (
                could_hold(self.on(node, moment, until), one) if steps is None else steps.hold(ask.shape, moment, until)
            )
            if fits:
                return moment
        return None

    def _steps_of(self, node: int) -> _Steps:
        """What is wholly free of a node, from each start and end on it to the next."""
        if node not in self._steps:
            uses, size = self._on(node), self.ground.rooms
            at = sorted({self._now, *(t for use in uses for t in (use.start, use.end) if self._now < t < FOREVER)})
            whole = sum(1 << i for i, milli in enumerate(size.gpu_milli[node].tolist()) if milli >= MILLI_PER_GPU)
            cpu, memory = [int(size.cpu_milli[node])] * len(at), [int(size.memory_mib[node])] * len(at)
            gpus = [whole] * len(at)
            for use in uses:
                taken = sum(1 << device for device in use.devices)
                for i in range(bisect_left(at, max(use.start, self._now)), bisect_left(at, use.end)):
                    cpu[i] -= use.shape.cpu_milli
                    memory[i] -= use.shape.memory_mib
                    gpus[i] &= ~taken
            self._steps[node] = _Steps(at, cpu, memory, gpus)
        return self._steps[node]

    def _from(self, start: datetime) -> Room:
        """What is free at `start`, nodes apart aside; a room to be changed."""
        if start < self._horizon.late and not any(use.end <= start for use in self._started_uses()):
            return self.room_now.copy()
        room = self._base.at(microseconds(start)) if start >= self._horizon.late else self._base.room.copy()
        for node, uses in self._started.items():
            for use in uses:
                if use.end > start:
                    room.take(node, use.devices, use.shape, use.firm)
        return room

    def _started_uses(self) -> Iterable[Use]:
        return (use for uses in self._started.values() for use in uses)

    def _look(self, room: Room, node: int, start: datetime, end: datetime, *, at: int | None = None) -> None:
        """The least that is free of one node at any time of `[start, end)`, and whose its shared accelerators are.

        Written to row `at` of the room, the node's own when not given.
        """
        row = node if at is None else at
        uses = [use for use in self._on(node) if use.start < end and use.end > start]
        size = self.ground.rooms
        cpu, memory, gpus = int(size.cpu_milli[node]), int(size.memory_mib[node]), size.gpu_milli[node].copy()
        for moment in {start, *(use.start for use in uses if use.start > start)}:
            there = [use for use in uses if use.start <= moment < use.end]
            cpu = min(cpu, int(size.cpu_milli[node]) - sum(use.shape.cpu_milli for use in there))
            memory = min(memory, int(size.memory_mib[node]) - sum(use.shape.memory_mib for use in there))
            taken = np.zeros_like(gpus)
            for use in there:
                taken[list(use.devices)] += use.shape.gpu_milli
            gpus = np.minimum(gpus, size.gpu_milli[node] - taken)
        room.cpu_milli[row], room.memory_mib[row], room.gpu_milli[row] = cpu, memory, gpus
        room.firm[row] = NOBODY
        for use in uses:
            for device in use.devices:
                number = self.ground.number(use.firm)
                room.firm[row, device] = number if room.firm[row, device] in (NOBODY, number) else _SEVERAL


def _tightest(first: Ints, at: int) -> int:
    """Of the nodes that have room by then, one that got it last: what has been free for longer stays whole."""
    return int(np.argmax(np.where(first <= at, first, -1)))


def _end(start: datetime, seconds: int | None) -> datetime:
    return FOREVER if seconds is None else start + timedelta(seconds=seconds)
