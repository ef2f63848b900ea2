"""The room of one pool over time: what runs gives back when it ends, what is planned takes from its start on.

Nodes on which nothing is planned only get emptier, so the occupancy's sweep says for good when one has room. The few
others, those planned on in this cycle or with work that has been told to stop, are looked at use by use.
"""

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple, TypeAlias

import numpy as np

from quotas.vocabulary import FirmId
from scheduler.occupancy import ALWAYS, FREE_NOW, NEVER, Occupancy, Wish, instant, microseconds, wish_of
from scheduler.placement import Ask, could_hold
from scheduler.rooms import NOBODY, Ground, Ints, Room, workers_of
from scheduler.snapshot import Running
from scheduler.stretches import FOREVER, Free, Stretches, Use
from scheduler.vocabulary import Placement

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


class Bookings:
    """An occupancy and what a cycle plans on it. Mutable, made anew for one decision and gone with it."""

    def __init__(self, base: Occupancy, horizon: Horizon) -> None:
        self.ground: Ground = base.ground
        self._base, self._horizon, self._now = base, horizon, horizon.now
        self.room_now = base.room.copy()
        self._nodes: dict[int, Stretches] = {}  # those that were looked at
        self._apart: list[int] = sorted(base.stopping)  # nodes that do not only get emptier
        self._is_apart = np.zeros(len(base.ground.ids), dtype=bool)
        self._is_apart[self._apart] = True
        self._ends: set[datetime] = set()  # of what is planned, and on nodes apart
        self._started: dict[int, list[Use]] = {}  # what this cycle starts now, by node
        self._first_end = FOREVER  # of those
        self._sweeps: dict[Wish, Ints] = {}  # of nodes that only get emptier; the others never have room here
        self._holds: dict[Ask, bool] = {}  # at this instant
        self._free: int | None = None
        self._first: dict[_TimedWish, dict[int, _First]] = {}
        self._plans: dict[int, int] = {}  # how often a node has been planned on
        for node in base.stopping:
            self._ends.update(use.end for use in self._running_on(node))

    def add(self, start: datetime, end: datetime, placement: Placement, firm: FirmId) -> None:
        """The gang lies there in `[start, end)`."""
        self._ends.add(end)
        for node, devices in workers_of(placement, self.ground):
            use = Use(start, end, devices, placement.shape, firm)
            self._on(node).take(use)
            self._plans[node] = self._plans.get(node, 0) + 1
            if start <= self._now:
                self.room_now.take(node, devices, placement.shape, firm)
                self._started.setdefault(node, []).append(use)
                self._first_end = min(self._first_end, end)
                self._holds, self._free = {}, None
                self._sweep_again(node)
            else:
                self._set_apart(node)

    def end(self, placement: Placement, firm: FirmId, before: datetime, after: datetime) -> None:
        """The gang that was to lie there until `before` does until `after`."""
        self._ends.add(after)
        for node, devices in workers_of(placement, self.ground):
            self._on(node).end(Use(ALWAYS, before, devices, placement.shape, firm), after)
            for first in self._first.values():
                first.pop(node, None)
            self._set_apart(node)

    def earliest(self, ask: Ask, seconds: int | None, not_before: datetime) -> tuple[datetime, int] | None:
        """When a node first has room for one worker throughout its time, not before an instant, and which node."""
        assert ask.workers == 1 and ask.topology is None, "gangs look at all nodes together"
        first, us = self._sweep(ask), microseconds(not_before)
        node = int(first.argmin()) if len(first) else 0
        at_best = max(int(first[node]), us) if len(first) else NEVER
        best, found = FOREVER if at_best >= NEVER else instant(at_best), None
        for apart, at in self._firsts_apart(ask, seconds, not_before):
            if at < best or (at == best and at > self._now):
                best, found = at, apart
        if best >= FOREVER:
            return None
        if found is None:
            found = node if at_best > us else _tightest(first, us)
        return best, found

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

    def whole_on(self, node: int, start: datetime, end: datetime) -> list[int]:
        """The accelerators of one node that are wholly free throughout `[start, end)`."""
        return self._on(node).whole(start, end)

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
        shut = sorted(set(self._apart).difference(fits))
        room.cpu_milli[shut], room.memory_mib[shut], room.gpu_milli[shut] = 0, 0, 0
        for node in fits:
            self._look(room, node, start, _end(start, seconds))
        return room

    def may_hold(self, ask: Ask, start: datetime) -> bool:
        """Whether it might fit from `start` on, taking nodes apart for empty; once it might, it might for ever."""
        room, all_of, apart = self._from(start), self.ground.rooms, self._apart
        room.cpu_milli[apart], room.memory_mib[apart] = all_of.cpu_milli[apart], all_of.memory_mib[apart]
        room.gpu_milli[apart], room.firm[apart] = all_of.gpu_milli[apart], NOBODY
        return could_hold(room, ask)

    def moments(self, after: datetime) -> Iterator[datetime]:
        """When something comes back after an instant; never is not a moment."""
        late = microseconds(self._horizon.late)
        ends = np.unique(np.maximum(self._base.by_end().at, late))
        first = int(np.searchsorted(ends, microseconds(after), side="right"))
        yield from (instant(int(us)) for us in ends[first:] if us < NEVER)
        yield from (end for end in self._ends if after < end < FOREVER)

    def _on(self, node: int) -> Stretches:
        """What is free of a node over time, with what is planned there."""
        if node not in self._nodes:
            size = self.ground.rooms
            empty = Free(int(size.cpu_milli[node]), int(size.memory_mib[node]), size.gpu_milli[node].tolist())
            self._nodes[node] = Stretches(empty, self._running_on(node), self._now)
        return self._nodes[node]

    def _running_on(self, node: int) -> list[Use]:
        """What lies on a node, with its ends as seen from now."""
        end = self._horizon.end
        ends = [end(use.end, may_overrun=use.may_overrun) for use in self._base.uses[node]]
        both = zip(self._base.uses[node], ends, strict=True)
        return [use if use.end == at else replace(use, end=at) for use, at in both]

    def _set_apart(self, node: int) -> None:
        if not self._is_apart[node]:
            insort(self._apart, node)
            self._is_apart[node] = True
            for first in self._sweeps.values():
                first[node] = NEVER

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
            at = self._on(node).first(shape, firm or FirmId(""), None, self._now)
            self._sweeps[wish][node] = NEVER if at is None else microseconds(at)

    def _firsts_apart(self, ask: Ask, seconds: int | None, not_before: datetime) -> list[tuple[int, datetime]]:
        """When each node apart first has room for one worker throughout its time, not before an instant."""
        known_of, found_of = self._first.setdefault((wish_of(ask), seconds), {}), list[tuple[int, datetime]]()
        for node in self._apart:
            known = known_of.get(node)
            if known is None or known.plans != self._plans.get(node, 0) or not known.holds(not_before):
                known = known_of[node] = self._first_on(node, ask, seconds, not_before, known)
            if known.found < FOREVER:
                found_of.append((node, known.found))
        return found_of

    def _first_on(
        self, node: int, ask: Ask, seconds: int | None, not_before: datetime, known: "_First | None"
    ) -> "_First":
        """Plans only take room: what was found of the node before is not too late."""
        asked, start = not_before, not_before
        if known is not None and known.holds(not_before):
            asked, start = known.asked, max(known.found, not_before)
        found = None if start >= FOREVER else self._on(node).first(ask.shape, ask.firm, seconds, start)
        return _First(self._plans.get(node, 0), asked, FOREVER if found is None else found)

    def _from(self, start: datetime) -> Room:
        """What is free at `start`, nodes apart aside; a room to be changed."""
        if start < min(self._horizon.late, self._first_end):
            return self.room_now.copy()
        room = self._base.at(microseconds(start)) if start >= self._horizon.late else self._base.room.copy()
        for node, uses in self._started.items():
            for use in uses:
                if use.end > start:
                    room.take(node, use.devices, use.shape, use.firm)
        return room

    def _look(self, room: Room, node: int, start: datetime, end: datetime, *, at: int | None = None) -> None:
        """The least that is free of one node at any time of `[start, end)`, and whose its shared accelerators are.

        Written to row `at` of the room, the node's own when not given.
        """
        row, stretches = node if at is None else at, self._on(node)
        least = stretches.least(start, end)
        room.cpu_milli[row], room.memory_mib[row], room.gpu_milli[row] = (
            least.cpu_milli,
            least.memory_mib,
            least.gpu_milli,
        )
        room.firm[row] = NOBODY
        for device, firm in stretches.sharers(start, end):
            number = self.ground.number(firm)
            room.firm[row, device] = number if room.firm[row, device] in (NOBODY, number) else _SEVERAL


class _First(NamedTuple):
    """When a node first has room, not before `asked`, as it was after so many plans on it."""

    plans: int
    asked: datetime
    found: datetime

    def holds(self, not_before: datetime) -> bool:
        """Whether there is none before it, asked from this instant on."""
        return self.asked <= not_before <= self.found


def _tightest(first: Ints, at: int) -> int:
    """Of the nodes that have room by then, one that got it last: what has been free for longer stays whole."""
    return int(np.argmax(np.where(first <= at, first, -1)))


def _end(start: datetime, seconds: int | None) -> datetime:
    return FOREVER if seconds is None else start + timedelta(seconds=seconds)
