"""One look at the queue. It decides and never acts: state in, decisions out, time as an argument.

The cycle, in order:
1. Work on a draining node is preempted, and where a window begins that keeps its node for others (`windows`).
2. Waiting work is taken in order (`ordering`). What can never run is rejected; what backs off or lacks money waits.
3. Each gets its earliest slot in the timeline (`timeline`): quota, its own or borrowed (`sharing`), and room for the
   whole gang on nodes (`placement`). A slot that begins now is a start; any other is a wait with its reason and
   expected time. The slot is kept either way, so nobody later delays somebody earlier.
4. What is promised its quota and would start sooner if borrowed work were stopped has it stopped (`preemption`).
5. Beyond `Policy.reservations` per pool nothing more is reserved: those may still start now where they delay nobody.
6. What keeps one workload from a place keeps all of its kind (`lines`) that take as long or longer: they wait together,
   unseen (`decisions`), and their expected times are estimates, made when somebody asks.
7. Where nobody is to be told, it ends when nothing more can start or be stopped for (`prospects`).

What it looks up is kept up as the facts change (`index`), so a look costs what changed and what gets a place, not what
exists; docs/decisions/0014 says how.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from quotas.vocabulary import PoolName, QoS
from scheduler.bookings import Horizon
from scheduler.decision_checks import check_decisions
from scheduler.decisions import Decisions, KindWaits
from scheduler.index import Index, follow, indexed
from scheduler.lines import Kind, duration, kind_of
from scheduler.ordering import Order, Turn
from scheduler.placement import BEST_FIT, Scoring, ask_of, could_hold
from scheduler.preemption import Age, Standings
from scheduler.preferences import told as told_of
from scheduler.prospects import Prospects
from scheduler.rooms import ground_of, largest
from scheduler.sharing import QuotaKey, Sharing
from scheduler.snapshot import Change, Running, State, Waiting
from scheduler.timeline import Slot, Timeline
from scheduler.usage import InUse
from scheduler.vocabulary import (
    Decision,
    Placement,
    Preempt,
    Reject,
    RejectReason,
    Spread,
    Start,
    StopRule,
    Wait,
    WaitReason,
)
from scheduler.windows import told


@dataclass(frozen=True, slots=True)
class Policy:
    """What an administrator can turn."""

    reservations: int = 100  # waiting workloads per pool that get a place in the timeline
    overrun_seconds: int = 30  # work past its expected end is expected to end this much from now
    grace_seconds: int = 10  # from the wish to stop to the kill
    minimum_seconds: int = 60  # work that began less than this ago is not stopped for others
    scoring: Scoring = BEST_FIT  # where work goes of all the places that have room; `mix.py` sets it by recent work


def decide(
    state: State, changes: Iterable[Change], policy: Policy, *, now: datetime, tell: bool = True
) -> tuple[State, Decisions]:
    """The state after `changes`, and decisions for all waiting work and for what has to stop.

    The decisions depend on the resulting facts, `policy` and `now` alone: feeding the same facts in another order, or
    all at once, gives the same ones. The state that comes back carries its index: give it to the next call. Who has
    nobody to `tell` gets the same starts and stops, and not of everybody why it waits.
    """
    seen, index = indexed(follow(state, changes))
    cycle = _Cycle(seen, index, policy, now)
    made: list[Decision] = list(cycle.drain())
    turns = cycle.turns()
    while (tell or cycle.prospects.any()) and (turn := next(turns, None)):
        made += cycle.consider(turn)
    decisions = Decisions(made, cycle.closed, is_whole=tell)
    check_decisions(seen, decisions, now=now)
    return seen, decisions


def refusal(workload: Waiting, state: State) -> Reject | None:
    """Why this workload can never run on the pools and quotas as they are; asked before it is accepted."""
    workload = workload.of(workload.workers_least)
    hopeless = _impossible(workload, indexed(state)[1].known_pools)
    if hopeless:
        return hopeless
    pools = {node.pool for node in state.nodes.values()}
    sharing = Sharing(state.quotas, state.tree)
    most = {pool: _most(workload, pool, sharing) for pool in workload.pools}
    for pool, quota in most.items():
        ground = ground_of([node for node in state.nodes.values() if node.pool == pool])
        if pool in pools and quota >= workload.need and could_hold(ground.empty(), ask_of(workload)):
            return None
    best = max(most.values())
    if best < workload.need:
        what = "quota" if workload.qos is QoS.RESERVED else "quota with all it may borrow"
        needs = f"it needs {gpus(workload.need)}"
        if workload.need > workload.workers * workload.gpu_milli:
            needs += ", for the CPU or memory that it keeps from others,"
        detail = f"{needs} and the firm's {what} in {_either(workload.pools)} is {gpus(best)}"
        return Reject(workload.id, RejectReason.NO_QUOTA, detail)
    there = largest([node for node in state.nodes.values() if node.pool in workload.pools])
    detail = f"{_gang(workload)} fit on no set of nodes of {_either(workload.pools)}, even empty ones; {there}"
    return Reject(workload.id, RejectReason.TOO_LARGE, detail)


def gpus(milli: int) -> str:
    """`2000` → `2`, `2500` → `2.5`: accelerators, for people."""
    return f"{milli / 1000:g}"


class _Cycle:
    """The timeline as it fills up, and what is really free now: what runs, and what this cycle starts."""

    def __init__(self, state: State, index: Index, policy: Policy, now: datetime) -> None:
        self._state, self._index, self._policy, self._now = state, index, policy, now
        self._sharing: Sharing = index.sharing
        self._grace = max(1, policy.grace_seconds)  # nothing is free before what holds it has gone
        overrun = max(policy.overrun_seconds, self._grace + 1)  # to be late is no way to keep what was borrowed
        self._timeline = Timeline(
            index,
            state.windows,
            Horizon(now, now + timedelta(seconds=overrun)),
            rates=state.rates,
            movable_seconds=policy.minimum_seconds + self._grace,
            scoring=policy.scoring,
        )
        self._in_use = InUse(index.held, index.sharing)
        self._standings = Standings(index.sharing, index.held)
        self._order = Order(state, index, self._standings, now=now)
        self._ready = now + timedelta(seconds=self._grace)  # when what is stopped now will have gone
        self._age = Age(now, timedelta(seconds=policy.minimum_seconds))
        self.prospects = Prospects(self._order, self._timeline, self._in_use, self._standings, self._age)
        self._reserved: dict[PoolName, int] = {}
        self._last: dict[PoolName, datetime] = {}
        self._told: dict[Kind, tuple[WaitReason, str, bool]] = {}
        self.closed: list[KindWaits] = []

    def drain(self) -> Iterable[Preempt]:
        """Stop what runs on draining nodes, and where a window begins that keeps the node from it."""
        draining = self._index.draining
        due = [w for w in self._state.windows if w.meets(self._now, self._ready + _MOMENT)]
        if not due and not draining:
            return
        nodes = self._state.nodes.values()
        kept = {node.id: [w for w in due if w.covers(node.id, node.pool)] for node in nodes} if due else {}
        for work in sorted(self._state.running.values(), key=lambda r: r.id):
            if work.is_stopping:
                continue
            begun = any(w.firm_id != work.firm_id for node in work.placement.nodes for w in kept.get(node, ()))
            if begun or draining.intersection(work.placement.nodes):
                self._standings.stop(work)
                yield Preempt(work.id, StopRule.WINDOW if begun else StopRule.DRAIN)

    def turns(self) -> Iterator[Turn]:
        """Everybody in order, but what its firm's quota promises before what would borrow.

        The order weighs a firm by all that got a place before, the promise by what runs: behind work of its own firm
        that does not fit, promised work would come after borrowers of other firms, who would take the room that was
        cleared for it and be stopped again, for ever. It still waits for work of its own firm that fits now.
        """
        yield from self._order.promised(lambda workload: self._timeline.fits(workload, self._now) is not None)
        yield from self._order.borrowing()

    def consider(self, turn: Turn) -> list[Decision]:
        """The decision for one workload, given those considered before it, and what is stopped for it."""
        kind, workload = kind_of(turn.workload), turn.workload
        hopeless = _impossible(workload, self._index.known_pools)
        if hopeless:
            return [hopeless]
        workload = self._sized(workload)
        if all(self._reserved.get(pool, 0) >= self._policy.reservations for pool in workload.pools):
            return self._beyond(kind, workload)
        slot = self._timeline.earliest(workload)
        if slot is None or slot.start > self._ready:
            reclaimed = self._reclaim(workload)
            if reclaimed:
                return reclaimed
        if slot is None:
            self._close(kind, workload, after=None)
            return [self._wait(kind, workload, eta=None)]
        return [self._keep(kind, workload, slot)]

    def _keep(self, kind: Kind, workload: Waiting, slot: Slot) -> Decision:
        """The slot is its: it starts, or waits for it."""
        pool = slot.placement.pool
        self._timeline.reserve(workload, slot)
        if slot.start <= self._now:
            return self._start(workload, slot.placement)
        is_near = slot.start <= self._ready and self._standings.is_promised(workload, pool)
        if is_near:
            self._standings.start(workload, pool)
        self._order.place(workload, pool, later=not is_near)
        self._reserved[pool] = self._reserved.get(pool, 0) + 1
        self._last[pool] = max(slot.start, self._last.get(pool, slot.start))
        return self._wait(kind, workload, eta=slot.start)

    def _sized(self, workload: Waiting) -> Waiting:
        """An elastic gang with as many workers as fit now; where not even its fewest do, with those."""
        least, most = workload.workers_least, workload.workers
        if least == most:
            return workload
        fitting = bisect_left(
            range(least, most + 1), True, key=lambda n: self._timeline.fits(workload.of(n), self._now) is None
        )
        return workload.of(max(least, least + fitting - 1))

    def _start(self, workload: Waiting, placement: Placement) -> Start:
        self._in_use.start(workload, placement.pool)
        self._standings.start(workload, placement.pool)
        self._order.place(workload, placement.pool, later=False)
        self._told.clear()
        weights = self._policy.scoring.weights
        why = told_of(placement, workload, self._state.nodes, weights, self._state.rates)
        return Start(workload.id, placement, why)

    def _reclaim(self, workload: Waiting) -> list[Decision]:
        """Stop the borrowed work whose loss is least and whose room lets this promised workload start; or nothing."""
        ready = self._ready
        for pool in workload.pools:
            if not self._standings.is_promised(workload, pool):
                continue
            victims = self._fewest(workload, pool, ready)
            placement = self._timeline.fits_in(pool, workload, ready) if victims else None
            if placement is None:
                continue
            for work in victims:
                self._standings.stop(work)
            self.prospects.reclaimed()
            self._standings.start(workload, pool)
            self._order.place(workload, pool, later=False)
            self._timeline.reserve(workload, Slot(ready, placement))
            detail = f"{len(victims)} borrowing in {pool} told to stop, with {self._grace} s of grace"
            own = workload.firm_id
            rules = [StopRule.YIELD if victim.firm_id == own else StopRule.RECLAIM for victim in victims]
            stops = [Preempt(victim.id, rule, workload.id) for victim, rule in zip(victims, rules, strict=True)]
            return [*stops, Wait(workload.id, WaitReason.RECLAIM, detail, ready)]
        return []

    def _fewest(self, workload: Waiting, pool: PoolName, ready: datetime) -> list[Running]:
        """Enough work to stop, its slots released in the timeline from `ready` on, and none of it for nothing."""
        stopped: list[Running] = []
        for work in self._standings.victims(workload, pool, self._age):
            self._timeline.release(work, ready)
            stopped.append(work)
            if self._timeline.fits_in(pool, workload, ready):
                break
        if not stopped:
            return []
        needed: list[Running] = []
        enough = self._timeline.fits_in(pool, workload, ready) is not None
        for work in reversed(stopped):  # the last one made it fit; of those before, the dearest may be spared first
            self._timeline.keep(work, ready)
            if enough and not self._timeline.fits_in(pool, workload, ready):
                self._timeline.release(work, ready)
                needed.append(work)
        return needed

    def _beyond(self, kind: Kind, workload: Waiting) -> list[Decision]:
        """It starts if it delays nobody; else all of its kind waits."""
        placement = self._timeline.fits(workload, self._now)
        if placement is None:
            self._close(kind, workload, after=self._last.get(workload.pools[0], self._now))
            return []
        self._timeline.reserve(workload, Slot(self._now, placement))
        return [self._start(workload, placement)]

    def _close(self, kind: Kind, workload: Waiting, *, after: datetime | None) -> None:
        """The rest of its kind has no place either: none of it, or none that takes as long."""
        reason, detail, for_all = self._why(kind, workload)
        seconds = 0.0 if for_all and after else duration(workload)  # for less time there might be room one day
        self._order.close(kind, seconds)
        self.closed.append(KindWaits(kind, seconds, reason, detail, after))

    def _wait(self, kind: Kind, workload: Waiting, *, eta: datetime | None) -> Wait:
        reason, detail, _ = self._why(kind, workload)
        return Wait(workload.id, reason, detail, eta)

    def _why(self, kind: Kind, workload: Waiting) -> tuple[WaitReason, str, bool]:
        """The rule that holds it, told for the pool that comes nearest to taking it; whether for any duration."""
        if kind not in self._told:
            reasons = [self._reason(workload, pool) for pool in workload.pools]
            reason, detail = min(reasons, key=lambda r: _NEARNESS.index(r[0]))
            self._told[kind] = reason, detail, not any(r in _OF_TIME for r, _ in reasons)
        return self._told[kind]

    def _reason(self, workload: Waiting, pool: PoolName) -> tuple[WaitReason, str]:
        occupancy, ask = self._index.pools.get(pool), ask_of(workload)
        if occupancy is None or not occupancy.holds_empty(ask):
            up = len(occupancy.ground.ids) if occupancy else 0
            return WaitReason.NO_NODE, f"{_gang(workload)}; {pool} has {up} nodes up and open"
        key: QuotaKey = (workload.firm_id, pool)
        if self._in_use.quota_left(key, workload.qos) < workload.need:
            return self._no_quota(workload, key, self._in_use.used.get(key, 0))
        bookings = self._timeline.now_in(pool)
        if not bookings.holds_now(ask):
            free, size = gpus(bookings.free_milli), gpus(occupancy.ground.size_milli)
            return WaitReason.NO_ROOM, f"{_gang(workload)}; {free} of {size} free in {pool}"
        closed = self._timeline.closed(pool, workload, self._now)
        if closed and not could_hold(bookings.room_now.without(closed), ask):
            return WaitReason.WINDOW, told(next(iter(closed.values())))
        return WaitReason.BEHIND, f"its place in {pool} is kept for earlier work"

    def _no_quota(self, workload: Waiting, key: QuotaKey, used: int) -> tuple[WaitReason, str]:
        quota, pool, root = self._sharing.quota(key), key[1], self._sharing.root(key[0])
        needs = f"it needs {gpus(workload.need)}; the quota in {pool} is {gpus(quota.nominal)}, {gpus(used)} in use"
        if root == key[0] or workload.qos is QoS.RESERVED:
            return WaitReason.NO_QUOTA, needs
        if used + workload.need > quota.ceiling:
            return WaitReason.NO_QUOTA, f"{needs}, and it may borrow {gpus(quota.borrowing or 0)}"
        if used + workload.need <= quota.nominal:
            minimum = self._policy.minimum_seconds
            return WaitReason.RECLAIM, f"{needs}; work that borrows the rest is stopped once it has run {minimum} s"
        left = max(0, self._in_use.lent_left(key))
        return WaitReason.NOT_LENT, f"{needs}; {root} has {gpus(left)} of {gpus(self._sharing.lent(root, pool))} left"


_MOMENT = timedelta(milliseconds=1)
_NEARNESS = [
    WaitReason.BEHIND,
    WaitReason.NO_ROOM,
    WaitReason.WINDOW,
    WaitReason.RECLAIM,
    WaitReason.NOT_LENT,
    WaitReason.NO_QUOTA,
    WaitReason.NO_NODE,
]
_OF_TIME = {WaitReason.BEHIND, WaitReason.WINDOW}
"""What keeps long work and might let shorter work start."""


def _most(workload: Waiting, pool: PoolName, sharing: Sharing) -> int:
    """What the workload's firm could use for it if nobody used anything."""
    key = workload.firm_id, pool
    return sharing.quota(key).nominal if workload.qos is QoS.RESERVED else sharing.most(key)


def _impossible(workload: Waiting, known: frozenset[PoolName]) -> Reject | None:
    if known.isdisjoint(workload.pools):
        return Reject(workload.id, RejectReason.UNKNOWN_POOL, f"there is no pool {_either(workload.pools)}")
    return None


def _gang(workload: Waiting) -> str:
    of = "worker" if workload.workers == 1 else "workers"
    parts = [f"{workload.workers} {of} of {gpus(workload.gpu_milli)}"]
    parts += [f"{workload.cpu_milli / 1000:g} CPUs"] if workload.cpu_milli else []
    parts += [f"{workload.memory_mib / 1024:g} GiB"] if workload.memory_mib else []
    parts += [workload.spread.replace("_", " ")] if workload.spread is not Spread.SAME_CENTRE else []
    parts += [f"on nodes of one {workload.topology}"] if workload.topology else []
    return ", ".join(parts)


def _either(pools: tuple[PoolName, ...]) -> str:
    return " or ".join(pools)
