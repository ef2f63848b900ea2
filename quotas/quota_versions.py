"""Quota per firm and pool as a history: a change adds a version with its day; any instant's limits can be asked for."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import Principal
from kit.db import notify
from kit.errors import InvalidInput
from kit.units import GpuMilli
from quotas import audit
from quotas.adapters import quota_store as store
from quotas.adapters.tables import QuotaVersionRow
from quotas.applications import require_active
from quotas.limits import QuotaVersion, valid_nominal
from quotas.vocabulary import FirmId, PoolName

JOBS_CHANNEL = "heliu_jobs"
"""PostgreSQL NOTIFY that makes the scheduler look again."""


async def set_quota(
    tx: AsyncSession,
    firm_id: FirmId,
    pool: PoolName,
    nominal_gpu_milli: int,
    *,
    by: Principal,
    now: datetime,
    effective_from: datetime | None = None,
    borrowing_gpu_milli: int | None = None,
    lending_gpu_milli: int | None = None,
    reason: str | None = None,
    request_id: str | None = None,
    origin: str | None = None,
) -> QuotaVersionRow:
    """Add a version, in force from `effective_from` (now when not given); earlier versions stay as they were.

    Limits left out are none: it borrows what its cohort has and lends all it does not use. Raises NotFound or
    Forbidden for the firm, InvalidInput for an amount or a start in the past.
    """
    await require_active(tx, firm_id)
    start = effective_from or now
    if start < now:
        raise InvalidInput("A quota cannot change the past.", code="quota_backdated", hint="Leave the start out: now.")
    if lending_gpu_milli is not None and lending_gpu_milli > nominal_gpu_milli:
        raise InvalidInput(
            "A firm cannot lend more than its quota.",
            code="lending_above_quota",
            hint=f"lend at most {nominal_gpu_milli} thousandths of an accelerator, or set a larger quota",
        )
    before = await store.in_force(tx, firm_id=firm_id, pool=pool, at=start)
    row = QuotaVersionRow(
        firm_id=firm_id,
        pool=pool,
        nominal_gpu_milli=valid_nominal(nominal_gpu_milli),
        borrowing_gpu_milli=None if borrowing_gpu_milli is None else valid_nominal(borrowing_gpu_milli),
        lending_gpu_milli=None if lending_gpu_milli is None else valid_nominal(lending_gpu_milli),
        effective_from=start,
        set_at=now,
        set_by=by.id,
        reason=reason,
        request_id=request_id,
    )
    await store.add(tx, row)
    body = {"pool": pool, "effective_from": start, **_amounts(row)}
    await audit.record(
        tx, "quota.set", f"{firm_id}:{pool}", by=by, now=now, firm_id=firm_id, origin=origin, reason=reason,
        before=_amounts(before[0]) if before else {"nominal_gpu_milli": 0}, after=body,
    )  # fmt: skip
    await events.append(tx, "quota.set", firm_id, body, now=now, firm_id=firm_id)
    await notify(tx, JOBS_CHANNEL, firm_id)
    return row


async def quota_nominal(tx: AsyncSession, *, at: datetime) -> dict[tuple[FirmId, PoolName], GpuMilli]:
    """Nominal quota of every firm and pool in force at `at`; a pair without a version is absent and means none."""
    rows = await store.in_force(tx, at=at)
    return {(FirmId(row.firm_id), PoolName(row.pool)): GpuMilli(row.nominal_gpu_milli) for row in rows}


async def quota_limits(tx: AsyncSession, *, at: datetime) -> dict[tuple[FirmId, PoolName], QuotaVersion]:
    """Nominal, borrowing and lending of every firm and pool in force at `at`."""
    return {(one.firm_id, one.pool): one for one in map(_version, await store.all_in_force(tx, at=at))}


async def quotas_of(tx: AsyncSession, firm_id: FirmId | None, *, at: datetime) -> Sequence[QuotaVersionRow]:
    """The versions in force at `at`, of one firm or of all."""
    return await store.in_force(tx, firm_id=firm_id, at=at)


async def quota_history(tx: AsyncSession, firm_id: FirmId, pool: PoolName | None = None) -> Sequence[QuotaVersionRow]:
    """Every version ever written for a firm, newest first; future ones too."""
    return await store.history(tx, firm_id=firm_id, pool=pool)


def _amounts(row: QuotaVersionRow) -> dict[str, int | None]:
    return {
        "nominal_gpu_milli": row.nominal_gpu_milli,
        "borrowing_gpu_milli": row.borrowing_gpu_milli,
        "lending_gpu_milli": row.lending_gpu_milli,
    }


def _version(row: Any) -> QuotaVersion:
    return QuotaVersion(
        version=row.seq,
        firm_id=FirmId(row.firm_id),
        pool=PoolName(row.pool),
        nominal=GpuMilli(row.nominal_gpu_milli),
        effective_from=row.effective_from,
        borrowing=None if row.borrowing_gpu_milli is None else GpuMilli(row.borrowing_gpu_milli),
        lending=None if row.lending_gpu_milli is None else GpuMilli(row.lending_gpu_milli),
    )
