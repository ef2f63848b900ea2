"""Limits beyond nominal quota: set from a day on, asked for at any instant; and how fast /v1 may be used."""

from typing import Annotated

from fastapi import APIRouter, Query

from quotas import ceilings, rate_limits
from quotas.access import Action, home_firm, is_staff, require
from quotas.applications import firm_row
from quotas.limits import NOTHING
from quotas.projects import project_of
from quotas.vocabulary import Ceilings, FirmId, ProjectId, RateLimits
from quotas.vocabulary_people import RateLimit
from quotas.web.ceiling_schemas import (
    CeilingsIn,
    CeilingsOut,
    CeilingVersionOut,
    EffectiveLimitsOut,
    RateLimitIn,
    RateLimitOut,
    UseOut,
)
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin
from quotas.web.schemas import FirmQuery, Instant

router = APIRouter(prefix="/api/limits", tags=["quotas"])


@router.post("", status_code=201)
async def set_limits(
    body: CeilingsIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> CeilingVersionOut:
    """Set what a firm may use at most (administrators), or one of its projects (its owner too), from a day on."""
    own_project = body.project_id is not None and not is_staff(principal)
    require(principal, Action.PROJECT_MANAGE if own_project else Action.QUOTA_SET, firm_id=FirmId(body.firm_id))
    async with db.transaction() as tx:
        row = await ceilings.set_ceilings(
            tx,
            FirmId(body.firm_id),
            ProjectId(body.project_id) if body.project_id else None,
            Ceilings(body.gpu_milli_at_once, body.jobs_at_once, body.gpu_ms_per_period, body.tokens_per_period),
            by=principal,
            now=now,
            effective_from=body.effective_from,
            reason=body.reason,
            origin=origin,
        )
        return CeilingVersionOut.model_validate(row)


@router.get("")
async def effective(
    principal: CurrentPrincipal,
    db: Db,
    now: Now,
    firm_id: FirmQuery = None,
    project_id: Annotated[str | None, Query(max_length=64, description="default: the default one")] = None,
    at: Annotated[Instant | None, Query(description="any past or future instant; default: now")] = None,
) -> EffectiveLimitsOut:
    """The limits over a project's work at an instant, and what its month has used."""
    firm = FirmId(firm_id or home_firm(principal))
    require(principal, Action.QUOTA_READ, firm_id=firm)
    async with db.transaction() as tx:
        await firm_row(tx, firm)
        project = await project_of(tx, ProjectId(project_id) if project_id else None, firm)
        limits = await ceilings.effective_limits(tx, firm, project.id, at=at or now)
        used = (await ceilings.used_this_month(tx, firm, at=at or now)).get(project.id, NOTHING)
    return EffectiveLimitsOut(
        firm_id=firm,
        project_id=project.id,
        at=limits.at,
        firm=CeilingsOut.model_validate(limits.firm),
        project=CeilingsOut.model_validate(limits.project),
        effective=CeilingsOut.model_validate(limits.effective),
        used=UseOut.model_validate(used),
    )


@router.post("/rates", status_code=201)
async def set_rates(body: RateLimitIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> RateLimitOut:
    """Set requests and tokens a minute and requests at once: of a firm, of every firm at a model, or of one at one."""
    firm = FirmId(body.firm_id) if body.firm_id else None
    require(principal, Action.QUOTA_SET, firm_id=firm)
    async with db.transaction() as tx:
        limits = RateLimits(body.requests_per_minute, body.tokens_per_minute, body.requests_at_once)
        found = await rate_limits.set_rate_limit(
            tx, firm, body.model, limits, by=principal, now=now, reason=body.reason, origin=origin
        )
    return _rates(found)


@router.get("/rates")
async def list_rates(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[RateLimitOut]:
    """What is set for a firm, and at models for every firm. A firm's own limits at a model replace every firm's."""
    firm = FirmId(firm_id or home_firm(principal))
    require(principal, Action.QUOTA_READ, firm_id=firm)
    async with db.transaction() as tx:
        await firm_row(tx, firm)
        return [_rates(row) for row in await rate_limits.rate_limits(tx, firm)]


def _rates(row: RateLimit) -> RateLimitOut:
    return RateLimitOut(
        firm_id=row.firm_id,
        model=row.model,
        requests_per_minute=row.limits.requests_per_minute,
        tokens_per_minute=row.limits.tokens_per_minute,
        requests_at_once=row.limits.requests_at_once,
        set_at=row.set_at,
        set_by=row.set_by,
        reason=row.reason,
    )


@router.get("/history")
async def history(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[CeilingVersionOut]:
    """Every version ever written for a firm and its projects, newest first; those to come too."""
    firm = FirmId(firm_id or home_firm(principal))
    require(principal, Action.QUOTA_READ, firm_id=firm)
    async with db.transaction() as tx:
        await firm_row(tx, firm)
        return [CeilingVersionOut.model_validate(row) for row in await ceilings.ceiling_history(tx, firm)]
