"""What a cycle decided: about single workloads, and about all the rest of a kind at once.

Nobody remakes a hundred thousand waits because one job has ended. What a cycle did not look at one by one waits for
the reason of its kind; `told` says it for each workload, with the expected times that the cycle leaves out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from quotas.vocabulary import PoolName
from scheduler.index import indexed
from scheduler.lines import Kind, duration, is_held, kind_of
from scheduler.ordering import in_order
from scheduler.snapshot import State, Waiting
from scheduler.vocabulary import Decision, Preempt, Wait, WaitReason, WorkloadId


@dataclass(frozen=True, slots=True)
class KindWaits:
    """Work of a kind without a decision of its own waits, if it takes at least so many `seconds`.

    `after` is when the last of what has a place before it is expected to start; None: nothing known lets it start.
    """

    kind: Kind
    seconds: float
    reason: WaitReason
    detail: str
    after: datetime | None


@dataclass(frozen=True, slots=True)
class Decisions:
    """`made` for single workloads, in the order in which they were considered; `kinds` for what was not.

    Unless `is_whole` they say what is done now, and not of everybody why it waits.
    """

    made: list[Decision]
    kinds: list[KindWaits]
    is_whole: bool = True

    def by_kind(self) -> dict[Kind, list[KindWaits]]:
        """What kinds wait for, the shortest work first."""
        found: dict[Kind, list[KindWaits]] = {}
        for waits in sorted(self.kinds, key=lambda waits: waits.seconds):
            found.setdefault(waits.kind, []).append(waits)
        return found


def of_kind(workload: Waiting, kinds: dict[Kind, list[KindWaits]]) -> KindWaits | None:
    """What work without a decision of its own waits for: the last that holds for its duration."""
    mine = [waits for waits in kinds.get(kind_of(workload), ()) if waits.seconds <= duration(workload)]
    return mine[-1] if mine else None


def told(state: State, decisions: Decisions, *, now: datetime) -> list[Decision]:
    """A decision for every waiting workload and every one that has to stop; estimated times are filled in."""
    return [*decisions.made, *others(state, decisions, now=now)]


def decision_for(state: State, decisions: Decisions, workload_id: WorkloadId, *, now: datetime) -> Decision:
    """The decision about one waiting workload. Raises KeyError when there is none."""
    for decision in told(state, decisions, now=now):
        if decision.workload_id == workload_id and not isinstance(decision, Preempt):
            return decision
    raise KeyError(workload_id)


def others(state: State, decisions: Decisions, *, now: datetime) -> Iterator[Wait]:
    """In the order of the line: an estimate is what waits before in the first pool, spread over all its nodes."""
    made = {decision.workload_id for decision in decisions.made}
    kinds, sizes = decisions.by_kind(), _sizes(state)
    ahead: dict[PoolName, int] = {}  # thousandths × seconds
    for workload in (turn.workload for turn in in_order(state)):
        if workload.id in made:
            continue
        if is_held(workload, now=now):
            yield _held(workload)
            continue
        waits = of_kind(workload, kinds)
        assert waits is not None, "what is not decided by itself is decided with its kind"
        pool = workload.pools[0]
        size, before = sizes.get(pool, 0), ahead.get(pool, 0)
        if waits.after is None or not size or workload.seconds is None:
            yield Wait(workload.id, waits.reason, waits.detail, None)
            continue
        ahead[pool] = before + workload.need * workload.seconds
        eta = waits.after + timedelta(seconds=before // size)
        yield Wait(workload.id, waits.reason, waits.detail, eta, estimated=True)


def _held(workload: Waiting) -> Wait:
    """Nobody knows when money or a price comes; what backs off may start when its pause is over."""
    until, reason = workload.held_until, workload.held
    assert until is not None and reason is not None, "it is held"
    if reason is WaitReason.BACKOFF:
        return Wait(workload.id, reason, f"tried again at {until:%H:%M:%S} UTC", until, estimated=True)
    return Wait(workload.id, reason, f"asked again at {until:%H:%M:%S} UTC", None)


def _sizes(state: State) -> dict[PoolName, int]:
    """Thousandths of all open nodes, by pool."""
    _, index = indexed(state)
    return {pool: occupancy.ground.size_milli for pool, occupancy in index.pools.items()}
