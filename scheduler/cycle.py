"""One look at the queue. It decides and never acts: state in, decisions out, time as an argument.

The cycle, in order:
1. Work on a draining node is preempted.
2. Waiting work is taken in order (`ordering`). What can never run is rejected; what backs off or lacks money waits.
3. Each gets its earliest slot in the timeline (`timeline`): quota of its firm and room for the whole gang on nodes
   (`placement`). A slot that begins now is a start; any other is a wait with its reason and expected time. The slot is
   kept either way, so nobody later delays somebody earlier.
4. Beyond `Policy.reservations` per pool nothing more is reserved: those may still start now where they delay nobody,
   and their expected time is an estimate.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from quotas.vocabulary import PoolName
from scheduler.ordering import in_order
from scheduler.placement import could_hold, place_gang
from scheduler.snapshot import Change, QuotaKey, State, Waiting, apply
from scheduler.timeline import Slot, Timeline
from scheduler.vocabulary import (
    Decision,
    NodeId,
    Placement,
    Preempt,
    Reject,
    RejectReason,
    Start,
    Wait,
    WaitReason,
    WorkloadId,
)


@dataclass(frozen=True, slots=True)
class Policy:
    """What an administrator can turn."""

    reservations: int = 100  # waiting workloads per pool that get a place in the timeline
    overrun_seconds: int = 30  # work past its expected end is expected to end this much from now


def decide(state: State, changes: Iterable[Change], policy: Policy, *, now: datetime) -> tuple[State, list[Decision]]:
    """The state after `changes`, and a decision for each waiting workload and each that has to stop.

    The decisions depend on the resulting state, `policy` and `now` alone: feeding the same facts in another order,
    or all at once, gives the same ones.
    """
    seen = apply(state, changes)
    decisions: list[Decision] = list(_drains(seen))
    cycle = _Cycle(seen, policy, now)
    decisions += [cycle.consider(workload) for workload in in_order(seen.waiting.values())]
    check_decisions(seen, decisions)
    return seen, decisions


def refusal(workload: Waiting, state: State) -> Reject | None:
    """Why this workload can never run on the pools and quotas as they are; asked before it is accepted."""
    hopeless = _impossible(workload, state)
    if hopeless:
        return hopeless
    pools = {node.pool for node in state.nodes.values()}
    for pool in workload.pools:
        quota = state.nominal.get((workload.firm_id, pool), 0)
        capacity = {node.id: int(node.gpu_milli) for node in state.nodes.values() if node.pool == pool}
        if pool in pools and quota >= workload.need and could_hold(capacity, workload.workers, workload.gpu_milli):
            return None
    best = max(state.nominal.get((workload.firm_id, pool), 0) for pool in workload.pools)
    if best < workload.need:
        detail = f"it needs {gpus(workload.need)} and the firm's quota in {_either(workload.pools)} is {gpus(best)}"
        return Reject(workload.id, RejectReason.NO_QUOTA, detail)
    detail = f"{_gang(workload)} fit on no set of nodes of {_either(workload.pools)}, even empty ones"
    return Reject(workload.id, RejectReason.TOO_LARGE, detail)


def check_decisions(state: State, decisions: list[Decision]) -> None:
    """S1 and S3 on the outcome of a cycle; AssertionError when one of them is broken."""
    decided = [d.workload_id for d in decisions if not isinstance(d, Preempt)]
    assert sorted(decided) == sorted(state.waiting), "every waiting workload gets exactly one decision"
    used: dict[NodeId, int] = {}
    placed = [work.placement for work in state.running.values()]
    starts = [decision for decision in decisions if isinstance(decision, Start)]
    for placement in [*placed, *(start.placement for start in starts)]:
        for node in placement.nodes:
            used[node] = used.get(node, 0) + placement.gpu_milli
    for start in starts:
        assert len(start.placement.nodes) == state.waiting[start.workload_id].workers, "a gang is placed whole"
        for node in start.placement.nodes:
            assert state.nodes[node].is_open, "closed nodes take no work"
            assert used[node] <= state.nodes[node].gpu_milli, "a cycle cannot mint GPUs"


def gpus(milli: int) -> str:
    """`2000` → `2`, `2500` → `2.5`: accelerators, for people."""
    return f"{milli / 1000:g}"


class _Cycle:
    """The timeline as it fills up, and what is really free now: what runs, and what this cycle starts."""

    def __init__(self, state: State, policy: Policy, now: datetime) -> None:
        self._state, self._policy, self._now = state, policy, now
        self._timeline = Timeline(state, now=now, overrun_seconds=policy.overrun_seconds)
        self._facts = Timeline(state, now=now, overrun_seconds=policy.overrun_seconds)
        self._reserved: dict[PoolName, int] = {}
        self._work_ahead: dict[PoolName, int] = {}  # thousandths × seconds, of what waits before
        self._last: dict[PoolName, datetime] = {}

    def consider(self, workload: Waiting) -> Decision:
        """The decision for one workload, given those considered before it."""
        hopeless = _impossible(workload, self._state)
        if hopeless:
            return hopeless
        if workload.held and workload.held_until and workload.held_until > self._now:
            return self._held(workload, workload.held, workload.held_until)
        if all(self._reserved.get(pool, 0) >= self._policy.reservations for pool in workload.pools):
            return self._beyond(workload)
        slot = self._timeline.earliest(workload)
        if slot is None:
            return self._wait(workload, eta=None)
        self._timeline.reserve(workload, slot)
        if slot.start <= self._now:
            return self._start(workload, slot.placement)
        pool = slot.placement.pool
        self._reserved[pool] = self._reserved.get(pool, 0) + 1
        self._last[pool] = max(slot.start, self._last.get(pool, slot.start))
        return self._wait(workload, eta=slot.start)

    def _start(self, workload: Waiting, placement: Placement) -> Start:
        self._facts.reserve(workload, Slot(self._now, placement))
        return Start(workload.id, placement)

    def _held(self, workload: Waiting, reason: WaitReason, until: datetime) -> Wait:
        if reason is not WaitReason.BACKOFF:  # nobody knows when money or a price comes
            return Wait(workload.id, reason, f"asked again at {until:%H:%M:%S} UTC", None)
        slot = self._timeline.earliest(workload, not_before=until)
        return Wait(workload.id, reason, f"tried again at {until:%H:%M:%S} UTC", slot.start if slot else None)

    def _beyond(self, workload: Waiting) -> Decision:
        placement = self._timeline.fits(workload, self._now)
        if placement:
            self._timeline.reserve(workload, Slot(self._now, placement))
            return self._start(workload, placement)
        pool = workload.pools[0]
        capacity = sum(n.gpu_milli for n in self._state.nodes.values() if n.pool == pool and n.is_open)
        ahead = self._work_ahead.get(pool, 0)
        self._work_ahead[pool] = ahead + workload.need * (workload.seconds or 0)
        if not capacity or workload.seconds is None:
            return self._wait(workload, eta=None)
        start = self._last.get(pool, self._now) + timedelta(seconds=ahead // capacity)
        return self._wait(workload, eta=start, estimated=True)

    def _wait(self, workload: Waiting, *, eta: datetime | None, estimated: bool = False) -> Wait:
        """The rule that holds it, told for the pool that comes nearest to taking it."""
        reasons = [self._reason(workload, pool) for pool in workload.pools]
        reason, detail = min(reasons, key=lambda r: _NEARNESS.index(r[0]))
        return Wait(workload.id, reason, detail, eta, estimated)

    def _reason(self, workload: Waiting, pool: PoolName) -> tuple[WaitReason, str]:
        capacity = {n.id: int(n.gpu_milli) for n in self._state.nodes.values() if n.pool == pool and n.is_open}
        if not could_hold(capacity, workload.workers, workload.gpu_milli):
            return WaitReason.NO_NODE, f"{_gang(workload)}; {pool} has {len(capacity)} nodes up and open"
        key: QuotaKey = (workload.firm_id, pool)
        soon = self._now + timedelta(microseconds=1)
        left, quota = self._facts.quota_left(key, self._now, soon), self._state.nominal.get(key, 0)
        if left < workload.need:
            detail = (
                f"it needs {gpus(workload.need)}; the quota in {pool} is {gpus(quota)}, {gpus(quota - left)} in use"
            )
            return WaitReason.NO_QUOTA, detail
        free = self._facts.free(pool, self._now, soon)
        if place_gang(free, workload.workers, workload.gpu_milli) is None:
            total = gpus(sum(free.values()))
            return WaitReason.NO_ROOM, f"{_gang(workload)}; {total} of {gpus(sum(capacity.values()))} free in {pool}"
        return WaitReason.BEHIND, f"its place in {pool} is kept for earlier work"


_NEARNESS = [WaitReason.BEHIND, WaitReason.NO_ROOM, WaitReason.NO_QUOTA, WaitReason.NO_NODE]


def _drains(state: State) -> Iterable[Preempt]:
    draining = {node.id for node in state.nodes.values() if node.is_draining}
    for work in sorted(state.running.values(), key=lambda r: r.id):
        if not work.is_stopping and draining.intersection(work.placement.nodes):
            yield Preempt(work.id, "drain")


def _impossible(workload: Waiting, state: State) -> Reject | None:
    known: set[PoolName] = {node.pool for node in state.nodes.values()}
    known |= {pool for _, pool in state.nominal}
    if known.isdisjoint(workload.pools):
        return Reject(workload.id, RejectReason.UNKNOWN_POOL, f"there is no pool {_either(workload.pools)}")
    return None


def _gang(workload: Waiting) -> str:
    of = "worker" if workload.workers == 1 else "workers"
    return f"{workload.workers} {of} of {gpus(workload.gpu_milli)}"


def _either(pools: tuple[PoolName, ...]) -> str:
    return " or ".join(pools)


def decision_for(decisions: Iterable[Decision], workload_id: WorkloadId) -> Decision:
    """The decision about one waiting workload. Raises KeyError when there is none."""
    for decision in decisions:
        if decision.workload_id == workload_id and not isinstance(decision, Preempt):
            return decision
    raise KeyError(workload_id)
