"""The room of one pool over time: what runs gives back when it ends, what is planned takes from its start on.

Nodes on which nothing is planned only get emptier, so for them the room at an instant is the room for good, and one
sum over the ends says what it is. The few others are looked at use by use.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import numpy as np

from kit.units import MILLI_PER_GPU
from quotas.vocabulary import FirmId
from scheduler.placement import Ask, as_rooms, could_hold, slots
from scheduler.rooms import NOBODY, Flags, Ground, Ints, Room, Rooms, workers_of
from scheduler.vocabulary import Placement, Shape

_SEVERAL = -1  # firms, one after the other: no share fits beside them
_NEVER = datetime.max.replace(tzinfo=UTC)
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_NEVER_US = 1 << 62


_Wish: TypeAlias = tuple[Shape, FirmId | None, int | None]
"""What one worker asks of a node: its shape, its firm where it shares, and for how many seconds."""


@dataclass(frozen=True, slots=True)
class _Use:
    """One worker on a node in `[start, end)`."""

    start: datetime
    end: datetime
    devices: tuple[int, ...]
    shape: Shape
    firm: FirmId


@dataclass(frozen=True, slots=True)
class _Ends:
    """What comes back, in time order: of workers [K], and of accelerators [D] as places in a flat [N·G]."""

    at: list[datetime]
    node: Ints
    cpu_milli: Ints
    memory_mib: Ints
    device_at: list[datetime]
    device: Ints
    gpu_milli: Ints


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


@dataclass(frozen=True, slots=True)
class _After:
    """Rooms [K] of nodes after each end of what lies there now, with the firms of accelerators [K, G]."""

    at: Ints  # microseconds
    node: Ints
    rooms: Rooms
    firm: Ints

    def usable(self, number: int) -> Flags:
        """Which accelerators a firm may take a share of."""
        return (self.firm == NOBODY) | (self.firm == number)


def _after(room: Room, rows: Sequence[tuple[int, _Use]]) -> _After:
    """Sums of what comes back, node by node; `rows` are in the order of nodes, then of ends."""
    node = _ints(node for node, _ in rows)
    width = room.gpu_milli.shape[1]
    back = np.zeros((len(rows), 2 + width), dtype=np.int64)
    for i, (_, use) in enumerate(rows):
        back[i, 0], back[i, 1] = use.shape.cpu_milli, use.shape.memory_mib
        for device in use.devices:
            back[i, 2 + device] += use.shape.gpu_milli
    total = np.cumsum(back, axis=0)
    is_first = np.ones(len(rows), dtype=bool)
    is_first[1:] = node[1:] != node[:-1]
    start = np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))
    total -= (total - back)[start]
    gpus = room.gpu_milli[node] + total[:, 2:]
    firm = np.where(gpus >= room.ground.rooms.gpu_milli[node], NOBODY, room.firm[node])
    at = _ints(min(_us(use.end), _NEVER_US) for _, use in rows)
    rooms = Rooms(room.cpu_milli[node] + total[:, 0], room.memory_mib[node] + total[:, 1], gpus)
    return _After(at, node, rooms, firm)


class Bookings:
    """Mutable, made anew for one decision and gone with it."""

    def __init__(self, ground: Ground, now: datetime) -> None:
        self.ground = ground
        self._now = now
        self._room = ground.empty()  # at this instant
        self._uses: list[list[_Use]] = [[] for _ in ground.ids]
        self._planned: set[int] = set()  # nodes on which something starts later, or whose work was told to end earlier
        self._is_planned = np.zeros(len(ground.ids), dtype=bool)
        self._ends: _Ends | None = None
        self._after: _After | None = None
        self._sweeps: dict[tuple[Shape, FirmId | None], Ints] = {}
        self._steps: dict[int, _Steps] = {}
        self._on_planned: dict[int, dict[_Wish, tuple[datetime, datetime | None]]] = {}

    def add(self, start: datetime, end: datetime, placement: Placement, firm: FirmId) -> None:
        """The gang lies there in `[start, end)`."""
        for node, devices in workers_of(placement, self.ground):
            self._uses[node].append(_Use(start, end, devices, placement.shape, firm))
            self._forget(node)
            if start <= self._now:
                self._room.take(node, devices, placement.shape, firm)
                self._changed(node)
            else:
                self._plan(node)

    def _plan(self, node: int) -> None:
        self._planned.add(node)
        self._is_planned[node] = True

    def _forget(self, node: int) -> None:
        self._on_planned.pop(node, None)
        self._steps.pop(node, None)

    def end(self, placement: Placement, firm: FirmId, before: datetime, after: datetime) -> None:
        """The gang that was to lie there until `before` does until `after`."""
        for node, devices in workers_of(placement, self.ground):
            uses = self._uses[node]
            i = next(
                i
                for i, use in enumerate(uses)
                if (use.end, use.devices, use.shape, use.firm) == (before, devices, placement.shape, firm)
            )
            use = uses[i]
            uses[i] = _Use(use.start, after, devices, use.shape, firm)
            self._forget(node)
            self._plan(node)

    def earliest(self, ask: Ask, seconds: int | None, not_before: datetime) -> tuple[datetime, int] | None:
        """When a node first has room for one worker throughout its time, not before an instant, and which node.

        Nodes on which nothing is planned are answered by one sweep for each shape; planned ones by their own uses,
        remembered until something is planned there again.
        """
        assert ask.workers == 1 and ask.topology is None, "gangs look at all nodes together"
        first = self._sweep(ask)
        open_ = np.where(self._is_planned, _NEVER_US, first)
        best = max(int(open_.min(initial=_NEVER_US)), _us(not_before))
        found = None if best >= _NEVER_US else self._tightest(open_, best)
        for node in sorted(self._planned):
            at = self._earliest_on(node, ask, seconds, not_before)
            if at is not None and (_us(at) < best or (_us(at) == best and at > self._now and found is not None)):
                best, found = _us(at), node
        return None if found is None else (_instant(best), found)

    def _tightest(self, first: Ints, at: int) -> int:
        """Of the nodes that have room by then, one that got it last: what has been free for longer stays whole."""
        return int(np.argmax(np.where(first <= at, first, -1)))

    def on(self, node: int, start: datetime, end: datetime) -> Room:
        """What is free of one node throughout `[start, end)`, as a room of that node alone."""
        room = self.ground.empty_of(node)
        self._look(room, node, start, end, at=0)
        return room

    def _earliest_on(self, node: int, ask: Ask, seconds: int | None, not_before: datetime) -> datetime | None:
        key = ask.shape, ask.firm if ask.shape.is_share else None, seconds
        known = self._on_planned.setdefault(node, {}).get(key)
        if known is not None and known[0] <= not_before and (known[1] is None or known[1] >= not_before):
            return known[1]
        found = self._first_on(node, ask, seconds, not_before)
        self._on_planned[node][key] = not_before, found
        return found

    def _first_on(self, node: int, ask: Ask, seconds: int | None, not_before: datetime) -> datetime | None:
        moments = sorted({not_before, *(use.end for use in self._uses[node] if not_before < use.end < _NEVER)})
        steps = None if ask.shape.is_share else self._steps_of(node)
        for moment in moments:
            until = _NEVER if seconds is None else moment + timedelta(seconds=seconds)
            fits = (
                could_hold(self.on(node, moment, until), ask) if steps is None else steps.hold(ask.shape, moment, until)
            )
            if fits:
                return moment
        return None

    def _steps_of(self, node: int) -> "_Steps":
        """What is wholly free of a node, from each start and end on it to the next."""
        if node not in self._steps:
            uses, size = self._uses[node], self.ground.rooms
            at = sorted({self._now, *(t for use in uses for t in (use.start, use.end) if self._now < t < _NEVER)})
            whole = sum(1 << i for i, milli in enumerate(size.gpu_milli[node]) if milli >= MILLI_PER_GPU)
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

    def _sweep(self, ask: Ask) -> Ints:
        """When each node has room for one worker, were nothing planned: microseconds; never is `_NEVER_US`."""
        key = ask.shape, ask.firm if ask.shape.is_share else None
        if key not in self._sweeps:
            self._sweeps[key] = self._swept(ask)
        return self._sweeps[key]

    def _swept(self, ask: Ask) -> Ints:
        table = self._table()
        first = np.full(len(self.ground.ids), _NEVER_US, dtype=np.int64)
        usable = table.usable(self.ground.number(ask.firm)) if ask.shape.is_share else None
        later = slots(table.rooms, ask.shape, usable) > 0
        np.minimum.at(first, table.node[later], table.at[later])
        usable = self._room.usable(ask.firm) if ask.shape.is_share else None
        first[slots(as_rooms(self._room), ask.shape, usable) > 0] = _us(self._now)
        return first

    def _table(self) -> "_After":
        """Every node's room after each of its ends."""
        if self._after is None:
            rows = [(node, use) for node, uses in enumerate(self._uses) for use in uses if use.start <= self._now]
            rows.sort(key=lambda row: (row[0], row[1].end))
            self._after = _after(self._room, rows)
        return self._after

    def _changed(self, node: int) -> None:
        """Something began on a node now: what was swept of it is swept again, of it alone."""
        self._ends = self._after = None
        for (shape, firm), first in self._sweeps.items():
            ask = Ask(FirmId("") if firm is None else firm, shape)
            at = self._earliest_on(node, ask, None, self._now)
            first[node] = _NEVER_US if at is None else _us(at)

    def room(self, start: datetime, end: datetime) -> Room:
        """What is free throughout `[start, end)`."""
        room = self._from(start)
        for node in self._planned:
            self._look(room, node, start, end)
        return room

    def may_hold(self, ask: Ask, start: datetime) -> bool:
        """Whether it might fit from `start` on, taking planned nodes for empty; once it might, it might for ever."""
        room, all_of = self._from(start), self.ground.rooms
        planned = sorted(self._planned)
        room.cpu_milli[planned], room.memory_mib[planned] = all_of.cpu_milli[planned], all_of.memory_mib[planned]
        room.gpu_milli[planned], room.firm[planned] = all_of.gpu_milli[planned], NOBODY
        return could_hold(room, ask)

    def moments(self, after: datetime) -> Iterator[datetime]:
        """When something comes back after an instant; never is not a moment."""
        return (use.end for uses in self._uses for use in uses if after < use.end < _NEVER)

    def _from(self, start: datetime) -> Room:
        """What is free at `start`, were nothing planned."""
        room = self._room.copy()
        if start <= self._now:
            return room
        ends = self._ends = self._ends or self._sorted()
        k, d = bisect_right(ends.at, start), bisect_right(ends.device_at, start)
        np.add.at(room.cpu_milli, ends.node[:k], ends.cpu_milli[:k])
        np.add.at(room.memory_mib, ends.node[:k], ends.memory_mib[:k])
        np.add.at(room.gpu_milli.reshape(-1), ends.device[:d], ends.gpu_milli[:d])
        room.firm[room.gpu_milli >= self.ground.rooms.gpu_milli] = NOBODY
        return room

    def _sorted(self) -> _Ends:
        width = self.ground.rooms.gpu_milli.shape[1]
        now = self._now
        rows = [(use.end, node, use) for node, uses in enumerate(self._uses) for use in uses if use.start <= now]
        rows.sort(key=lambda row: row[0])
        devices = [
            (end, node * width + device, use.shape.gpu_milli) for end, node, use in rows for device in use.devices
        ]
        return _Ends(
            [end for end, _, _ in rows],
            _ints(node for _, node, _ in rows),
            _ints(use.shape.cpu_milli for _, _, use in rows),
            _ints(use.shape.memory_mib for _, _, use in rows),
            [end for end, _, _ in devices],
            _ints(place for _, place, _ in devices),
            _ints(milli for _, _, milli in devices),
        )

    def _look(self, room: Room, node: int, start: datetime, end: datetime, *, at: int | None = None) -> None:
        """The least that is free of one node at any time of `[start, end)`, and whose its shared accelerators are.

        Written to row `at` of the room, the node's own when not given.
        """
        row = node if at is None else at
        uses = [use for use in self._uses[node] if use.start < end and use.end > start]
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


def _us(at: datetime) -> int:
    return _NEVER_US if at >= _NEVER else (at - _EPOCH) // _MICROSECOND


def _instant(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, dtype=np.int64)
