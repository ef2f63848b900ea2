"""Quotas per firm and pool."""

from typing import Annotated

from fastapi import APIRouter, Query

from quotas import quota_versions
from quotas.access import Action, home_firm, is_staff, require
from quotas.applications import firm_row
from quotas.vocabulary import FirmId, PoolName
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin
from quotas.web.schemas import FirmQuery, Instant, QuotaIn, QuotaOut

router = APIRouter(prefix="/api", tags=["quotas"])


@router.post("/quotas", status_code=201)
async def set_quota(body: QuotaIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> QuotaOut:
    """Set what a firm may use of a pool, from now or from a day to come. Earlier versions stay."""
    require(principal, Action.QUOTA_SET, firm_id=FirmId(body.firm_id))
    async with db.transaction() as tx:
        row = await quota_versions.set_quota(
            tx,
            FirmId(body.firm_id),
            PoolName(body.pool),
            body.nominal_gpu_milli,
            by=principal,
            now=now,
            effective_from=body.effective_from,
            borrowing_gpu_milli=body.borrowing_gpu_milli,
            lending_gpu_milli=body.lending_gpu_milli,
            reason=body.reason,
            origin=origin,
        )
        return QuotaOut.model_validate(row)


@router.get("/quotas")
async def quotas_in_force(
    principal: CurrentPrincipal,
    db: Db,
    now: Now,
    firm_id: FirmQuery = None,
    at: Annotated[Instant | None, Query(description="any past or future instant; default: now")] = None,
) -> list[QuotaOut]:
    """Quotas in force at an instant: of one firm, or of all for the platform's staff who name none."""
    firm = FirmId(firm_id) if firm_id else None if is_staff(principal) else home_firm(principal)
    require(principal, Action.QUOTA_READ, firm_id=firm)
    async with db.transaction() as tx:
        if firm is not None:
            await firm_row(tx, firm)
        rows = await quota_versions.quotas_of(tx, firm, at=at or now)
        return [QuotaOut.model_validate(row) for row in rows]


@router.get("/quotas/history")
async def quota_history(
    principal: CurrentPrincipal,
    db: Db,
    firm_id: FirmQuery = None,
    pool: Annotated[str | None, Query(max_length=120)] = None,
) -> list[QuotaOut]:
    """Every version ever written for a firm, newest first; those to come too."""
    firm = FirmId(firm_id or home_firm(principal))
    require(principal, Action.QUOTA_READ, firm_id=firm)
    async with db.transaction() as tx:
        await firm_row(tx, firm)
        rows = await quota_versions.quota_history(tx, firm, PoolName(pool) if pool else None)
        return [QuotaOut.model_validate(row) for row in rows]
