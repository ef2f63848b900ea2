"""Running work of one pool by node: the room it leaves at this instant, and what comes back when it ends.

A value: `after` makes the next one and shares what did not change, so its cost follows what started and ended. Ends
are kept as expected. Work past its expected end is thought to end a moment from now; that moment moves with the clock,
so whoever looks (`bookings.py`) puts it in.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import numpy as np

from quotas.vocabulary import FirmId
from scheduler.placement import Ask, as_rooms, could_hold, slots
from scheduler.rooms import NOBODY, Ground, Ints, Room, Rooms, workers_of
from scheduler.snapshot import Running
from scheduler.stretches import FOREVER, Use
from scheduler.vocabulary import Shape

FREE_NOW, NEVER = 0, 1 << 62
"""When a node has room: at once, or at no known time; anything between is microseconds."""
ALWAYS = datetime.min.replace(tzinfo=UTC)
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_SWEEPS_AT_MOST = 64

Wish: TypeAlias = tuple[Shape, FirmId | None]
"""What one worker asks of a node: its shape, and its firm where it takes a share."""


def wish_of(ask: Ask) -> Wish:
    """What one worker of a gang asks of a node."""
    return ask.shape, ask.firm if ask.shape.is_share else None


def microseconds(at: datetime) -> int:
    """Since 1970; `NEVER` for the end of time."""
    return NEVER if at >= FOREVER else (at - _EPOCH) // _MICROSECOND


def instant(us: int) -> datetime:
    """The moment of so many microseconds."""
    return _EPOCH + timedelta(microseconds=us)


@dataclass(frozen=True, slots=True)
class _Ends:
    """What ends, by node and then by time [K]: when, and what comes back: CPU, memory, every accelerator [K, 2 + G]."""

    node: Ints
    at: Ints
    back: Ints

    def replaced(self, nodes: Collection[int], rows: "_Ends") -> "_Ends":
        """The same with other rows for these nodes."""
        stay = ~np.isin(self.node, np.fromiter(nodes, dtype=np.int64))
        node, at, back = self.node[stay], self.at[stay], self.back[stay]
        where = np.searchsorted(node, rows.node)
        return _Ends(
            np.insert(node, where, rows.node), np.insert(at, where, rows.at), np.insert(back, where, rows.back, axis=0)
        )


@dataclass(frozen=True, slots=True)
class After:
    """Every node's room after each of its ends, in their order [K], with the firms of accelerators [K, G]."""

    at: Ints
    node: Ints
    rooms: Rooms
    firm: Ints


class Occupancy:
    """What lies on a ground now. `room` and `uses` (by node) are to be looked at, not to be changed."""

    def __init__(
        self,
        ground: Ground,
        room: Room,
        uses: Sequence[tuple[Use, ...]],
        stopping: frozenset[int] = frozenset[int](),
        *,
        ends: _Ends | None = None,
        stale: frozenset[int] = frozenset[int](),
        sweeps: Mapping[Wish, Ints] | None = None,
        holds: dict[Ask, bool] | None = None,
    ) -> None:
        self.ground, self.room, self.uses = ground, room, uses
        self.stopping = stopping  # nodes on which something has been told to stop
        self._ends, self._stale = ends, stale  # `ends` is right but for the rows of `stale` nodes
        self._after: After | None = None
        self._sweeps = dict(sweeps or {})
        self._holds: dict[Ask, bool] = {} if holds is None else holds

    @classmethod
    def of(cls, ground: Ground, running: Iterable[Running]) -> "Occupancy":
        """This work on this ground, as far as its nodes are there."""
        room, uses = ground.empty(), [list[Use]() for _ in ground.ids]
        for work in running:
            for node, use in _uses_of(work, ground):
                uses[node].append(use)
                room.take(node, use.devices, use.shape, use.firm)
        stopping = frozenset(node for node, of in enumerate(uses) if any(not use.may_overrun for use in of))
        return cls(ground, room, [tuple(of) for of in uses], stopping)

    def after(self, gone: Iterable[Running], come: Iterable[Running]) -> "Occupancy":
        """The occupancy when this work has gone and that has come."""
        room, uses, changed = self.room.copy(), list(self.uses), set[int]()
        for work in gone:
            for node, use in _uses_of(work, self.ground):
                of = list(uses[node])
                of.remove(use)
                uses[node] = tuple(of)
                room.give(node, use.devices, use.shape)
                changed.add(node)
        for work in come:
            for node, use in _uses_of(work, self.ground):
                uses[node] = (*uses[node], use)
                room.take(node, use.devices, use.shape, use.firm)
                changed.add(node)
        stopping = {node for node in changed if any(not use.may_overrun for use in uses[node])}
        next_ = Occupancy(
            self.ground,
            room,
            uses,
            self.stopping - changed | stopping,
            ends=self._ends,
            stale=self._stale | changed,
            holds=self._holds,
        )
        if len(self._sweeps) <= _SWEEPS_AT_MOST and len(changed) <= max(8, len(uses) // 8):
            next_._sweeps = {wish: next_._swept_again(wish, first, changed) for wish, first in self._sweeps.items()}
        return next_

    def on(self, ground: Ground) -> "Occupancy":
        """The same on nodes that differ in nothing but what they keep."""
        room, ends, stale, sweeps = replace(self.room, ground=ground), self._ends, self._stale, self._sweeps
        return Occupancy(
            ground, room, self.uses, self.stopping, ends=ends, stale=stale, sweeps=sweeps, holds=self._holds
        )

    def holds_empty(self, ask: Ask) -> bool:
        """Whether a gang would fit if nothing else were there."""
        ask = replace(ask, firm=FirmId(""), model=None, files=())
        if ask not in self._holds:
            self._holds[ask] = could_hold(self.ground.empty(), ask)
        return self._holds[ask]

    def empty_but_for_uses(self, node: int) -> Room:
        """What is free of one node, counted anew, as a room of that node alone."""
        room = self.ground.empty_of(node)
        for use in self.uses[node]:
            room.take(0, use.devices, use.shape, use.firm)
        return room

    def sweep(self, ask: Ask) -> Ints:
        """When each node has room for one worker, as ends are expected: `FREE_NOW`, microseconds, `NEVER` [N]."""
        wish = wish_of(ask)
        if wish not in self._sweeps:
            self._sweeps[wish] = self._swept(wish)
        return self._sweeps[wish]

    def at(self, moment: int) -> Room:
        """What is free when all that was expected to end by then (microseconds) has; a room to be changed."""
        after, room = self.by_end(), self.room.copy()
        ended = np.bincount(after.node[after.at <= moment], minlength=len(self.ground.ids))
        nodes = np.flatnonzero(ended)
        last = np.searchsorted(after.node, nodes) + ended[nodes] - 1
        room.cpu_milli[nodes], room.memory_mib[nodes] = after.rooms.cpu_milli[last], after.rooms.memory_mib[last]
        room.gpu_milli[nodes], room.firm[nodes] = after.rooms.gpu_milli[last], after.firm[last]
        return room

    def by_end(self) -> After:
        """Every node's room after each of its ends."""
        if self._after is None:
            if self._ends is None:
                self._ends = self._rows(range(len(self.uses)))
            elif self._stale:
                self._ends = self._ends.replaced(self._stale, self._rows(sorted(self._stale)))
            self._stale = frozenset[int]()
            self._after = self._after_each(self._ends)
        return self._after

    def _rows(self, nodes: Iterable[int]) -> _Ends:
        rows = [
            (node, microseconds(use.end), use)
            for node in nodes
            for use in sorted(self.uses[node], key=lambda use: use.end)
        ]
        back = np.zeros((len(rows), 2 + self.room.gpu_milli.shape[1]), dtype=np.int64)
        for i, (_, _, use) in enumerate(rows):
            back[i, 0], back[i, 1] = use.shape.cpu_milli, use.shape.memory_mib
            for device in use.devices:
                back[i, 2 + device] += use.shape.gpu_milli
        return _Ends(_ints(node for node, _, _ in rows), _ints(at for _, at, _ in rows), back)

    def _after_each(self, ends: _Ends) -> After:
        """Sums of what comes back, node by node."""
        node, total = ends.node, np.cumsum(ends.back, axis=0)
        is_first = np.ones(len(node), dtype=bool)
        is_first[1:] = node[1:] != node[:-1]
        start = np.maximum.accumulate(np.where(is_first, np.arange(len(node)), 0))
        total -= (total - ends.back)[start]
        room = self.room
        gpus = room.gpu_milli[node] + total[:, 2:]
        firm = np.where(gpus >= self.ground.rooms.gpu_milli[node], NOBODY, room.firm[node])
        rooms = Rooms(room.cpu_milli[node] + total[:, 0], room.memory_mib[node] + total[:, 1], gpus)
        return After(ends.at, node, rooms, firm)

    def _swept(self, wish: Wish) -> Ints:
        shape, firm = wish
        after, first = self.by_end(), np.full(len(self.ground.ids), NEVER, dtype=np.int64)
        number = None if firm is None else self.ground.number(firm)
        usable = None if number is None else (after.firm == NOBODY) | (after.firm == number)
        later = slots(after.rooms, shape, usable) > 0
        np.minimum.at(first, after.node[later], after.at[later])
        usable = None if firm is None else self.room.usable(firm)
        first[slots(as_rooms(self.room), shape, usable) > 0] = FREE_NOW
        return first

    def _swept_again(self, wish: Wish, first: Ints, nodes: Iterable[int]) -> Ints:
        first = first.copy()
        for node in nodes:
            first[node] = self._first_on(node, wish)
        return first

    def _first_on(self, node: int, wish: Wish) -> int:
        """When one node has room for one worker."""
        shape, firm = wish
        room = self.room.of(node)
        ask = Ask(firm or FirmId(""), shape)
        if could_hold(room, ask):
            return FREE_NOW
        for use in sorted(self.uses[node], key=lambda use: use.end):
            room.cpu_milli[0] += use.shape.cpu_milli
            room.memory_mib[0] += use.shape.memory_mib
            room.gpu_milli[0, list(use.devices)] += use.shape.gpu_milli
            room.firm[0, room.gpu_milli[0] >= self.ground.rooms.gpu_milli[node]] = NOBODY
            if could_hold(room, ask):
                return microseconds(use.end)
        return NEVER


def _uses_of(work: Running, ground: Ground) -> Iterable[tuple[int, Use]]:
    """A use for each worker that lies on this ground."""
    end, shape = work.ends_at or FOREVER, work.placement.shape
    for node, devices in workers_of(work.placement, ground):
        yield node, Use(ALWAYS, end, devices, shape, work.firm_id, not work.is_stopping)


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, dtype=np.int64)
