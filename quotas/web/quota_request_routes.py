"""Requests for quota: a firm asks, an administrator decides."""

from fastapi import APIRouter

from kit.auth import Principal
from quotas import quota_requests
from quotas.access import Action, home_firm, is_staff, require
from quotas.adapters.tables import QuotaRequestRow
from quotas.applications import firm_row
from quotas.vocabulary import FirmId, PoolName, RequestState
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin
from quotas.web.schemas import FirmQuery, GrantIn, QuotaRequestIn, QuotaRequestOut, RefuseIn

router = APIRouter(prefix="/api/quota-requests", tags=["quotas"])


@router.post("", status_code=201)
async def ask(body: QuotaRequestIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> QuotaRequestOut:
    """Ask for a quota of so much of a pool in all."""
    firm = FirmId(body.firm_id or home_firm(principal))
    require(principal, Action.QUOTA_REQUEST, firm_id=firm)
    async with db.transaction() as tx:
        row = await quota_requests.ask(
            tx,
            firm,
            PoolName(body.pool),
            body.nominal_gpu_milli,
            reason=body.reason,
            effective_from=body.effective_from,
            by=principal,
            now=now,
            origin=origin,
        )
        return QuotaRequestOut.model_validate(row)


@router.get("")
async def list_requests(
    principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None, state: RequestState | None = None
) -> list[QuotaRequestOut]:
    """Requests, newest first: of one firm, or of all for the platform's staff who name none."""
    firm = FirmId(firm_id) if firm_id else None if is_staff(principal) else home_firm(principal)
    require(principal, Action.QUOTA_READ, firm_id=firm)
    async with db.transaction() as tx:
        if firm is not None:
            await firm_row(tx, firm)
        rows = await quota_requests.list_requests(tx, firm_id=firm, state=state)
        return [QuotaRequestOut.model_validate(row) for row in rows]


@router.post("/{request_id}/grant")
async def grant(
    request_id: str, body: GrantIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> QuotaRequestOut:
    """Grant a request: whole, in part, from another day, under a condition."""
    terms = quota_requests.Grant(**body.model_dump())
    async with db.transaction() as tx:
        row = await quota_requests.request_row(tx, request_id)
        _may(principal, Action.QUOTA_SET, row)
        granted = await quota_requests.grant(tx, row, terms, by=principal, now=now, origin=origin)
        return QuotaRequestOut.model_validate(granted)


@router.post("/{request_id}/refuse")
async def refuse(
    request_id: str, body: RefuseIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> QuotaRequestOut:
    """Refuse a request and say why."""
    async with db.transaction() as tx:
        row = await quota_requests.request_row(tx, request_id)
        _may(principal, Action.QUOTA_SET, row)
        refused = await quota_requests.refuse(tx, row, reason=body.reason, by=principal, now=now, origin=origin)
        return QuotaRequestOut.model_validate(refused)


@router.post("/{request_id}/withdraw")
async def withdraw(request_id: str, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> QuotaRequestOut:
    """Take a request back."""
    async with db.transaction() as tx:
        row = await quota_requests.request_row(tx, request_id)
        _may(principal, Action.QUOTA_REQUEST, row)
        withdrawn = await quota_requests.withdraw(tx, row, by=principal, now=now, origin=origin)
        return QuotaRequestOut.model_validate(withdrawn)


def _may(principal: Principal, action: Action, row: QuotaRequestRow) -> None:
    missing = quota_requests.request_not_found(row.id)
    require(principal, action, firm_id=FirmId(row.firm_id), missing=missing)
