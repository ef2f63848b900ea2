"""The expected future of the pools: room and quota over time, from running work's expected ends and reservations.

Conservative backfill (Mu'alem and Feitelson, TPDS 2001): whoever is considered first gets its earliest slot and keeps
it; a later one may start early only in what is left, so it delays none before it. Decisions, ETAs and quotes all read
this one timeline.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.bookings import Bookings
from scheduler.placement import ask_of, place_gang
from scheduler.rooms import Room, grounds
from scheduler.sharing import Member, QuotaKey, Sharing
from scheduler.snapshot import Running, State, Waiting
from scheduler.vocabulary import NodeId, Placement
from scheduler.windows import Window, in_the_way

FOREVER = datetime.max.replace(tzinfo=UTC)
_AT_ONCE = timedelta(seconds=1)


class Profile:
    """An amount over time, a step function from `now` on: what a firm has in use, or what is left to lend."""

    def __init__(self, now: datetime, level: int) -> None:
        self._times = [now]
        self._levels = [level]

    def add(self, start: datetime, end: datetime, amount: int) -> None:
        """Raise (or lower) the level by `amount` in `[start, end)`."""
        first, last = self._cut(start), self._cut(end) if end < FOREVER else len(self._times)
        for i in range(first, last):
            self._levels[i] += amount

    def steps(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, int]]:
        """The pieces of `[start, end)` on which the level is constant: from, to, level."""
        i = max(bisect_right(self._times, start) - 1, 0)
        while i < len(self._times) and (self._times[i] < end or i == 0):
            until = self._times[i + 1] if i + 1 < len(self._times) else FOREVER
            yield max(start, self._times[i]), min(end, until), self._levels[i]
            i += 1

    def lowest(self, start: datetime, end: datetime) -> int:
        """The lowest level at any time in `[start, end)`."""
        first = max(bisect_right(self._times, start) - 1, 0)
        lowest = self._levels[first]
        for i in range(first + 1, len(self._times)):
            if self._times[i] >= end:
                break
            lowest = min(lowest, self._levels[i])
        return lowest

    def highest(self, start: datetime, end: datetime) -> int:
        """The highest level at any time in `[start, end)`."""
        return max(level for _, _, level in self.steps(start, end))

    def rises(self) -> Iterator[datetime]:
        """When the level is higher than just before."""
        return (self._times[i] for i in range(1, len(self._times)) if self._levels[i] > self._levels[i - 1])

    def falls(self) -> Iterator[datetime]:
        """When the level is lower than just before."""
        return (self._times[i] for i in range(1, len(self._times)) if self._levels[i] < self._levels[i - 1])

    def _cut(self, at: datetime) -> int:
        i = bisect_right(self._times, at) - 1
        if i < 0:
            return 0
        if self._times[i] != at:
            self._times.insert(i + 1, at)
            self._levels.insert(i + 1, self._levels[i])
            i += 1
        return i


@dataclass(frozen=True, slots=True)
class Slot:
    """Where and when a workload is expected to start."""

    start: datetime
    placement: Placement


class Timeline:
    """The future of every pool. Mutable, made anew for one decision and gone with it."""

    def __init__(
        self, state: State, sharing: Sharing, *, now: datetime, overrun_seconds: int, movable_seconds: int = 0
    ) -> None:
        self._now, self._sharing = now, sharing
        self._windows, self._movable = state.windows, timedelta(seconds=movable_seconds)
        self._overdue = now + timedelta(seconds=overrun_seconds)
        self._pools = {pool: Bookings(ground, now) for pool, ground in grounds(state.nodes.values()).items()}
        self._used: dict[QuotaKey, Profile] = {}  # what a firm has in use …
        self._reserved: dict[QuotaKey, Profile] = {}  # … and of that its reserved work
        self._lendable: dict[tuple[Member, PoolName], Profile] = {}  # what is free of what a tree lends together
        for work in sorted(state.running.values(), key=lambda r: r.id):
            self._change(work.firm_id, work.qos, work.placement, now, self.end_of(work), +1)
            if work.placement.pool in self._pools:
                self._pools[work.placement.pool].add(now, self.end_of(work), work.placement, work.firm_id)

    def end_of(self, work: Running) -> datetime:
        """When running work is expected to end: overdue work soon, what has been told to stop at once."""
        if work.ends_at is None:
            return FOREVER
        return max(work.ends_at, self._now + _AT_ONCE if work.is_stopping else self._overdue)

    def free(self, pool: PoolName, start: datetime, end: datetime) -> Room | None:
        """What the open nodes of the pool have free throughout `[start, end)`; None without any."""
        return self._pools[pool].room(start, end) if pool in self._pools else None

    def quota_left(self, key: QuotaKey, qos: QoS, start: datetime, end: datetime) -> int:
        """How much more the firm may use throughout `[start, end)`: promised, borrowed and lent taken together.

        Reserved work has the nominal quota and no more: what cannot be taken back is never borrowed.
        """
        quota, lendable = self._sharing.quota(key), self._lendable_of(key)
        left = min(
            min(quota.ceiling - used, max(0, quota.kept - used) + lendable.lowest(since, until))
            for since, until, used in self._use_of(key).steps(start, end)
        )
        if qos is QoS.RESERVED:
            left = min(left, quota.nominal - self._use_of(key, reserved=True).highest(start, end))
        return left

    def earliest(self, workload: Waiting, *, not_before: datetime | None = None) -> Slot | None:
        """The first moment at which quota and nodes hold the whole gang for its duration.

        In the pool where that is soonest, the preferred one on a tie; None when no expected end makes room for it.
        """
        slots = [self._earliest_in(pool, workload, not_before or self._now) for pool in workload.pools]
        return min((slot for slot in slots if slot), key=lambda slot: slot.start, default=None)

    def fits(self, workload: Waiting, start: datetime) -> Placement | None:
        """Its placement in the first acceptable pool that holds it from `start` on, or None."""
        fitting = (self.fits_in(pool, workload, start) for pool in workload.pools)
        return next((placement for placement in fitting if placement), None)

    def fits_in(self, pool: PoolName, workload: Waiting, start: datetime) -> Placement | None:
        """Its placement in one pool from `start` on, or None."""
        end = _end(start, workload.seconds)
        if self.quota_left((workload.firm_id, pool), workload.qos, start, end) < workload.need:
            return None
        room, closed = self.free(pool, start, end), self.closed(pool, workload, start)
        if room and closed:
            room = room.without(closed)
        seats = place_gang(room, ask_of(workload)) if room else None
        if room is None or seats is None:
            return None
        nodes, devices = tuple(room.ground.ids[seat.node] for seat in seats), tuple(seat.devices for seat in seats)
        return Placement(pool, nodes, workload.gpu_milli, devices, workload.cpu_milli, workload.memory_mib)

    def closed(self, pool: PoolName, workload: Waiting, start: datetime) -> Mapping[NodeId, Window]:
        """The nodes of the pool that are kept from it at some time while it would run, each with a window."""
        if not self._windows:
            return {}
        movable = self._movable if workload.checkpoints else None
        met = in_the_way(self._windows, workload.firm_id, start, _end(start, workload.seconds), movable=movable)
        return {node: w for w in reversed(met) for node in self._nodes_of(pool) if w.covers(node, pool)}

    def reserve(self, workload: Waiting, slot: Slot) -> None:
        """Keep the slot for this workload."""
        end = _end(slot.start, workload.seconds)
        self._change(workload.firm_id, workload.qos, slot.placement, slot.start, end, +1)
        self._pools[slot.placement.pool].add(slot.start, end, slot.placement, workload.firm_id)

    def release(self, work: Running, at: datetime) -> None:
        """Running work will be gone from `at` on instead of at its expected end."""
        end = max(at, self.end_of(work))
        self._change(work.firm_id, work.qos, work.placement, at, end, -1)
        if work.placement.pool in self._pools:
            sooner = min(at, self.end_of(work))
            self._pools[work.placement.pool].end(work.placement, work.firm_id, self.end_of(work), sooner)

    def keep(self, work: Running, at: datetime) -> None:
        """Take back a `release`."""
        end = max(at, self.end_of(work))
        self._change(work.firm_id, work.qos, work.placement, at, end, +1)
        if work.placement.pool in self._pools:
            sooner = min(at, self.end_of(work))
            self._pools[work.placement.pool].end(work.placement, work.firm_id, sooner, self.end_of(work))

    def _earliest_in(self, pool: PoolName, workload: Waiting, not_before: datetime) -> Slot | None:
        """Goes through the moments at which something becomes free, and looks closely only where enough may be."""
        key, bookings = (workload.firm_id, pool), self._pools.get(pool)
        if bookings is None:
            return None
        allowed = {not_before, *(t for profile in self._quota_profiles(key) for t in profile if t > not_before)}
        opened = {window.end for window in self._windows if window.end > not_before}
        moments, ask = sorted({*bookings.moments(not_before), *opened, *allowed}), ask_of(workload)
        first = bisect_left(moments, True, key=lambda moment: bookings.may_hold(ask, moment))
        within, looked = False, False
        for i, start in enumerate(moments):
            looked = looked or start in allowed
            if i < first or not (within or looked):
                continue
            left = self.quota_left(key, workload.qos, start, _end(start, workload.seconds))
            within, looked = left >= workload.need, False
            placement = self.fits_in(pool, workload, start) if within else None
            if placement:
                return Slot(start, placement)
        return None

    def _nodes_of(self, pool: PoolName) -> Sequence[NodeId]:
        return self._pools[pool].ground.ids if pool in self._pools else ()

    def _quota_profiles(self, key: QuotaKey) -> Iterable[Iterator[datetime]]:
        """When more quota becomes free for the firm."""
        return self._use_of(key).falls(), self._use_of(key, reserved=True).falls(), self._lendable_of(key).rises()

    def _change(
        self, firm_id: FirmId, qos: QoS, placement: Placement, start: datetime, end: datetime, sign: int
    ) -> None:
        key, amount = (firm_id, placement.pool), sign * placement.need
        quota, lendable = self._sharing.quota(key), self._lendable_of(key)
        for since, until, used in list(self._use_of(key).steps(start, end)):
            lendable.add(since, until, quota.shared(used) - quota.shared(used + amount))
        self._use_of(key).add(start, end, amount)
        if qos is QoS.RESERVED:
            self._use_of(key, reserved=True).add(start, end, amount)

    def _use_of(self, key: QuotaKey, *, reserved: bool = False) -> Profile:
        profiles = self._reserved if reserved else self._used
        if key not in profiles:
            profiles[key] = Profile(self._now, 0)
        return profiles[key]

    def _lendable_of(self, key: QuotaKey) -> Profile:
        tree = self._sharing.root(key[0]), key[1]
        if tree not in self._lendable:
            self._lendable[tree] = Profile(self._now, self._sharing.lent(*tree))
        return self._lendable[tree]


def _end(start: datetime, seconds: int | None) -> datetime:
    return FOREVER if seconds is None else start + timedelta(seconds=seconds)
