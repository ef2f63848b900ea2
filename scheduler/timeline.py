"""The expected future of the pools: room and quota over time, from running work's expected ends and reservations.

Conservative backfill (Mu'alem and Feitelson, TPDS 2001): whoever is considered first gets its earliest slot and keeps
it; a later one may start early only in what is left, so it delays none before it. Decisions, ETAs and quotes all read
this one timeline.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.allotments import Allotment
from scheduler.bookings import Bookings, Horizon
from scheduler.index import Index
from scheduler.occupancy import Wish, wish_of
from scheduler.placement import BEST_FIT, Ask, Scored, Scoring, Seat, ask_of, could_hold, place_gang
from scheduler.preferences import nearness, pool_price
from scheduler.rooms import Room
from scheduler.sharing import Member, QuotaKey
from scheduler.snapshot import Running, Waiting
from scheduler.stretches import FOREVER
from scheduler.vocabulary import Choice, NodeId, Placement
from scheduler.windows import Window, in_the_way


@dataclass(frozen=True, slots=True)
class Slot:
    """Where and when a workload is expected to start."""

    start: datetime
    placement: Placement


class Timeline:
    """The future of every pool. Mutable, made anew for one decision and gone with it."""

    def __init__(
        self,
        index: Index,
        windows: Sequence[Window],
        horizon: Horizon,
        *,
        rates: Mapping[PoolName, int] | None = None,
        movable_seconds: int = 0,
        scoring: Scoring = BEST_FIT,
    ) -> None:
        self._index, self._sharing, self._horizon, self._now = index, index.sharing, horizon, horizon.now
        self._scoring, self._nodes, self._rates = scoring, index.facts.nodes, rates or {}
        self._windows, self._movable = windows, timedelta(seconds=movable_seconds)
        self._pools = {pool: Bookings(occupancy, horizon) for pool, occupancy in index.pools.items()}
        self._quotas: dict[tuple[Member, PoolName], Allotment] = {}
        self._scored: dict[tuple[PoolName, Wish], Scored] = {}
        self._covered: dict[tuple[str, PoolName], list[NodeId]] = {}

    def now_in(self, pool: PoolName) -> Bookings:
        """What a pool with open nodes has at this instant."""
        return self._pools[pool]

    def earliest(self, workload: Waiting, *, not_before: datetime | None = None) -> Slot | None:
        """The first moment at which quota and nodes hold the whole gang for its duration.

        In the pool where that is soonest, the preferred one on a tie; None when no expected end makes room for it.
        """
        tiers = ([self._earliest_in(p, workload, not_before or self._now) for p in tier] for tier in workload.tiers)
        best = (self._best(workload, [slot for slot in tier if slot]) for tier in tiers)
        return min((slot for slot in best if slot), key=lambda slot: slot.start, default=None)

    def fits(self, workload: Waiting, start: datetime) -> Placement | None:
        """Its placement in the best liked pool that holds it from `start` on, or None."""
        for tier in workload.tiers:
            fitting = [placement for pool in tier if (placement := self.fits_in(pool, workload, start))]
            slot = self._best(workload, [Slot(start, placement) for placement in fitting])
            if slot:
                return slot.placement
        return None

    def _best(self, workload: Waiting, slots: Sequence[Slot]) -> Slot | None:
        """Of slots in pools that are liked equally the soonest, and of those the one with the best price and nodes."""
        if len(slots) < 2:
            return slots[0] if slots else None
        weights = self._scoring.weights

        def points(placement: Placement) -> float:
            near = nearness(workload.model, workload.files, self._nodes[placement.nodes[0]].holds)
            return near.points(weights) + weights.tariff * pool_price(workload, placement.pool, self._rates)

        return min(slots, key=lambda slot: (slot.start, -points(slot.placement)))

    def fits_in(self, pool: PoolName, workload: Waiting, start: datetime) -> Placement | None:
        """Its placement in one pool from `start` on, or None."""
        room, ask = self._room(pool, workload, start), ask_of(workload)
        if room is None:
            return None
        alike = pool, wish_of(ask)
        if alike not in self._scored:
            self._scored[alike] = Scored.nothing(room.ground, len(room.ground.ids))
        seats = place_gang(room, ask, self._scoring, self._scored[alike])
        return self._placement(pool, workload, room, seats) if seats else None

    def may_start(self, pool: PoolName, workload: Waiting) -> bool:
        """Whether it fits there now; where, is not asked."""
        ask = ask_of(workload)
        if ask.workers > 1 or ask.topology is not None or self._windows:
            room = self._room(pool, workload, self._now)
            return room is not None and could_hold(room, ask)
        firm, end = workload.firm_id, _end(self._now, workload.seconds)
        quota = self._quota_of((firm, pool))
        if pool not in self._pools or not quota.holds(firm, workload.qos, workload.need, self._now, end):
            return False
        found = self._pools[pool].earliest(ask, workload.seconds, self._now)
        return found is not None and found[0] == self._now

    def _room(self, pool: PoolName, workload: Waiting, start: datetime) -> Room | None:
        """What is free for it from `start` on; None where quota or room is missing for any of it."""
        end = _end(start, workload.seconds)
        quota = self._quota_of((workload.firm_id, pool))
        if pool not in self._pools or not quota.holds(workload.firm_id, workload.qos, workload.need, start, end):
            return None
        room = self._pools[pool].room(ask_of(workload), start, workload.seconds)
        closed = self.closed(pool, workload, start) if room else None
        return room.without(closed) if room and closed else room

    def closed(self, pool: PoolName, workload: Waiting, start: datetime) -> Mapping[NodeId, Window]:
        """The nodes of the pool that are kept from it at some time while it would run, each with a window."""
        if not self._windows:
            return {}
        movable = self._movable if workload.checkpoints else None
        met = in_the_way(self._windows, workload.firm_id, start, _end(start, workload.seconds), movable=movable)
        return {node: w for w in reversed(met) for node in self._covered_by(w, pool)}

    def reserve(self, workload: Waiting, slot: Slot) -> None:
        """Keep the slot for this workload."""
        end = _end(slot.start, workload.seconds)
        self._change(workload.firm_id, workload.qos, slot.placement, slot.start, end, +1)
        self._pools[slot.placement.pool].add(slot.start, end, slot.placement, workload.firm_id)

    def release(self, work: Running, at: datetime) -> None:
        """Running work will be gone from `at` on instead of at its expected end."""
        end = max(at, self._horizon.end_of(work))
        self._change(work.firm_id, work.qos, work.placement, at, end, -1)
        if work.placement.pool in self._pools:
            sooner = min(at, self._horizon.end_of(work))
            self._pools[work.placement.pool].end(work.placement, work.firm_id, self._horizon.end_of(work), sooner)

    def keep(self, work: Running, at: datetime) -> None:
        """Take back a `release`."""
        end = max(at, self._horizon.end_of(work))
        self._change(work.firm_id, work.qos, work.placement, at, end, +1)
        if work.placement.pool in self._pools:
            sooner = min(at, self._horizon.end_of(work))
            self._pools[work.placement.pool].end(work.placement, work.firm_id, sooner, self._horizon.end_of(work))

    def _earliest_in(self, pool: PoolName, workload: Waiting, not_before: datetime) -> Slot | None:
        """The first moment at which both quota and nodes hold it: from one of them to the other until they agree."""
        bookings, ask = self._pools.get(pool), ask_of(workload)
        if bookings is None:
            return None
        if ask.workers > 1 or ask.topology is not None or self._windows:
            return self._earliest_gang(pool, bookings, workload, not_before)
        start = not_before
        while True:
            allowed = self._allowed(pool, workload, start)
            found = None if allowed is None else bookings.earliest(ask, workload.seconds, allowed)
            if found is None or allowed is None:
                return None
            if found[0] == allowed:
                return self._slot(pool, bookings, workload, *found)
            start = found[0]

    def _slot(self, pool: PoolName, bookings: Bookings, workload: Waiting, start: datetime, node: int) -> Slot:
        """On the best node if it starts now; a later start keeps room on the node that has it first."""
        end = _end(start, workload.seconds)
        if start <= self._now:
            placement = self.fits_in(pool, workload, start)
            assert placement is not None, "quota and a node hold it"
            return Slot(start, placement)
        devices = self._devices(bookings, ask_of(workload), node, start, end)
        shape = workload.gpu_milli, (devices,), workload.cpu_milli, workload.memory_mib
        return Slot(start, Placement(pool, (bookings.ground.ids[node],), *shape))

    def _devices(self, bookings: Bookings, ask: Ask, node: int, start: datetime, end: datetime) -> tuple[int, ...]:
        """The accelerators that one worker gets on a node which has room for it then."""
        if not ask.shape.is_share:
            whole = bookings.whole_on(node, start, end)
            assert len(whole) >= ask.shape.gpus, "this node has room for it then"
            return tuple(whole[: ask.shape.gpus])
        seats = place_gang(bookings.on(node, start, end), ask)
        assert seats is not None, "this node has room for it then"
        return seats[0].devices

    def _allowed(self, pool: PoolName, workload: Waiting, not_before: datetime) -> datetime | None:
        """The first moment from which on the firm's quota holds it for its time."""
        quota = self._quota_of((workload.firm_id, pool))
        return quota.earliest(workload.firm_id, workload.qos, workload.need, workload.seconds, not_before)

    def _earliest_gang(
        self, pool: PoolName, bookings: Bookings, workload: Waiting, not_before: datetime
    ) -> Slot | None:
        """Goes through the moments at which something becomes free, and looks closely only where enough may be."""
        quota, ask = self._quota_of((workload.firm_id, pool)), ask_of(workload)
        allowed = quota.moments(workload.firm_id, workload.qos, workload.need, not_before)
        opened = {window.end for window in self._windows if window.end > not_before}
        ends = {*bookings.moments(not_before), *opened, *allowed}
        moments = sorted(moment for moment in ends if moment < FOREVER)
        first = bisect_left(moments, True, key=lambda moment: bookings.may_hold(ask, moment))
        for start in moments[first:]:
            placement = self.fits_in(pool, workload, start)
            if placement:
                return Slot(start, placement)
        return None

    def _placement(self, pool: PoolName, workload: Waiting, room: Room, seats: Sequence[Seat]) -> Placement:
        ids, unit, first = room.ground.ids, self._scoring.unit, seats[0]
        second, second_score = (ids[first.second[0]], first.second[1]) if first.second else (None, 0)
        choice = Choice(round(first.score / unit), second, round(second_score / unit))
        nodes, devices = tuple(ids[seat.node] for seat in seats), tuple(seat.devices for seat in seats)
        shape = workload.gpu_milli, devices, workload.cpu_milli, workload.memory_mib
        return Placement(pool, nodes, *shape, choice)

    def _covered_by(self, window: Window, pool: PoolName) -> Sequence[NodeId]:
        key = window.id, pool
        if key not in self._covered:
            nodes = self._pools[pool].ground.ids if pool in self._pools else ()
            self._covered[key] = [node for node in nodes if window.covers(node, pool)]
        return self._covered[key]

    def _change(
        self, firm_id: FirmId, qos: QoS, placement: Placement, start: datetime, end: datetime, sign: int
    ) -> None:
        self._quota_of((firm_id, placement.pool)).change(firm_id, qos, start, end, sign * placement.need)

    def _quota_of(self, key: QuotaKey) -> Allotment:
        tree = self._sharing.root(key[0]), key[1]
        if tree not in self._quotas:
            held, ends = self._index.of_tree(tree)
            lent = self._sharing.lent(*tree)
            self._quotas[tree] = Allotment(self._sharing, key[1], lent, held, ends, self._horizon)
        return self._quotas[tree]


def _end(start: datetime, seconds: int | None) -> datetime:
    return FOREVER if seconds is None else start + timedelta(seconds=seconds)
