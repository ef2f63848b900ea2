"""The room of one pool over time: what runs gives back when it ends, what is planned takes from its start on.

Nodes on which nothing is planned only get emptier, so for them the room at an instant is the room for good, and one
sum over the ends says what it is. The few others are looked at use by use.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from quotas.vocabulary import FirmId
from scheduler.placement import Ask, could_hold
from scheduler.rooms import NOBODY, Ground, Ints, Room, workers_of
from scheduler.vocabulary import Placement, Shape

_SEVERAL = -1  # firms, one after the other: no share fits beside them
_NEVER = datetime.max.replace(tzinfo=UTC)


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


class Bookings:
    """Mutable, made anew for one decision and gone with it."""

    def __init__(self, ground: Ground, now: datetime) -> None:
        self.ground = ground
        self._now = now
        self._room = ground.empty()  # at this instant
        self._uses: list[list[_Use]] = [[] for _ in ground.ids]
        self._planned: set[int] = set()  # nodes on which something starts later, or whose work was told to end earlier
        self._ends: _Ends | None = None

    def add(self, start: datetime, end: datetime, placement: Placement, firm: FirmId) -> None:
        """The gang lies there in `[start, end)`."""
        for node, devices in workers_of(placement, self.ground):
            self._uses[node].append(_Use(start, end, devices, placement.shape, firm))
            if start <= self._now:
                self._room.take(node, devices, placement.shape, firm)
                self._ends = None
            else:
                self._planned.add(node)

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
            self._planned.add(node)

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

    def _look(self, room: Room, node: int, start: datetime, end: datetime) -> None:
        """The least that is free of one node at any time of `[start, end)`, and whose its shared accelerators are."""
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
        room.cpu_milli[node], room.memory_mib[node], room.gpu_milli[node] = cpu, memory, gpus
        room.firm[node] = NOBODY
        for use in uses:
            for device in use.devices:
                number = self.ground.number(use.firm)
                room.firm[node, device] = number if room.firm[node, device] in (NOBODY, number) else _SEVERAL


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, dtype=np.int64)
