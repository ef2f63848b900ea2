"""The expected future of the pools: free accelerators over time, from running work's expected ends and reservations.

Conservative backfill (Mu'alem and Feitelson, TPDS 2001): whoever is considered first gets its earliest slot and keeps
it; a later one may start early only in what is left, so it delays none before it. Decisions, ETAs and quotes all read
this one timeline.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from quotas.vocabulary import FirmId, PoolName
from scheduler.placement import place_gang
from scheduler.snapshot import QuotaKey, State, Waiting
from scheduler.vocabulary import NodeId, Placement

FOREVER = datetime.max.replace(tzinfo=UTC)


class Profile:
    """What is free of one thing (a node, a firm's quota) over time: a step function from `now` on."""

    def __init__(self, now: datetime, capacity: int) -> None:
        self._times = [now]
        self._levels = [capacity]

    def take(self, start: datetime, end: datetime, amount: int) -> None:
        """Take `amount` in `[start, end)`."""
        first, last = self._cut(start), self._cut(end) if end < FOREVER else len(self._times)
        for i in range(first, last):
            self._levels[i] -= amount

    def lowest(self, start: datetime, end: datetime) -> int:
        """The least that is free at any time in `[start, end)`."""
        first = max(bisect_right(self._times, start) - 1, 0)
        lowest = self._levels[first]
        for i in range(first + 1, len(self._times)):
            if self._times[i] >= end:
                break
            lowest = min(lowest, self._levels[i])
        return lowest

    def rises(self) -> Iterator[datetime]:
        """When more becomes free than just before."""
        return (self._times[i] for i in range(1, len(self._times)) if self._levels[i] > self._levels[i - 1])

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

    def __init__(self, state: State, *, now: datetime, overrun_seconds: int) -> None:
        self._now = now
        self._pools: dict[PoolName, list[NodeId]] = {}
        self._nodes: dict[NodeId, Profile] = {}
        self._quotas: dict[QuotaKey, Profile] = {}
        self._nominal = state.nominal
        for node in sorted(state.nodes.values(), key=lambda n: n.id):
            self._nodes[node.id] = Profile(now, node.gpu_milli)
            if node.is_open:
                self._pools.setdefault(node.pool, []).append(node.id)
        overdue = now + timedelta(seconds=overrun_seconds)
        for work in sorted(state.running.values(), key=lambda r: r.id):
            end = FOREVER if work.ends_at is None else max(work.ends_at, overdue)
            self._take(work.firm_id, work.placement, now, end)

    def free(self, pool: PoolName, start: datetime, end: datetime) -> Mapping[NodeId, int]:
        """What each open node of the pool has free throughout `[start, end)`."""
        return {node: self._nodes[node].lowest(start, end) for node in self._pools.get(pool, ())}

    def quota_left(self, firm_pool: QuotaKey, start: datetime, end: datetime) -> int:
        """What the firm's quota in the pool has left throughout `[start, end)`; negative when it was lowered."""
        return self._quota(firm_pool).lowest(start, end)

    def earliest(self, workload: Waiting, *, not_before: datetime | None = None) -> Slot | None:
        """The first moment at which quota and nodes hold the whole gang for its duration.

        In the pool where that is soonest, the preferred one on a tie; None when no expected end makes room for it.
        """
        slots = [self._earliest_in(pool, workload, not_before or self._now) for pool in workload.pools]
        return min((slot for slot in slots if slot), key=lambda slot: slot.start, default=None)

    def fits(self, workload: Waiting, start: datetime) -> Placement | None:
        """Its placement in the first acceptable pool that holds it from `start` on, or None."""
        fitting = (self._fit(pool, workload, start) for pool in workload.pools)
        return next((placement for placement in fitting if placement), None)

    def reserve(self, workload: Waiting, slot: Slot) -> None:
        """Keep the slot for this workload."""
        self._take(workload.firm_id, slot.placement, slot.start, _end(slot.start, workload.seconds))

    def _earliest_in(self, pool: PoolName, workload: Waiting, not_before: datetime) -> Slot | None:
        nodes = self._pools.get(pool, ())
        quota = self._quota((workload.firm_id, pool))
        profiles: Iterable[Profile] = [*(self._nodes[node] for node in nodes), quota]
        moments = {not_before, *(t for profile in profiles for t in profile.rises() if t > not_before)}
        for start in sorted(moments):
            placement = self._fit(pool, workload, start)
            if placement:
                return Slot(start, placement)
        return None

    def _fit(self, pool: PoolName, workload: Waiting, start: datetime) -> Placement | None:
        end = _end(start, workload.seconds)
        if self.quota_left((workload.firm_id, pool), start, end) < workload.need:
            return None
        nodes = place_gang(self.free(pool, start, end), workload.workers, workload.gpu_milli)
        return Placement(pool, nodes, workload.gpu_milli) if nodes else None

    def _take(self, firm_id: FirmId, placement: Placement, start: datetime, end: datetime) -> None:
        for node in placement.nodes:
            if node in self._nodes:
                self._nodes[node].take(start, end, placement.gpu_milli)
        key = (firm_id, placement.pool)
        self._quota(key).take(start, end, len(placement.nodes) * placement.gpu_milli)

    def _quota(self, key: QuotaKey) -> Profile:
        if key not in self._quotas:
            self._quotas[key] = Profile(self._now, self._nominal.get(key, 0))
        return self._quotas[key]


def _end(start: datetime, seconds: int | None) -> datetime:
    return FOREVER if seconds is None else start + timedelta(seconds=seconds)
