"""Time runs out: leases nobody renewed, attempts nobody claimed, work over its maximum, a replica's paid slice."""

import logging
from datetime import datetime, timedelta

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from kit.clock import Clock
from kit.db import Database
from kit.errors import HeliuError, NoMoney, Refused, Unavailable
from quotas import api as quotas
from quotas.vocabulary import HoldId
from scheduler import attempts
from scheduler.adapters import store
from scheduler.adapters.tables import AttemptRow, WorkloadRow
from scheduler.lifetimes import seconds_left
from scheduler.terms import Terms
from scheduler.vocabulary import AttemptState, EndCause, WorkloadKind

log = logging.getLogger(__name__)


async def expire(db: Database, terms: Terms, clock: Clock) -> int:
    """End what has lost its right to run and stop what has run its maximum; returns how many attempts changed."""
    changed = 0
    async with db.transaction() as tx:
        now = clock.now()
        late = now - timedelta(seconds=terms.start_timeout_seconds)
        silent = now - timedelta(seconds=terms.margin_seconds)
        found = await store.attempts_out_of_time(tx, now=now, unclaimed_since=late, silent_since=silent)
        due = [a.id for a, w in found if verdict(w, a, terms, now=now)]
    for attempt_id in due:
        async with db.transaction() as tx:
            changed += await _expire_one(tx, attempt_id, terms, now=clock.now())
    return changed


def is_lost(lease_until: datetime, terms: Terms, *, now: datetime) -> bool:
    """Whether a successor may start: the lease is over, when the runner kills itself, and the margin too."""
    return now >= lease_until + timedelta(seconds=terms.margin_seconds)


def verdict(workload: WorkloadRow, attempt: AttemptRow, terms: Terms, *, now: datetime) -> EndCause | None:
    """What time has to say about a live attempt; None: nothing."""
    if attempt.state == AttemptState.PLACED:
        late = now - attempt.placed_at >= timedelta(seconds=terms.start_timeout_seconds)
        return EndCause.NODE_LOST if late else None
    assert attempt.lease_until is not None, "a claimed attempt has a lease"
    if is_lost(attempt.lease_until, terms, now=now):
        return EndCause.LEASE_LOST
    if workload.max_runtime_seconds is not None and attempt.started_at and attempt.stop_requested_at is None:
        # The runner ends it by its own clock; this is for a runner that does not.
        left = seconds_left(workload.max_runtime_seconds, workload.kept_ms) or 0
        over = timedelta(seconds=left + terms.grace_seconds + terms.heartbeat_seconds)
        return EndCause.TIME_LIMIT if now - attempt.started_at >= over else None
    return None


async def renew_holds(db: Database, terms: Terms, clock: Clock) -> int:
    """Settle what replicas have used and hold their next slice; returns how many. Without money they are stopped."""
    now, renewed = clock.now(), 0
    async with db.transaction() as tx:
        due = [a.id for a, w in await store.running_replicas(tx) if confirmed_ms(w, a, terms) is not None]
    for attempt_id in due:
        try:
            renewed += await _renew_or_stop(db, attempt_id, terms, now=now)
        except Unavailable:
            raise  # the database is away for all of them
        except (HeliuError, DBAPIError, AssertionError):  # the others are renewed all the same
            log.exception("a replica was not renewed; the next round tries again", extra={"attempt": attempt_id})
    return renewed


def confirmed_ms(workload: WorkloadRow, attempt: AttemptRow, terms: Terms) -> int | None:
    """How long a replica is known to have run, when that is a slice to settle; None when it is too early."""
    if workload.kind != WorkloadKind.REPLICA or attempt.state != AttemptState.RUNNING:
        return None
    assert attempt.lease_until is not None and attempt.started_at is not None, "a running attempt has both"
    last_heard = attempt.lease_until - timedelta(seconds=terms.lease_seconds)
    ran = (last_heard - attempt.started_at) // timedelta(milliseconds=1)
    paid = attempt.metered_ms + attempt.held_seconds * 1000
    return min(ran, paid) if ran - attempt.metered_ms >= terms.replica_renew_seconds * 1000 else None


async def _expire_one(tx: AsyncSession, attempt_id: str, terms: Terms, *, now: datetime) -> int:
    workload, attempt = await _both(tx, attempt_id)
    if attempt.state == AttemptState.ENDED:
        return 0
    match verdict(workload, attempt, terms, now=now):  # looked at again under locks: a heartbeat may have come
        case None:
            return 0
        case EndCause.TIME_LIMIT:
            message = f"it ran for its limit of {workload.max_runtime_seconds} seconds"
            await attempts.request_stop(tx, attempt, EndCause.TIME_LIMIT, message, now=now)
        case EndCause.NODE_LOST:
            message = f"no runner claimed it within {terms.start_timeout_seconds} s"
            await attempts.end(tx, workload, attempt, EndCause.NODE_LOST, message, terms=terms, now=now)
        case cause:
            message = f"its runner was not heard of for {terms.lease_seconds + terms.margin_seconds} s"
            if attempt.stop_cause == EndCause.EVICTED:  # our wish, and no failure of its own or of its node
                cause, message = EndCause.EVICTED, attempt.stop_message or message
            await attempts.end(tx, workload, attempt, cause, message, terms=terms, now=now)
    return 1


async def _renew_or_stop(db: Database, attempt_id: str, terms: Terms, *, now: datetime) -> int:
    try:
        return await db.retrying(lambda tx: _renew_one(tx, attempt_id, terms, now=now))
    except Refused as refusal:
        cause = EndCause.UNPAID if isinstance(refusal, NoMoney) else EndCause.EVICTED
        message = refusal.message
        log.warning("a replica cannot be paid on", extra={"attempt": attempt_id, "why": refusal.message})
    async with db.transaction() as tx:
        _, attempt = await _both(tx, attempt_id)
        if attempt.state != AttemptState.ENDED:
            await attempts.request_stop(tx, attempt, cause, message, now=now)
    return 0


async def _renew_one(tx: AsyncSession, attempt_id: str, terms: Terms, *, now: datetime) -> int:
    workload, attempt = await _both(tx, attempt_id)
    until_ms = confirmed_ms(workload, attempt, terms)
    if until_ms is None or attempt.stop_requested_at is not None:
        return 0
    usage, hold_id = attempts.usage_of(workload, attempt, until_ms), HoldId(attempt.hold_id)
    seconds = terms.replica_hold_seconds  # without money for these, all of this is rolled back and settled at the end
    charge, hold = await quotas.renew_compute(tx, hold_id=hold_id, usage_slice=usage, seconds_max=seconds, now=now)
    workload.charged_micro_yuan += charge.amount
    attempt.hold_id, attempt.metered_ms, attempt.held_seconds = hold.id, until_ms, terms.replica_hold_seconds
    await tx.flush()
    return 1


async def _both(tx: AsyncSession, attempt_id: str) -> tuple[WorkloadRow, AttemptRow]:
    seen = await store.attempt(tx, attempt_id)
    assert seen is not None, "attempts are never deleted"
    workload = await store.workload(tx, seen.workload_id, lock=True)
    attempt = await store.attempt(tx, attempt_id, lock=True)
    assert workload is not None and attempt is not None, "an attempt belongs to a workload"
    return workload, attempt
