"""The expected future of the pools: free accelerators over time, from running work's expected ends and reservations.

Conservative backfill (Mu'alem and Feitelson, TPDS 2001): whoever is considered first gets its earliest slot and keeps
it; a later one may start early only in what is left, so it delays none before it. Decisions, ETAs and quotes all read
this one timeline.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.placement import place_gang
from scheduler.sharing import Member, QuotaKey, Sharing
from scheduler.snapshot import Running, State, Waiting
from scheduler.vocabulary import NodeId, Placement
from scheduler.windows import Window, in_the_way

FOREVER = datetime.max.replace(tzinfo=UTC)
_AT_ONCE = timedelta(seconds=1)


class Profile:
    """An amount over time, a step function from `now` on: what is free of a node, or what a firm has in use."""

    def __init__(self, now: datetime, level: int) -> None:
        self._times = [now]
        self._levels = [level]

    def add(self, start: datetime, end: datetime, amount: int) -> None:
        """Raise (or lower) the level by `amount` in `[start, end)`."""
        first, last = self._cut(start), self._cut(end) if end < FOREVER else len(self._times)
        for i in range(first, last):
            self._levels[i] += amount

    @property
    def top(self) -> int:
        """The highest level of all."""
        return max(self._levels)

    def level(self, at: datetime) -> int:
        """The level at an instant."""
        return self._levels[max(bisect_right(self._times, at) - 1, 0)]

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
        self._pools: dict[PoolName, list[NodeId]] = {}
        self._nodes: dict[NodeId, Profile] = {}
        self._booked: dict[PoolName, set[NodeId]] = {}  # where something starts later: only there less is free later
        self._ends: dict[PoolName, list[tuple[datetime, NodeId, int]]] = {}  # what running work gives back, in time
        self._used: dict[QuotaKey, Profile] = {}  # what a firm has in use …
        self._reserved: dict[QuotaKey, Profile] = {}  # … and of that its reserved work
        self._lendable: dict[tuple[Member, PoolName], Profile] = {}  # what is free of what a tree lends together
        for node in sorted(state.nodes.values(), key=lambda n: n.id):
            self._nodes[node.id] = Profile(now, node.gpu_milli)
            if node.is_open:
                self._pools.setdefault(node.pool, []).append(node.id)
        for work in sorted(state.running.values(), key=lambda r: r.id):
            end, where = self.end_of(work), work.placement
            self._change(work.firm_id, work.qos, where, now, end, +1)
            if end < FOREVER:
                self._ends.setdefault(where.pool, []).extend((end, node, where.gpu_milli) for node in where.nodes)
        for ends in self._ends.values():
            ends.sort()

    def end_of(self, work: Running) -> datetime:
        """When running work is expected to end: overdue work soon, what has been told to stop at once."""
        if work.ends_at is None:
            return FOREVER
        return max(work.ends_at, self._now + _AT_ONCE if work.is_stopping else self._overdue)

    def free(self, pool: PoolName, start: datetime, end: datetime) -> Mapping[NodeId, int]:
        """What each open node of the pool has free throughout `[start, end)`."""
        booked = self._booked.get(pool, ())
        return {
            node: self._nodes[node].lowest(start, end) if node in booked else self._nodes[node].level(start)
            for node in self._pools.get(pool, ())
        }

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
        free, closed = self.free(pool, start, end), self.closed(pool, workload, start)
        if closed:
            free = {node: milli for node, milli in free.items() if node not in closed}
        nodes = place_gang(free, workload.workers, workload.gpu_milli)
        return Placement(pool, nodes, workload.gpu_milli) if nodes else None

    def closed(self, pool: PoolName, workload: Waiting, start: datetime) -> Mapping[NodeId, Window]:
        """The nodes of the pool that are kept from it at some time while it would run, each with a window."""
        if not self._windows:
            return {}
        movable = self._movable if workload.checkpoints else None
        met = in_the_way(self._windows, workload.firm_id, start, _end(start, workload.seconds), movable=movable)
        return {node: w for w in reversed(met) for node in self._pools.get(pool, ()) if w.covers(node, pool)}

    def reserve(self, workload: Waiting, slot: Slot) -> None:
        """Keep the slot for this workload."""
        end = _end(slot.start, workload.seconds)
        self._change(workload.firm_id, workload.qos, slot.placement, slot.start, end, +1)
        self._booked.setdefault(slot.placement.pool, set()).update(slot.placement.nodes)

    def release(self, work: Running, at: datetime) -> None:
        """Running work will be gone from `at` on instead of at its expected end."""
        self._change(work.firm_id, work.qos, work.placement, at, max(at, self.end_of(work)), -1)
        self._booked.setdefault(work.placement.pool, set()).update(work.placement.nodes)

    def keep(self, work: Running, at: datetime) -> None:
        """Take back a `release`."""
        self._change(work.firm_id, work.qos, work.placement, at, max(at, self.end_of(work)), +1)

    def _earliest_in(self, pool: PoolName, workload: Waiting, not_before: datetime) -> Slot | None:
        """Goes through the moments at which something becomes free, and looks closely only where enough may be."""
        key, each = (workload.firm_id, pool), workload.gpu_milli
        booked = self._booked.get(pool, set[NodeId]())
        nodes = self._pools.get(pool, ())
        level = {node: self._nodes[node].level(self._now) for node in nodes if node not in booked}
        most = sum(self._nodes[node].top // each for node in nodes if node in booked)  # never more than this
        slots = most + sum(free // each for free in level.values())
        more = iter([end for end in self._ends.get(pool, ()) if end[1] in level])
        given = next(more, None)
        moments = {not_before, *(end for end, _, _ in self._ends.get(pool, ()) if end > not_before)}
        moments.update(t for node in nodes if node in booked for t in self._nodes[node].rises() if t > not_before)
        moments.update(window.end for window in self._windows if window.end > not_before)
        allowed = {not_before, *(t for profile in self._quota_profiles(key) for t in profile if t > not_before)}
        within, looked = False, False
        for start in sorted(moments | allowed):
            while given is not None and given[0] <= start:
                _, node, milli = given
                slots += (level[node] + milli) // each - level[node] // each
                level[node] += milli
                given = next(more, None)
            looked = looked or start in allowed
            if slots < workload.workers or not (within or looked):
                continue
            left = self.quota_left(key, workload.qos, start, _end(start, workload.seconds))
            within, looked = left >= workload.need, False
            placement = self.fits_in(pool, workload, start) if within else None
            if placement:
                return Slot(start, placement)
        return None

    def _quota_profiles(self, key: QuotaKey) -> Iterable[Iterator[datetime]]:
        """When more quota becomes free for the firm."""
        return self._use_of(key).falls(), self._use_of(key, reserved=True).falls(), self._lendable_of(key).rises()

    def _change(
        self, firm_id: FirmId, qos: QoS, placement: Placement, start: datetime, end: datetime, sign: int
    ) -> None:
        for node in placement.nodes:
            if node in self._nodes:
                self._nodes[node].add(start, end, -sign * placement.gpu_milli)
        key, amount = (firm_id, placement.pool), sign * len(placement.nodes) * placement.gpu_milli
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
