"""One look at the queue. It decides and never acts: state in, decisions out, time as an argument.

The cycle, in order:
1. Work on a draining node is preempted, and where a window begins that keeps its node for others (`windows`).
2. Waiting work is taken in order (`ordering`). What can never run is rejected; what backs off or lacks money waits.
3. Each gets its earliest slot in the timeline (`timeline`): quota, its own or borrowed (`sharing`), and room for the
   whole gang on nodes (`placement`). A slot that begins now is a start; any other is a wait with its reason and
   expected time. The slot is kept either way, so nobody later delays somebody earlier.
4. What is promised its quota and would start sooner if borrowed work were stopped has it stopped (`preemption`).
5. Beyond `Policy.reservations` per pool nothing more is reserved: those may still start now where they delay nobody,
   and their expected time is an estimate.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.decision_checks import check_decisions
from scheduler.ordering import in_order
from scheduler.placement import BEST_FIT, Scoring, ask_of, could_hold
from scheduler.preemption import DRAIN, RECLAIM, WINDOW, YIELD, Standings
from scheduler.preferences import told as told_of
from scheduler.rooms import ground_of, largest
from scheduler.sharing import QuotaKey, Sharing
from scheduler.snapshot import Change, Running, State, Waiting, apply
from scheduler.timeline import Slot, Timeline
from scheduler.usage import Facts
from scheduler.vocabulary import (
    Decision,
    Placement,
    Preempt,
    Reject,
    RejectReason,
    Spread,
    Start,
    Wait,
    WaitReason,
    WorkloadId,
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


def decide(state: State, changes: Iterable[Change], policy: Policy, *, now: datetime) -> tuple[State, list[Decision]]:
    """The state after `changes`, and a decision for each waiting workload and each that has to stop.

    The decisions depend on the resulting state, `policy` and `now` alone: feeding the same facts in another order,
    or all at once, gives the same ones.
    """
    seen = apply(state, changes)
    sharing = Sharing(seen.quotas, seen.tree)
    cycle = _Cycle(seen, sharing, policy, now)
    decisions: list[Decision] = list(cycle.drain())
    for workload in cycle.promised_first([turn.workload for turn in in_order(seen, sharing)]):
        decisions += cycle.consider(workload)
    check_decisions(seen, decisions)
    return seen, decisions


def refusal(workload: Waiting, state: State) -> Reject | None:
    """Why this workload can never run on the pools and quotas as they are; asked before it is accepted."""
    workload = workload.of(workload.workers_least)
    hopeless = _impossible(workload, _pools_of(state))
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
        detail = f"it needs {gpus(workload.need)} and the firm's {what} in {_either(workload.pools)} is {gpus(best)}"
        return Reject(workload.id, RejectReason.NO_QUOTA, detail)
    there = largest([node for node in state.nodes.values() if node.pool in workload.pools])
    detail = f"{_gang(workload)} fit on no set of nodes of {_either(workload.pools)}, even empty ones; {there}"
    return Reject(workload.id, RejectReason.TOO_LARGE, detail)


def gpus(milli: int) -> str:
    """`2000` → `2`, `2500` → `2.5`: accelerators, for people."""
    return f"{milli / 1000:g}"


class _Cycle:
    """The timeline as it fills up, and what is really free now: what runs, and what this cycle starts."""

    def __init__(self, state: State, sharing: Sharing, policy: Policy, now: datetime) -> None:
        self._state, self._sharing, self._policy, self._now = state, sharing, policy, now
        self._grace = max(1, policy.grace_seconds)  # nothing is free before what holds it has gone
        overrun = max(policy.overrun_seconds, self._grace + 1)  # to be late is no way to keep what was borrowed
        self._timeline = Timeline(
            state,
            sharing,
            now=now,
            overrun_seconds=overrun,
            movable_seconds=policy.minimum_seconds + self._grace,
            scoring=policy.scoring,
        )
        self._facts = Facts(state, sharing)
        self._standings = Standings.of(state, sharing)
        self._ready = now + timedelta(seconds=self._grace)  # when what is stopped now will have gone
        self._pools = _pools_of(state)
        self._reserved: dict[PoolName, int] = {}
        self._work_ahead: dict[PoolName, int] = {}  # thousandths × seconds, of what waits before
        self._last: dict[PoolName, datetime] = {}
        self._stuck: set[_Kind] = set()  # of which one does not fit now: another one does not either
        self._told: dict[_Kind, tuple[WaitReason, str]] = {}

    def drain(self) -> Iterable[Preempt]:
        """Stop what runs on draining nodes, and where a window begins that keeps the node from it."""
        nodes = self._state.nodes.values()
        draining = {node.id for node in nodes if node.is_draining}
        due = [w for w in self._state.windows if w.meets(self._now, self._ready + _MOMENT)]
        kept = {node.id: [w for w in due if w.covers(node.id, node.pool)] for node in nodes} if due else {}
        for work in sorted(self._state.running.values(), key=lambda r: r.id):
            if work.is_stopping:
                continue
            begun = any(w.firm_id != work.firm_id for node in work.placement.nodes for w in kept.get(node, ()))
            if begun or draining.intersection(work.placement.nodes):
                self._standings.stop(work)
                yield Preempt(work.id, WINDOW if begun else DRAIN)

    def promised_first(self, waiting: Sequence[Waiting]) -> Iterable[Waiting]:
        """Everybody in order, but what its firm's quota promises before what would borrow.

        The order weighs a firm by all that waits before a workload, the promise by what runs: behind work of its own
        firm that does not fit, promised work would come after borrowers of other firms, who would take the room that
        was cleared for it and be stopped again, for ever. It still waits for work of its own firm that fits now.
        """
        last = {w.firm_id: i for i, w in enumerate(waiting) if self._is_promised(w)}  # the last one of each firm
        later: list[Waiting] = []
        behind: set[FirmId] = set()
        for i, workload in enumerate(waiting):
            firm = workload.firm_id
            if firm not in behind and self._is_promised(workload):
                yield workload
                continue
            later.append(workload)
            if i < last.get(firm, 0) and firm not in behind and self._timeline.fits(workload, self._now):
                behind.add(firm)
        yield from later

    def _is_promised(self, workload: Waiting) -> bool:
        return any(self._standings.is_promised(workload, pool) for pool in workload.pools)

    def consider(self, workload: Waiting) -> list[Decision]:
        """The decision for one workload, given those considered before it, and what is stopped for it."""
        hopeless = _impossible(workload, self._pools)
        if hopeless:
            return [hopeless]
        if workload.held and workload.held_until and workload.held_until > self._now:
            return [self._held(workload.of(workload.workers_least), workload.held, workload.held_until)]
        workload = self._sized(workload)
        if all(self._reserved.get(pool, 0) >= self._policy.reservations for pool in workload.pools):
            return self._beyond(workload)
        slot = self._timeline.earliest(workload)
        if slot is None or slot.start > self._ready:
            reclaimed = self._reclaim(workload)
            if reclaimed:
                return reclaimed
        if slot is None:
            return [self._wait(workload, eta=None)]
        self._timeline.reserve(workload, slot)
        if slot.start <= self._now:
            return [self._start(workload, slot.placement)]
        pool = slot.placement.pool
        if slot.start <= self._ready and self._standings.is_promised(workload, pool):
            self._standings.start(workload, pool)
        self._reserved[pool] = self._reserved.get(pool, 0) + 1
        self._last[pool] = max(slot.start, self._last.get(pool, slot.start))
        return [self._wait(workload, eta=slot.start)]

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
        self._facts.start(workload, placement)
        self._standings.start(workload, placement.pool)
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
            self._standings.start(workload, pool)
            self._timeline.reserve(workload, Slot(ready, placement))
            detail = f"{len(victims)} borrowing in {pool} told to stop, with {self._grace} s of grace"
            stops = [Preempt(v.id, YIELD if v.firm_id == workload.firm_id else RECLAIM, workload.id) for v in victims]
            return [*stops, Wait(workload.id, WaitReason.RECLAIM, detail, ready)]
        return []

    def _fewest(self, workload: Waiting, pool: PoolName, ready: datetime) -> list[Running]:
        """Enough work to stop, its slots released in the timeline from `ready` on, and none of it for nothing."""
        minimum = timedelta(seconds=self._policy.minimum_seconds)
        stopped: list[Running] = []
        for work in self._standings.victims(workload, pool, now=self._now, minimum=minimum):
            self._timeline.release(work, ready)
            stopped.append(work)
            if self._timeline.fits_in(pool, workload, ready):
                break
        needed: list[Running] = []
        enough = self._timeline.fits_in(pool, workload, ready) is not None
        for work in reversed(stopped):  # the last one made it fit; of those before, the dearest may be spared first
            self._timeline.keep(work, ready)
            if enough and not self._timeline.fits_in(pool, workload, ready):
                self._timeline.release(work, ready)
                needed.append(work)
        return needed

    def _held(self, workload: Waiting, reason: WaitReason, until: datetime) -> Wait:
        if reason is not WaitReason.BACKOFF:  # nobody knows when money or a price comes
            return Wait(workload.id, reason, f"asked again at {until:%H:%M:%S} UTC", None)
        slot = self._timeline.earliest(workload, not_before=until)
        return Wait(workload.id, reason, f"tried again at {until:%H:%M:%S} UTC", slot.start if slot else None)

    def _beyond(self, workload: Waiting) -> list[Decision]:
        kind = _kind(workload)
        placement = None if kind in self._stuck else self._timeline.fits(workload, self._now)
        if placement:
            self._timeline.reserve(workload, Slot(self._now, placement))
            return [self._start(workload, placement)]
        self._stuck.add(kind)
        pool = workload.pools[0]
        capacity = self._facts.size(pool)
        ahead = self._work_ahead.get(pool, 0)
        self._work_ahead[pool] = ahead + workload.need * (workload.seconds or 0)
        if not capacity or workload.seconds is None:
            return [self._wait(workload, eta=None)]
        start = self._last.get(pool, self._now) + timedelta(seconds=ahead // capacity)
        return [self._wait(workload, eta=start, estimated=True)]

    def _wait(self, workload: Waiting, *, eta: datetime | None, estimated: bool = False) -> Wait:
        """The rule that holds it, told for the pool that comes nearest to taking it."""
        kind = _kind(workload)
        if kind not in self._told:
            reasons = [self._reason(workload, pool) for pool in workload.pools]
            self._told[kind] = min(reasons, key=lambda r: _NEARNESS.index(r[0]))
        reason, detail = self._told[kind]
        return Wait(workload.id, reason, detail, eta, estimated)

    def _reason(self, workload: Waiting, pool: PoolName) -> tuple[WaitReason, str]:
        ground, ask = self._facts.capacity.get(pool), ask_of(workload)
        if ground is None or not could_hold(ground.empty(), ask):
            up = len(ground.ids) if ground else 0
            return WaitReason.NO_NODE, f"{_gang(workload)}; {pool} has {up} nodes up and open"
        key: QuotaKey = (workload.firm_id, pool)
        if self._facts.quota_left(key, workload.qos) < workload.need:
            return self._no_quota(workload, key, self._facts.used.get(key, 0))
        free = self._facts.free[pool]
        if not could_hold(free, ask):
            total = gpus(int(free.gpu_milli.sum()))
            return WaitReason.NO_ROOM, f"{_gang(workload)}; {total} of {gpus(self._facts.size(pool))} free in {pool}"
        closed = self._timeline.closed(pool, workload, self._now)
        if closed and not could_hold(free.without(closed), ask):
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
        left = max(0, self._facts.lent_left(key))
        return WaitReason.NOT_LENT, f"{needs}; {root} has {gpus(left)} of {gpus(self._sharing.lent(root, pool))} left"


_MOMENT = timedelta(milliseconds=1)
_Kind: TypeAlias = tuple[object, ...]


def _kind(workload: Waiting) -> _Kind:
    """What a decision about it rests on, but its place in the queue."""
    return (
        workload.firm_id, workload.pools, workload.workers, workload.shape, workload.spread, workload.topology,
        workload.qos, workload.seconds, workload.checkpoints,
    )  # fmt: skip


_NEARNESS = [
    WaitReason.BEHIND,
    WaitReason.NO_ROOM,
    WaitReason.WINDOW,
    WaitReason.RECLAIM,
    WaitReason.NOT_LENT,
    WaitReason.NO_QUOTA,
    WaitReason.NO_NODE,
]


def _most(workload: Waiting, pool: PoolName, sharing: Sharing) -> int:
    """What the workload's firm could use for it if nobody used anything."""
    key = workload.firm_id, pool
    return sharing.quota(key).nominal if workload.qos is QoS.RESERVED else sharing.most(key)


def _pools_of(state: State) -> set[PoolName]:
    """Pools that have a node or in which somebody has a quota."""
    return {node.pool for node in state.nodes.values()} | {pool for _, pool in state.quotas}


def _impossible(workload: Waiting, known: set[PoolName]) -> Reject | None:
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


def decision_for(decisions: Iterable[Decision], workload_id: WorkloadId) -> Decision:
    """The decision about one waiting workload. Raises KeyError when there is none."""
    for decision in decisions:
        if decision.workload_id == workload_id and not isinstance(decision, Preempt):
            return decision
    raise KeyError(workload_id)
