"""Limits beyond nominal quota: set from a day on, asked for at any instant."""

from typing import Annotated

from fastapi import APIRouter, Query

from quotas import ceilings
from quotas.access import Action, home_firm, is_staff, require
from quotas.applications import firm_row
from quotas.limits import NOTHING
from quotas.projects import project_of
from quotas.vocabulary import Ceilings, FirmId, ProjectId
from quotas.web.ceiling_schemas import CeilingsIn, CeilingsOut, CeilingVersionOut, EffectiveLimitsOut, UseOut
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


@router.get("/history")
async def history(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[CeilingVersionOut]:
    """Every version ever written for a firm and its projects, newest first; those to come too."""
    firm = FirmId(firm_id or home_firm(principal))
    require(principal, Action.QUOTA_READ, firm_id=firm)
    async with db.transaction() as tx:
        await firm_row(tx, firm)
        return [CeilingVersionOut.model_validate(row) for row in await ceilings.ceiling_history(tx, firm)]
