"""When would it start and finish? The answer comes from the very cycle that will decide about it."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from scheduler.cycle import Policy, decide
from scheduler.decisions import decision_for
from scheduler.snapshot import Queued, State, Waiting
from scheduler.vocabulary import Preempt, Reject, Start, Wait, WaitReason


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected start and finish; None when nothing known lets it start. `reason` holds it until then."""

    start: datetime | None
    finish: datetime | None
    estimated: bool
    reason: WaitReason | None
    detail: str


def forecast(state: State, workload: Waiting, policy: Policy, *, now: datetime) -> Forecast:
    """What would happen to `workload` if it were submitted now; `state` is not changed."""
    seen, decisions = decide(state, [Queued(workload)], policy, now=now)
    match decision_for(seen, decisions, workload.id, now=now):
        case Start():
            return Forecast(now, _finish(now, workload.seconds), False, None, "it starts at once")
        case Wait(_, reason, detail, eta, estimated):
            finish = _finish(eta, workload.seconds) if eta else None
            return Forecast(eta, finish, estimated, reason, detail)
        case Reject(_, _, detail):
            return Forecast(None, None, False, None, detail)
        case Preempt():
            raise AssertionError("a waiting workload cannot be preempted")


def _finish(start: datetime, seconds: int | None) -> datetime | None:
    return start + timedelta(seconds=seconds) if seconds is not None else None
