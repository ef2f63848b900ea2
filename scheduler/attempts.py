"""The life of an attempt after its placement: claimed, started, kept alive, stopped, over. One transaction each.

Whoever changes an attempt locks its workload first, then the attempt; a heartbeat too, for what it keeps (log lines,
progress) belongs to the workload. Only marks that touch no other row (ordered, cleared) lock the attempt alone.
"""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import same_secret
from kit.db import notify
from kit.errors import Conflict, Unauthenticated
from kit.units import GpuMs, gpu_ms
from quotas import api as quotas
from quotas.vocabulary import ComputeUsage, FirmId, HoldId, PoolName, ProjectId, QoS, centre_of
from scheduler import artifacts
from scheduler.adapters import store
from scheduler.adapters.tables import AttemptRow, WorkloadRow
from scheduler.admission import clear_wait, topic
from scheduler.lifetimes import run_ms
from scheduler.retries import Again, Finish, Rest, after_end
from scheduler.terms import Terms
from scheduler.vocabulary import (
    JOBS_CHANNEL,
    AttemptId,
    AttemptIdentity,
    AttemptState,
    EndCause,
    JobState,
    WaitReason,
    WorkloadId,
    WorkloadKind,
    attempt_may_become,
    may_become,
)

FENCE_LOST = "fence_lost"
MESSAGE_CHARS_MAX = 2000
SPENT = "it has spent what its cap allows"


def fence_lost() -> Conflict:
    """The answer to a runner whose attempt is over: it must end at once."""
    return Conflict("this attempt has no right to run any more", code=FENCE_LOST, hint="stop now")


async def authenticate_attempt(tx: AsyncSession, bearer: str | None, *, now: datetime) -> AttemptIdentity:
    """Who a runner's token `ha_<attempt id>_<secret>` belongs to.

    Raises Unauthenticated for a token that is none, Conflict (`fence_lost`) when its attempt is over.
    """
    attempt = await check_token(tx, bearer)
    workload = await store.workload(tx, attempt.workload_id)
    assert workload is not None, "an attempt belongs to a workload"
    if attempt.state == AttemptState.ENDED or attempt.fence != workload.fence:
        raise fence_lost()
    return AttemptIdentity(
        AttemptId(attempt.id),
        WorkloadId(workload.id),
        WorkloadKind(workload.kind),
        FirmId(workload.firm_id),
        ProjectId(workload.project_id),
        attempt.fence,
        attempt.stop_requested_at is not None,
    )


async def check_token(tx: AsyncSession, bearer: str | None) -> AttemptRow:
    """The attempt whose token this is, over or not. Raises Unauthenticated."""
    kind, _, rest = (bearer or "").partition("_")
    attempt_id, _, secret = rest.rpartition("_")
    attempt = await store.attempt(tx, attempt_id) if kind == "ha" and attempt_id else None
    if attempt is None or not same_secret(secret, attempt.token_hash):
        raise Unauthenticated("this is not the token of an attempt")
    return attempt


async def claim(tx: AsyncSession, identity: AttemptIdentity, runner: str, *, terms: Terms, now: datetime) -> AttemptRow:
    """The runner asks for its plan: from here on it holds the lease. The first runner wins, it may ask again.

    Raises Conflict (`fence_lost`) for a second runner of the same attempt.
    """
    _, attempt = await _live(tx, identity)
    if attempt.state == AttemptState.PLACED:
        _become(attempt, AttemptState.CLAIMED)
        attempt.runner, attempt.claimed_at = runner, now
    elif attempt.runner != runner:
        raise fence_lost()
    attempt.lease_until = now + timedelta(seconds=terms.lease_seconds)
    await tx.flush()
    return attempt


async def begin(tx: AsyncSession, identity: AttemptIdentity, *, terms: Terms, now: datetime) -> None:
    """The program has started: the paid clock ticks. Repeating it changes nothing. Raises Conflict (`fence_lost`)."""
    workload, attempt = await _live(tx, identity)
    if attempt.state == AttemptState.PLACED:
        raise fence_lost()
    attempt.lease_until = now + timedelta(seconds=terms.lease_seconds)
    if attempt.state == AttemptState.CLAIMED:
        _become(attempt, AttemptState.RUNNING)
        attempt.started_at = now
        workload.state = JobState.RUNNING
        workload.started_at = workload.started_at or now
        await events.append(
            tx, topic(workload, "running"), workload.id, {"attempt_id": attempt.id}, now=now, firm_id=workload.firm_id
        )
    await tx.flush()


async def request_stop(tx: AsyncSession, attempt: AttemptRow, cause: EndCause, *, now: datetime) -> None:
    """Ask the runner to stop, for a cause that becomes the end's. The first cause stays; the word to cancel wins."""
    if attempt.stop_requested_at is None or cause is EndCause.CANCELLED:
        attempt.stop_requested_at = attempt.stop_requested_at or now
        attempt.stop_cause = cause
        await tx.flush()


async def end(
    tx: AsyncSession,
    workload: WorkloadRow,
    attempt: AttemptRow,
    cause: EndCause,
    message: str,
    *,
    terms: Terms,
    now: datetime,
    ran_ms: int | None = None,
    exit_code: int | None = None,
) -> None:
    """The attempt is over: settle or release its hold, give back its room, publish what it made, and say what follows.

    Both rows are locked by the caller. `ran_ms` is the runner's count; without one nothing is charged.
    """
    assert attempt.state != AttemptState.ENDED, "an attempt ends once"
    _become(attempt, AttemptState.ENDED)
    attempt.ended_at, attempt.cause, attempt.message = now, cause, message[:MESSAGE_CHARS_MAX]
    attempt.exit_code, attempt.ran_ms = exit_code, billable_ms(attempt, ran_ms, now=now)
    await tx.flush()
    lost = lost_ms(attempt, cause, terms, reported=ran_ms is not None)
    await _settle(tx, workload, attempt, cause, lost, now=now)
    workload.kept_ms += 0 if cause is EndCause.DONE else attempt.kept_ms
    workload.lost_gpu_ms += gpu_ms(workload.workers * workload.gpu_milli, lost)
    placed = (await store.placements(tx, [attempt.id]))[attempt.id]
    await store.give_back(tx, FirmId(workload.firm_id), attempt.pool, placed)
    if paid := paid_ms(attempt, cause):
        used = workload.workers * workload.gpu_milli * paid // 1000
        half_life = terms.half_life_seconds
        await store.count_usage(tx, workload.firm_id, attempt.pool, used, half_life_seconds=half_life, now=now)
    if cause is EndCause.DONE:
        await artifacts.publish(tx, workload, attempt, now=now)
    following = after_end(
        WorkloadKind(workload.kind),
        cause,
        failures=workload.failures,
        ran_ms=attempt.ran_ms or 0,
        stop_requested=workload.stop_requested_at is not None,
        pause_requested=workload.pause_requested_at is not None,
        program_errors=workload.program_errors,
        retries=workload.retries,
        policy=terms.retry,
    )
    workload.last_cause, workload.last_message = cause, attempt.message
    workload.program_errors += cause is EndCause.PROGRAM_ERROR
    if not isinstance(following, Finish) and is_spent(workload):
        workload.last_cause, workload.last_message = EndCause.SPENDING_CAP, SPENT
        following = Finish(JobState.FAILED)
    match following:
        case Finish(state):
            await finish_workload(tx, workload, state, now=now)
        case Again(failures, pause):
            await _queue_again(tx, workload, attempt, failures, pause, now=now)
        case Rest(failures):
            workload.failures = failures
            await lay_aside(tx, workload, now=now)
    await notify(tx, JOBS_CHANNEL, workload.id)


async def finish_workload(tx: AsyncSession, workload: WorkloadRow, state: JobState, *, now: datetime) -> None:
    """The workload is over; its events say how."""
    assert may_become(JobState(workload.state), state), f"{workload.state} cannot become {state}"
    workload.state, workload.ended_at = state, now
    clear_wait(workload)
    await tx.flush()
    body = {
        "state": state,
        "kind": workload.kind,
        "recipe": workload.recipe,
        "cause": workload.last_cause,
        "message": workload.last_message,
        "charged_micro_yuan": workload.charged_micro_yuan,
    }
    await events.append(tx, topic(workload, state.value), workload.id, body, now=now, firm_id=workload.firm_id)
    await events.append(tx, "workload.ended", workload.id, body, now=now, firm_id=workload.firm_id)


async def lay_aside(tx: AsyncSession, workload: WorkloadRow, *, now: datetime) -> None:
    """It holds nothing and waits for nobody until its owner takes it up again."""
    assert may_become(JobState(workload.state), JobState.PAUSED), f"{workload.state} cannot become paused"
    workload.state = JobState.PAUSED
    clear_wait(workload)
    await tx.flush()
    body = {"reason": workload.pause_reason, "kept_ms": workload.kept_ms}
    await events.append(tx, topic(workload, "paused"), workload.id, body, now=now, firm_id=workload.firm_id)


def is_spent(workload: WorkloadRow) -> bool:
    """Whether nothing of a hard cap is left."""
    cap = workload.hard_cap_micro_yuan
    return cap is not None and workload.charged_micro_yuan >= cap


def billable_ms(attempt: AttemptRow, ran_ms: int | None, *, now: datetime) -> int:
    """The runner's count, never more than has passed here since its start nor than money was held for."""
    known = max(attempt.metered_ms, attempt.kept_ms)
    if attempt.started_at is None or ran_ms is None:
        return known
    passed = run_ms(attempt.started_at, now)
    return max(known, min(ran_ms, passed, attempt.metered_ms + attempt.held_seconds * 1000))


def paid_ms(attempt: AttemptRow, cause: EndCause) -> int:
    """Of an attempt that ends like this, how much is paid for: all, or what is kept where the platform broke it."""
    return max(attempt.metered_ms, attempt.kept_ms) if cause.is_free else attempt.ran_ms or 0


def lost_ms(attempt: AttemptRow, cause: EndCause, terms: Terms, *, reported: bool) -> int:
    """What the platform lost of it after its last checkpoint; of a runner that fell silent, until it was last heard."""
    if not cause.is_free or attempt.started_at is None:
        return 0
    ran = attempt.ran_ms or 0
    if not reported and attempt.lease_until is not None:
        ran = run_ms(attempt.started_at, attempt.lease_until - timedelta(seconds=terms.lease_seconds))
    return max(0, ran - paid_ms(attempt, cause))


def usage_of(workload: WorkloadRow, attempt: AttemptRow, until_ms: int, note: str = "") -> ComputeUsage:
    """What was used from the last settled millisecond of the attempt to `until_ms` after its start."""
    assert attempt.started_at is not None, "only what has started uses anything"
    ran = until_ms - attempt.metered_ms
    return ComputeUsage(
        subject=workload.id,
        attempt_id=attempt.id,
        firm_id=FirmId(workload.firm_id),
        project_id=ProjectId(workload.project_id),
        pool=PoolName(attempt.pool),
        centre=centre_of(PoolName(attempt.pool)),
        qos=QoS(workload.qos),
        gpu_ms=GpuMs(gpu_ms(workload.workers * workload.gpu_milli, ran)),
        started_at=attempt.started_at + timedelta(milliseconds=attempt.metered_ms),
        ended_at=attempt.started_at + timedelta(milliseconds=until_ms),
        note=note,
    )


async def _settle(
    tx: AsyncSession, workload: WorkloadRow, attempt: AttemptRow, cause: EndCause, lost: int, *, now: datetime
) -> None:
    """Charge what is paid for; a loss is a line of the statement too, of nothing or beside what was kept."""
    paid = paid_ms(attempt, cause)
    if attempt.started_at is None or (paid <= attempt.metered_ms and not lost):
        await quotas.release_hold(tx, hold_id=HoldId(attempt.hold_id), reason=cause.value, now=now)
        return
    after = " after its last checkpoint" if attempt.kept_ms else ""
    lost_gpu_ms = gpu_ms(workload.workers * workload.gpu_milli, lost)
    note = f"{lost_gpu_ms / 1000:,.1f} GPU-s{after} are not charged: {cause.value}" if lost else ""
    usage = usage_of(workload, attempt, paid, note)
    charge = await quotas.settle_compute(tx, hold_id=HoldId(attempt.hold_id), usage=usage, now=now)
    attempt.metered_ms = paid
    workload.charged_micro_yuan += charge.amount


async def _queue_again(
    tx: AsyncSession, workload: WorkloadRow, attempt: AttemptRow, failures: int, pause: int, *, now: datetime
) -> None:
    assert may_become(JobState(workload.state), JobState.QUEUED), "what is over stays over"
    workload.state, workload.failures, workload.progress = JobState.QUEUED, failures, None
    workload.wait_reason = WaitReason.BACKOFF if pause else WaitReason.NEW
    workload.wait_detail = f"its attempt {attempt.fence} ended: {attempt.message or attempt.cause}"
    workload.held_until = now + timedelta(seconds=pause) if pause else None
    await tx.flush()
    body = {"attempt_id": attempt.id, "cause": attempt.cause, "message": attempt.message, "pause_seconds": pause}
    await events.append(tx, topic(workload, "requeued"), workload.id, body, now=now, firm_id=workload.firm_id)


async def _live(tx: AsyncSession, identity: AttemptIdentity) -> tuple[WorkloadRow, AttemptRow]:
    workload = await store.workload(tx, identity.workload_id, lock=True)
    attempt = await store.attempt(tx, identity.attempt_id, lock=True)
    assert workload is not None and attempt is not None, "an identity was made from both"
    if attempt.state == AttemptState.ENDED:
        raise fence_lost()
    return workload, attempt


def _become(attempt: AttemptRow, state: AttemptState) -> None:
    assert attempt_may_become(AttemptState(attempt.state), state), f"{attempt.state} cannot become {state}"
    attempt.state = state
