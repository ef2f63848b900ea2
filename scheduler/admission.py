"""A start becomes a fact: quota, money, placement and attempt in one transaction, or nothing and a reason."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import hash_secret, sign
from kit.errors import NoMoney, Refused
from kit.ids import new_id
from kit.units import GpuMilli, MicroYuan
from quotas import api as quotas
from quotas.vocabulary import FirmId, Hold, PoolName, ProjectId, QoS
from scheduler.adapters import store
from scheduler.adapters.tables import AttemptRow, PlacementRow, WorkloadRow
from scheduler.lifetimes import seconds_left
from scheduler.sharing import Sharing
from scheduler.terms import Terms
from scheduler.vocabulary import AttemptId, AttemptState, JobState, Start, WaitReason, WorkloadId, WorkloadKind


@dataclass(frozen=True, slots=True)
class Admitted:
    """It is placed and paid for; its runner can be started."""

    attempt_id: AttemptId


@dataclass(frozen=True, slots=True)
class Postponed:
    """It cannot be paid for now; it waits and is asked again."""

    reason: WaitReason
    detail: str


@dataclass(frozen=True, slots=True)
class Stale:
    """The facts have changed since the decision: look again."""


class _Lost(Exception):
    """Room or quota went to somebody else in the meantime."""


def attempt_secret(key: bytes, attempt_id: str, fence: int) -> str:
    """The secret of an attempt's token: derived, so that a start can be repeated without storing it."""
    return sign(key, f"attempt:{attempt_id}:{fence}")


def attempt_token(key: bytes, attempt_id: str, fence: int) -> str:
    """The bearer its runner gets: `ha_<attempt id>_<secret>`."""
    return f"ha_{attempt_id}_{attempt_secret(key, attempt_id, fence)}"


async def admit(
    tx: AsyncSession,
    start: Start,
    sharing: Sharing,
    *,
    key: bytes,
    terms: Terms,
    now: datetime,
) -> Admitted | Postponed | Stale:
    """Record the start. The facts it rests on are checked again here, under locks: two leaders cannot both win."""
    workload = await store.workload(tx, start.workload_id, lock=True)
    if workload is None or workload.state != JobState.QUEUED or workload.stop_requested_at is not None:
        return Stale()
    attempt_id = AttemptId(new_id("att"))
    try:
        async with tx.begin_nested():
            firm_id, pool = FirmId(workload.firm_id), start.placement.pool
            if not await store.take(tx, firm_id, start.placement, sharing):
                raise _Lost
            hold = await _hold(tx, workload, attempt_id, pool, terms, now)
            await _record(tx, workload, start, attempt_id, hold, key, terms, now)
    except _Lost:
        return Stale()
    except Refused as refusal:
        reason = WaitReason.NO_MONEY if isinstance(refusal, NoMoney) else WaitReason.NO_PRICE
        await tx.refresh(workload)
        await _postpone(tx, workload, reason, refusal.message, terms, now)
        return Postponed(reason, refusal.message)
    return Admitted(attempt_id)


def held_seconds(workload: WorkloadRow, terms: Terms) -> int:
    """For how long money is held at once: what is left of a job's maximum, a slice of a replica's time."""
    if workload.kind == WorkloadKind.REPLICA:
        return terms.replica_hold_seconds
    left = seconds_left(workload.max_runtime_seconds, workload.kept_ms)
    assert left is not None, "a job has a maximum"
    return left


async def is_payable(tx: AsyncSession, workload_id: WorkloadId, pool: PoolName, *, terms: Terms, now: datetime) -> bool:
    """Whether a waiting workload's money could be held now, tried and undone; if not, it waits for money."""
    workload = await store.workload(tx, workload_id, lock=True)
    if workload is None or workload.state != JobState.QUEUED:
        return False
    try:
        async with tx.begin_nested() as tried:
            await _hold(tx, workload, new_id("att"), pool, terms, now)
            await tried.rollback()
    except Refused as refusal:
        reason = WaitReason.NO_MONEY if isinstance(refusal, NoMoney) else WaitReason.NO_PRICE
        await tx.refresh(workload)
        await _postpone(tx, workload, reason, refusal.message, terms, now)
        return False
    await tx.refresh(workload)
    return True


async def _hold(
    tx: AsyncSession, workload: WorkloadRow, attempt_id: str, pool: PoolName, terms: Terms, now: datetime
) -> Hold:
    cap = workload.cap_micro_yuan
    return await quotas.hold_compute(
        tx,
        key=attempt_id,
        firm_id=FirmId(workload.firm_id),
        project_id=ProjectId(workload.project_id),
        subject=workload.id,
        pool=pool,
        qos=QoS(workload.qos),
        gpu_milli=GpuMilli(workload.workers * workload.gpu_milli),
        seconds_max=held_seconds(workload, terms),
        cap_micro_yuan=None if cap is None else MicroYuan(cap - workload.charged_micro_yuan),
        key_id=quotas.key_of(workload.submitted_by),
        now=now,
    )


async def _record(
    tx: AsyncSession,
    workload: WorkloadRow,
    start: Start,
    attempt_id: AttemptId,
    hold: Hold,
    key: bytes,
    terms: Terms,
    now: datetime,
) -> None:
    fence = workload.fence + 1
    attempt = AttemptRow(
        id=attempt_id,
        workload_id=workload.id,
        firm_id=workload.firm_id,
        fence=fence,
        state=AttemptState.PLACED,
        pool=start.placement.pool,
        token_hash=hash_secret(attempt_secret(key, attempt_id, fence)),
        hold_id=hold.id,
        held_seconds=held_seconds(workload, terms),
        placed_at=now,
        metered_ms=0,
    )
    await store.insert(tx, attempt)
    placed = enumerate(start.placement.nodes)
    milli = start.placement.gpu_milli
    await store.insert(
        tx, *(PlacementRow(attempt_id=attempt_id, worker=i, node_id=n, gpu_milli=milli) for i, n in placed)
    )
    workload.state, workload.fence = JobState.STARTING, fence
    clear_wait(workload)
    await tx.flush()
    body = {"attempt_id": attempt_id, "fence": fence, "pool": attempt.pool, "nodes": list(start.placement.nodes)}
    await events.append(tx, topic(workload, "starting"), workload.id, body, now=now, firm_id=workload.firm_id)


async def _postpone(
    tx: AsyncSession, workload: WorkloadRow, reason: WaitReason, detail: str, terms: Terms, now: datetime
) -> None:
    workload.held_until = now + timedelta(seconds=terms.money_pause_seconds)
    await record_wait(tx, workload, reason, detail, None, estimated=False, now=now)


async def record_wait(
    tx: AsyncSession,
    workload: WorkloadRow,
    reason: WaitReason,
    detail: str,
    eta: datetime | None,
    *,
    estimated: bool,
    now: datetime,
) -> None:
    """Write why a workload waits; an event tells of a new reason, not of a moved time."""
    changed = workload.wait_reason != reason
    workload.wait_reason, workload.wait_detail = reason, detail
    workload.eta, workload.eta_estimated = eta, estimated
    await tx.flush()
    if changed:
        body = {"reason": reason, "detail": detail, "eta": eta}
        await events.append(tx, topic(workload, "waiting"), workload.id, body, now=now, firm_id=workload.firm_id)


def clear_wait(workload: WorkloadRow) -> None:
    """It no longer waits."""
    workload.wait_reason = workload.wait_detail = workload.eta = workload.held_until = None
    workload.eta_estimated = False


def topic(workload: WorkloadRow, verb: str) -> str:
    """`job.<verb>` for jobs, `workload.<verb>` for replicas."""
    return f"{'job' if workload.kind == WorkloadKind.JOB else 'workload'}.{verb}"
