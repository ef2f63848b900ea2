"""What a start becomes when it is recorded (`batch_admission`), and what is written of work that waits instead."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import hash_secret, sign
from kit.errors import NoMoney, Refused
from kit.ids import new_id
from kit.units import MicroYuan
from quotas import api as quotas
from quotas.vocabulary import FirmId, Hold, PoolName, ProjectId, QoS
from scheduler.adapters import store, waits
from scheduler.adapters.beginnings import Begun
from scheduler.adapters.records import AnyWorkload, Workload
from scheduler.lifetimes import seconds_left
from scheduler.terms import Terms
from scheduler.vocabulary import (
    AttemptId,
    AttemptState,
    JobState,
    Placement,
    Wait,
    WaitReason,
    WorkloadId,
    WorkloadKind,
)


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


Outcome: TypeAlias = Admitted | Postponed | Stale


def attempt_secret(key: bytes, attempt_id: str, fence: int) -> str:
    """The secret of an attempt's token: derived, so that a start can be repeated without storing it."""
    return sign(key, f"attempt:{attempt_id}:{fence}")


def attempt_token(key: bytes, attempt_id: str, fence: int) -> str:
    """The bearer its runner gets: `ha_<attempt id>_<secret>`."""
    return f"ha_{attempt_id}_{attempt_secret(key, attempt_id, fence)}"


def held_seconds(workload: AnyWorkload, terms: Terms) -> int:
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
            asked = hold_request(workload, new_id("att"), pool, terms)
            for held in await quotas.hold_compute_many(tx, [asked], now=now):
                if isinstance(held, Refused):
                    raise held
            await tried.rollback()
    except Refused as refusal:
        await tx.refresh(workload)
        await postpone(tx, workload, refusal, terms, now)
        return False
    await tx.refresh(workload)
    return True


def hold_request(workload: AnyWorkload, key: str, pool: PoolName, terms: Terms) -> quotas.HoldRequest:
    """The money that has to be put aside before it may start there."""
    cap = workload.cap_micro_yuan
    return quotas.HoldRequest(
        key=key,
        firm_id=FirmId(workload.firm_id),
        project_id=ProjectId(workload.project_id),
        subject=workload.id,
        pool=pool,
        qos=QoS(workload.qos),
        gpu_milli=workload.need_milli,
        seconds_max=held_seconds(workload, terms),
        cap_micro_yuan=None if cap is None else MicroYuan(cap - workload.charged_micro_yuan),
        key_id=quotas.key_of(workload.submitted_by),
    )


def attempt_values(
    workload: Workload, attempt_id: AttemptId, pool: PoolName, hold: Hold, key: bytes, terms: Terms, now: datetime
) -> dict[str, object]:
    """The row of the next attempt at a workload, placed."""
    fence = workload.fence + 1
    return {
        "id": attempt_id,
        "workload_id": workload.id,
        "firm_id": workload.firm_id,
        "fence": fence,
        "state": AttemptState.PLACED,
        "pool": pool,
        "token_hash": hash_secret(attempt_secret(key, attempt_id, fence)),
        "hold_id": hold.id,
        "held_seconds": held_seconds(workload, terms),
        "placed_at": now,
        "metered_ms": 0,
        "kept_ms": 0,
    }


def placement_values(attempt_id: AttemptId, placement: Placement) -> list[dict[str, object]]:
    """The rows of where its workers lie."""
    return [
        {
            "attempt_id": attempt_id,
            "worker": worker,
            "node_id": node,
            "gpu_milli": placement.gpu_milli,
            "cpu_milli": placement.cpu_milli,
            "memory_mib": placement.memory_mib,
            "devices": devices,
        }
        for worker, (node, devices) in enumerate(zip(placement.nodes, placement.devices, strict=True))
    ]


async def postpone(tx: AsyncSession, workload: AnyWorkload, refusal: Refused, terms: Terms, now: datetime) -> Postponed:
    """It cannot be paid for now: it waits with the reason, and is asked again after a pause."""
    reason = WaitReason.NO_MONEY if isinstance(refusal, NoMoney) else WaitReason.NO_PRICE
    workload.held_until = now + timedelta(seconds=terms.money_pause_seconds)
    await record_wait(tx, workload, reason, refusal.message, None, estimated=False, now=now)
    return Postponed(reason, refusal.message)


async def record_wait(
    tx: AsyncSession,
    workload: AnyWorkload,
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


async def record_waits(
    tx: AsyncSession, changed: Sequence[tuple[Wait, int]], *, now: datetime
) -> dict[str, tuple[waits.WaitRow, int]]:
    """The same for many at once, each with the fence it was decided at: what started meanwhile is left alone.

    What was written, by id, and the version of its row.
    """
    if not changed:
        return {}
    told = {
        wait.workload_id: waits.WaitRow(
            wait.workload_id, fence, wait.reason.value, wait.detail, wait.eta, wait.estimated
        )
        for wait, fence in changed
    }
    async with events.together(tx):
        written = await waits.write_waits(tx, list(told.values()))
        for id, kind, firm_id in sorted((one.id, one.kind, one.firm_id) for one in written if one.is_new):
            row = told[WorkloadId(id)]
            body = {"reason": row.wait_reason, "detail": row.wait_detail, "eta": row.eta}
            await events.append(tx, _topic(kind, "waiting"), id, body, now=now, firm_id=firm_id)
    return {one.id: (told[WorkloadId(one.id)], one.version) for one in written}


def whole_again(workload: AnyWorkload) -> None:
    """An elastic gang may have all its workers in its next attempt."""
    workload.workers = workload.workers_max or workload.workers


def clear_wait(workload: AnyWorkload) -> None:
    """It no longer waits."""
    workload.wait_reason = workload.wait_detail = workload.eta = workload.held_until = None
    workload.eta_estimated = False


def topic(workload: AnyWorkload | Begun, verb: str) -> str:
    """`job.<verb>` for jobs, `workload.<verb>` for replicas."""
    return _topic(workload.kind, verb)


def _topic(kind: str, verb: str) -> str:
    return f"{'job' if kind == WorkloadKind.JOB else 'workload'}.{verb}"
