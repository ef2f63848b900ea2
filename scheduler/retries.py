"""What follows the end of an attempt: over, or once more after a pause. Decided by cause."""

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from scheduler.vocabulary import EndCause, JobState, WorkloadKind


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and with what pauses. A replica is tried for ever."""

    setups: int = 2  # further attempts of a job after a node could not prepare it
    losses: int = 5  # further attempts of a job after the platform lost it
    pause_seconds: int = 2  # before the second attempt; doubled each time
    pause_seconds_max: int = 300
    healthy_ms: int = 600_000  # a replica that ran this long starts counting anew


@dataclass(frozen=True, slots=True)
class Finish:
    """The workload is over."""

    state: JobState


@dataclass(frozen=True, slots=True)
class Again:
    """The workload is queued again; it is not looked at before the pause has passed."""

    failures: int  # attempts in a row that ended early, this one included
    pause_seconds: int


@dataclass(frozen=True, slots=True)
class Rest:
    """The workload is laid aside until its owner takes it up again."""

    failures: int


Next: TypeAlias = Finish | Again | Rest


def after_end(
    kind: WorkloadKind,
    cause: EndCause,
    *,
    failures: int,
    ran_ms: int,
    stop_requested: bool,
    pause_requested: bool = False,
    program_errors: int = 0,
    retries: int = 0,
    policy: RetryPolicy,
) -> Next:
    """What follows `cause`, given the early ends before this one and what the owner asked for.

    `retries` is how often the owner has it tried again after an error of its own, `program_errors` how many there were.
    """
    following = _after(kind, cause, failures, ran_ms, stop_requested, program_errors, retries, policy)
    if pause_requested and isinstance(following, Again):
        return Rest(following.failures)
    return following


def _after(
    kind: WorkloadKind,
    cause: EndCause,
    failures: int,
    ran_ms: int,
    stop_requested: bool,
    program_errors: int,
    retries: int,
    policy: RetryPolicy,
) -> Finish | Again:
    if kind is WorkloadKind.REPLICA:
        if stop_requested:
            return Finish(JobState.CANCELLED)
        return _again(0 if ran_ms >= policy.healthy_ms else failures, cause, policy)
    match cause:
        case EndCause.DONE:
            return Finish(JobState.SUCCEEDED)
        case EndCause.CANCELLED:
            return Finish(JobState.CANCELLED)
        case EndCause.PROGRAM_ERROR if program_errors < retries and not stop_requested:
            return Again(failures, _pause(program_errors, policy))
        case EndCause.PROGRAM_ERROR | EndCause.TIME_LIMIT | EndCause.SPENDING_CAP:
            return Finish(JobState.CANCELLED if stop_requested else JobState.FAILED)
        case EndCause.SETUP | EndCause.NODE_LOST | EndCause.LEASE_LOST | EndCause.PLATFORM:
            if stop_requested:
                return Finish(JobState.CANCELLED)
            allowed = policy.setups if cause is EndCause.SETUP else policy.losses
            return Finish(JobState.FAILED) if failures >= allowed else _again(failures, cause, policy)
        case EndCause.EVICTED | EndCause.UNPAID | EndCause.PAUSED:
            return Finish(JobState.CANCELLED) if stop_requested else _again(failures, cause, policy)
        case _:
            assert_never(cause)


def _again(failures: int, cause: EndCause, policy: RetryPolicy) -> Again:
    if cause in (EndCause.EVICTED, EndCause.UNPAID, EndCause.PAUSED):
        return Again(failures, 0)
    return Again(failures + 1, _pause(failures, policy))


def _pause(before: int, policy: RetryPolicy) -> int:
    """Doubled with each failure before this one, up to a limit."""
    return min(policy.pause_seconds << min(before, 20), policy.pause_seconds_max)
