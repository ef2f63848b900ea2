"""The life of an attempt after its placement: claimed, started, kept alive, stopped, over. One transaction each.

Whoever changes an attempt locks its workload first, then the attempt; a heartbeat too, for what it keeps (log lines,
progress) belongs to the workload. Only marks that touch no other row (ordered, cleared) lock the attempt alone.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import same_secret
from kit.db import notify
from kit.errors import Conflict, Unauthenticated
from kit.units import GpuMs, gpu_ms
from quotas import api as quotas
from quotas.vocabulary import ComputeUsage, FirmId, HoldId, PoolName, ProjectId, QoS, centre_of
from scheduler import artifacts, health
from scheduler.adapters import beginnings, records, store, taking, versions
from scheduler.adapters.records import AnyAttempt, AnyWorkload, Attempt, Workload
from scheduler.adapters.tables import AttemptRow, WorkloadRow
from scheduler.admission import clear_wait, topic, whole_again
from scheduler.facts import placement_of
from scheduler.lifetimes import run_ms
from scheduler.retries import Again, Finish, Rest, after_end
from scheduler.sharing import QuotaKey
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
NAMED_AT_MOST = 100  # above that many at once a wake-up names nobody
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
    if identity not in await claim_many(tx, {identity: runner}, terms=terms, now=now):
        raise fence_lost()
    attempt = await store.attempt(tx, identity.attempt_id)
    assert attempt is not None, "it was claimed just now"
    return attempt


async def claim_many(
    tx: AsyncSession, runners: Mapping[AttemptIdentity, str], *, terms: Terms, now: datetime
) -> set[AttemptIdentity]:
    """The same for many at once; whose claim comes too late is missing."""
    until = now + timedelta(seconds=terms.lease_seconds)
    claimed = await beginnings.claim(tx, {one.attempt_id: by for one, by in runners.items()}, until=until, now=now)
    return {one for one in runners if one.attempt_id in claimed}


async def begin(tx: AsyncSession, identity: AttemptIdentity, *, terms: Terms, now: datetime) -> None:
    """The program has started: the paid clock ticks. Repeating it changes nothing. Raises Conflict (`fence_lost`)."""
    if identity not in await begin_many(tx, [identity], terms=terms, now=now):
        raise fence_lost()


async def begin_many(
    tx: AsyncSession, identities: Collection[AttemptIdentity], *, terms: Terms, now: datetime
) -> set[AttemptIdentity]:
    """The same for many at once; who may not begin is missing."""
    until = now + timedelta(seconds=terms.lease_seconds)
    begun = await beginnings.begin(tx, [one.attempt_id for one in identities], until=until, now=now)
    async with events.together(tx):
        for one in begun:
            if one.is_first:
                subject, body = one.workload_id, {"attempt_id": one.id}
                await events.append(tx, topic(one, "running"), subject, body, now=now, firm_id=one.firm_id)
    ids = {one.id for one in begun}
    return {one for one in identities if one.attempt_id in ids}


async def request_stop(tx: AsyncSession, attempt: AttemptRow, cause: EndCause, why: str, *, now: datetime) -> None:
    """Ask the runner to stop, for a cause and with a message that become the end's.

    The first cause stays; the word to cancel wins.
    """
    if attempt.stop_requested_at is None or cause is EndCause.CANCELLED:
        attempt.stop_requested_at = attempt.stop_requested_at or now
        attempt.stop_cause, attempt.stop_message = cause, why
        await tx.flush()


@dataclass(frozen=True, slots=True)
class Ending:
    """An attempt that is over, both records locked, and why. `ran_ms` is the runner's count; None: nobody counted.

    `node_is_fit`: what it lacked says nothing against its node.
    """

    workload: Workload
    attempt: Attempt
    cause: EndCause
    message: str
    ran_ms: int | None = None
    exit_code: int | None = None
    node_is_fit: bool = False


async def end(
    tx: AsyncSession,
    workload: WorkloadRow,
    attempt: AttemptRow,
    cause: EndCause,
    message: str,
    *,
    terms: Terms,
    now: datetime,
) -> None:
    """The attempt is over, see `end_many`. The caller has locked both rows; they are brought up to date."""
    await tx.flush()
    live = await records.live_locked(tx, [attempt.id])
    assert attempt.id in live, "an attempt ends once"
    await end_many(tx, [Ending(*live[attempt.id], cause, message)], terms=terms, now=now)
    await tx.refresh(workload)
    await tx.refresh(attempt)


async def end_many(tx: AsyncSession, endings: Sequence[Ending], *, terms: Terms, now: datetime) -> None:
    """The attempts are over: give back their room, settle or release their holds, publish what they made, go on.

    Nodes and quotas before money, as in an admission: so no two transactions wait for each other in a circle.
    """
    async with events.together(tx):
        for ending in endings:
            _close(ending, now=now)
        await _give_back(tx, endings)
        await health.note(tx, endings, terms, now=now)
        await _settle(tx, endings, terms, now=now)
        await _count_usage(tx, endings, terms, now=now)
        made = await artifacts.stored_by(tx, [e.attempt.id for e in endings if e.cause is EndCause.DONE])
        for ending in endings:
            if ending.attempt.id in made:
                await artifacts.publish(tx, ending.workload, ending.attempt, now=now)
            await _go_on(tx, ending, terms, now=now)
        await records.write(tx, [ending.workload for ending in endings], [ending.attempt for ending in endings])
    named = [ending.workload.id for ending in endings] if len(endings) <= NAMED_AT_MOST else ["*"]
    await notify(tx, JOBS_CHANNEL, *named)


def _close(ending: Ending, *, now: datetime) -> None:
    attempt = ending.attempt
    assert attempt_may_become(AttemptState(attempt.state), AttemptState.ENDED), "an attempt ends once"
    attempt.state, attempt.ended_at = AttemptState.ENDED, now
    attempt.cause, attempt.message = ending.cause, ending.message[:MESSAGE_CHARS_MAX]
    attempt.exit_code, attempt.ran_ms = ending.exit_code, billable_ms(attempt, ending.ran_ms, now=now)


async def _give_back(tx: AsyncSession, endings: Sequence[Ending]) -> None:
    placed = await versions.placement_rows(tx, [ending.attempt.id for ending in endings])
    gangs = [(FirmId(e.workload.firm_id), placement_of(e.attempt, placed[e.attempt.id])) for e in endings]
    await taking.give_back_many(tx, gangs)


async def _count_usage(tx: AsyncSession, endings: Sequence[Ending], terms: Terms, *, now: datetime) -> None:
    used: Counter[QuotaKey] = Counter()
    for ending in endings:
        workload, paid = ending.workload, paid_ms(ending.attempt, ending.cause)
        key = FirmId(workload.firm_id), PoolName(ending.attempt.pool)
        used[key] += workload.need_milli * paid // 1000
    await store.count_usage(tx, used, half_life_seconds=terms.half_life_seconds, now=now)


async def _go_on(tx: AsyncSession, ending: Ending, terms: Terms, *, now: datetime) -> None:
    """What follows for the workload: it is over, or queued again."""
    workload, attempt = ending.workload, ending.attempt
    following = after_end(
        WorkloadKind(workload.kind),
        ending.cause,
        failures=workload.failures,
        ran_ms=attempt.ran_ms or 0,
        stop_requested=workload.stop_requested_at is not None,
        pause_requested=workload.pause_requested_at is not None,
        program_errors=workload.program_errors,
        retries=workload.retries,
        policy=terms.retry,
    )
    workload.last_cause, workload.last_message = ending.cause, attempt.message
    workload.program_errors += ending.cause is EndCause.PROGRAM_ERROR
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


async def finish_workload(tx: AsyncSession, workload: AnyWorkload, state: JobState, *, now: datetime) -> None:
    """The workload is over; its events say how."""
    assert may_become(JobState(workload.state), state), f"{workload.state} cannot become {state}"
    workload.state, workload.ended_at = state, now
    clear_wait(workload)
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


async def lay_aside(tx: AsyncSession, workload: AnyWorkload, *, now: datetime) -> None:
    """It holds nothing and waits for nobody until its owner takes it up again."""
    assert may_become(JobState(workload.state), JobState.PAUSED), f"{workload.state} cannot become paused"
    workload.state = JobState.PAUSED
    whole_again(workload)
    clear_wait(workload)
    await tx.flush()
    body = {"reason": workload.pause_reason, "kept_ms": workload.kept_ms}
    await events.append(tx, topic(workload, "paused"), workload.id, body, now=now, firm_id=workload.firm_id)


def is_spent(workload: AnyWorkload) -> bool:
    """Whether nothing of a hard cap is left."""
    cap = workload.hard_cap_micro_yuan
    return cap is not None and workload.charged_micro_yuan >= cap


def billable_ms(attempt: AnyAttempt, ran_ms: int | None, *, now: datetime) -> int:
    """The runner's count, never more than has passed here since its start nor than money was held for."""
    known = max(attempt.metered_ms, attempt.kept_ms)
    if attempt.started_at is None or ran_ms is None:
        return known
    passed = run_ms(attempt.started_at, now)
    return max(known, min(ran_ms, passed, attempt.metered_ms + attempt.held_seconds * 1000))


def paid_ms(attempt: AnyAttempt, cause: EndCause) -> int:
    """Of an attempt that ends like this, how much is paid for: all, or what is kept where the platform broke it."""
    return max(attempt.metered_ms, attempt.kept_ms) if cause.is_free else attempt.ran_ms or 0


def lost_ms(attempt: AnyAttempt, cause: EndCause, terms: Terms, *, reported: bool) -> int:
    """What the platform lost of it after its last checkpoint; of a runner that fell silent, until it was last heard."""
    if not cause.is_free or attempt.started_at is None:
        return 0
    ran = attempt.ran_ms or 0
    if not reported and attempt.lease_until is not None:
        ran = run_ms(attempt.started_at, attempt.lease_until - timedelta(seconds=terms.lease_seconds))
    return max(0, ran - paid_ms(attempt, cause))


def usage_of(workload: AnyWorkload, attempt: AnyAttempt, until_ms: int, note: str = "") -> ComputeUsage:
    """What was used from the last settled millisecond of the attempt to `until_ms` after its start."""
    assert attempt.started_at is not None, "only what has started uses anything"
    need, before = workload.need_milli, attempt.metered_ms  # slices of the whole: those of a share add up exactly
    return ComputeUsage(
        subject=workload.id,
        attempt_id=attempt.id,
        firm_id=FirmId(workload.firm_id),
        project_id=ProjectId(workload.project_id),
        pool=PoolName(attempt.pool),
        centre=centre_of(PoolName(attempt.pool)),
        qos=QoS(workload.qos),
        gpu_ms=GpuMs(gpu_ms(need, until_ms) - gpu_ms(need, before)),
        started_at=attempt.started_at + timedelta(milliseconds=attempt.metered_ms),
        ended_at=attempt.started_at + timedelta(milliseconds=until_ms),
        note=note,
    )


async def _settle(tx: AsyncSession, endings: Sequence[Ending], terms: Terms, *, now: datetime) -> None:
    """Charge what is paid for; a loss is a line of the statement too, of nothing or beside what was kept."""
    released: dict[HoldId, str] = {}
    owing: list[tuple[Ending, ComputeUsage]] = []
    for ending in endings:
        workload, attempt = ending.workload, ending.attempt
        lost = lost_ms(attempt, ending.cause, terms, reported=ending.ran_ms is not None)
        paid = paid_ms(attempt, ending.cause)
        lost_gpu_ms = gpu_ms(workload.need_milli, lost)
        workload.kept_ms += 0 if ending.cause is EndCause.DONE else attempt.kept_ms
        workload.lost_gpu_ms += lost_gpu_ms
        if attempt.started_at is None or (paid <= attempt.metered_ms and not lost):
            released[HoldId(attempt.hold_id)] = ending.cause.value
            continue
        after = " after its last checkpoint" if attempt.kept_ms else ""
        note = f"{lost_gpu_ms / 1000:,.1f} GPU-s{after} are not charged: {ending.cause.value}" if lost else ""
        owing.append((ending, usage_of(workload, attempt, paid, note)))
    await quotas.release_holds(tx, released, now=now)
    settlements = [(HoldId(ending.attempt.hold_id), usage) for ending, usage in owing]
    for (ending, _), charge in zip(owing, await quotas.settle_compute_many(tx, settlements, now=now), strict=True):
        ending.attempt.metered_ms = paid_ms(ending.attempt, ending.cause)
        ending.workload.charged_micro_yuan += charge.amount


async def _queue_again(
    tx: AsyncSession, workload: Workload, attempt: Attempt, failures: int, pause: int, *, now: datetime
) -> None:
    assert may_become(JobState(workload.state), JobState.QUEUED), "what is over stays over"
    workload.state, workload.failures, workload.progress = JobState.QUEUED, failures, None
    whole_again(workload)
    workload.wait_reason = WaitReason.BACKOFF if pause else WaitReason.NEW
    workload.wait_detail = f"its attempt {attempt.fence} ended: {attempt.message or attempt.cause}"
    workload.held_until = now + timedelta(seconds=pause) if pause else None
    body = {"attempt_id": attempt.id, "cause": attempt.cause, "message": attempt.message, "pause_seconds": pause}
    await events.append(tx, topic(workload, "requeued"), workload.id, body, now=now, firm_id=workload.firm_id)
