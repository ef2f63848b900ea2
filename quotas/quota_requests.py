"""A firm asks for quota; an administrator grants it whole, in part, under a condition, or refuses and says why."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import Principal
from kit.errors import Conflict, InvalidInput, NotFound
from kit.ids import new_id
from kit.units import GpuMilli
from quotas import audit
from quotas.adapters import people_store, quota_store
from quotas.adapters.tables import QuotaRequestRow
from quotas.applications import require_active
from quotas.limits import grant_state, valid_nominal
from quotas.quota_versions import set_quota
from quotas.vocabulary import FirmId, PoolName, RequestState


@dataclass(frozen=True, slots=True)
class Grant:
    """What an administrator gives. None for the amount: all that was asked; for the day: the one asked for, or now."""

    nominal_gpu_milli: int | None = None
    effective_from: datetime | None = None
    borrowing_gpu_milli: int | None = None
    lending_gpu_milli: int | None = None
    condition: str | None = None
    reason: str | None = None


async def ask(
    tx: AsyncSession,
    firm_id: FirmId,
    pool: PoolName,
    nominal_gpu_milli: int,
    *,
    reason: str,
    by: Principal,
    now: datetime,
    effective_from: datetime | None = None,
    origin: str | None = None,
) -> QuotaRequestRow:
    """Ask for a quota of so much in all. Raises Conflict while another request for the pool is open."""
    await require_active(tx, firm_id)
    if effective_from is not None and effective_from < now:
        raise InvalidInput("A quota cannot change the past.", code="quota_backdated", hint="Leave the start out: now.")
    row = QuotaRequestRow(
        id=new_id("qrq"),
        firm_id=firm_id,
        pool=pool,
        asked_gpu_milli=valid_nominal(nominal_gpu_milli),
        effective_from=effective_from,
        reason=reason,
        state=RequestState.OPEN,
        requested_by=by.id,
        requested_at=now,
    )
    await people_store.insert(tx, row)
    await _record(tx, row, "quota_request.ask", by=by, now=now, origin=origin, reason=reason)
    return row


async def request_row(tx: AsyncSession, request_id: str) -> QuotaRequestRow:
    """The request, locked. Raises NotFound."""
    row = await quota_store.request(tx, request_id)
    if row is None:
        raise request_not_found(request_id)
    return row


async def list_requests(
    tx: AsyncSession, *, firm_id: FirmId | None, state: RequestState | None = None
) -> Sequence[QuotaRequestRow]:
    """Requests, newest first, of one firm or of all."""
    return await quota_store.requests(tx, firm_id=firm_id, state=state)


async def grant(
    tx: AsyncSession, row: QuotaRequestRow, terms: Grant, *, by: Principal, now: datetime, origin: str | None = None
) -> QuotaRequestRow:
    """Grant a request, whole or in part; the quota's new version names it.

    Raises Conflict for one decided already, InvalidInput for more than was asked or a cut without a reason.
    """
    _must_be_open(row)
    amount = GpuMilli(row.asked_gpu_milli if terms.nominal_gpu_milli is None else terms.nominal_gpu_milli)
    state = grant_state(asked=GpuMilli(row.asked_gpu_milli), granted=amount)
    if state is RequestState.PARTLY_GRANTED:
        _must_say_why(terms.reason)
    asked_from = row.effective_from if row.effective_from and row.effective_from >= now else None
    await set_quota(
        tx,
        FirmId(row.firm_id),
        PoolName(row.pool),
        amount,
        by=by,
        now=now,
        effective_from=terms.effective_from or asked_from,
        borrowing_gpu_milli=terms.borrowing_gpu_milli,
        lending_gpu_milli=terms.lending_gpu_milli,
        reason=terms.reason or row.reason,
        request_id=row.id,
        origin=origin,
    )
    row.granted_gpu_milli, row.condition = amount, terms.condition
    await _decide(tx, row, state, by=by, now=now, origin=origin, reason=terms.reason)
    return row


async def refuse(
    tx: AsyncSession,
    row: QuotaRequestRow,
    *,
    reason: str | None,
    by: Principal,
    now: datetime,
    origin: str | None = None,
) -> QuotaRequestRow:
    """Refuse a request. Raises Conflict for one decided already, InvalidInput without a reason."""
    _must_be_open(row)
    _must_say_why(reason)
    await _decide(tx, row, RequestState.REFUSED, by=by, now=now, origin=origin, reason=reason)
    return row


async def withdraw(
    tx: AsyncSession, row: QuotaRequestRow, *, by: Principal, now: datetime, origin: str | None = None
) -> QuotaRequestRow:
    """Take a request back. Raises Conflict for one decided already."""
    _must_be_open(row)
    await _decide(tx, row, RequestState.WITHDRAWN, by=by, now=now, origin=origin, reason=None)
    return row


def request_not_found(request_id: str) -> NotFound:
    """The one answer for a request that does not exist and for another firm's."""
    return NotFound(
        f"There is no quota request {request_id}.", code="quota_request_not_found", hint="see: heliu quota requests"
    )


def _must_be_open(row: QuotaRequestRow) -> None:
    if row.state != RequestState.OPEN:
        raise Conflict(
            f"This request is {row.state.replace('_', ' ')} already.",
            code="request_decided",
            hint="see what became of it: heliu quota requests; ask anew: heliu quota ask",
        )


def _must_say_why(reason: str | None) -> None:
    if not reason:
        raise InvalidInput("Say why; the firm will read it.", code="reason_missing")


async def _decide(
    tx: AsyncSession,
    row: QuotaRequestRow,
    state: RequestState,
    *,
    by: Principal,
    now: datetime,
    origin: str | None,
    reason: str | None,
) -> None:
    row.state, row.decided_by, row.decided_at, row.decision_reason = state, by.id, now, reason
    await tx.flush()
    await _record(tx, row, f"quota_request.{state}", by=by, now=now, origin=origin, reason=reason)


async def _record(
    tx: AsyncSession,
    row: QuotaRequestRow,
    action: str,
    *,
    by: Principal,
    now: datetime,
    origin: str | None,
    reason: str | None,
) -> None:
    body = {
        "pool": row.pool,
        "asked_gpu_milli": row.asked_gpu_milli,
        "granted_gpu_milli": row.granted_gpu_milli,
        "condition": row.condition,
        "state": row.state,
    }
    await audit.record(
        tx, action, row.id, by=by, now=now, firm_id=row.firm_id, origin=origin, after=body, reason=reason
    )
    await events.append(tx, action, row.id, body, now=now, firm_id=row.firm_id)
