"""Firms: apply, the review queue, review."""

from typing import Annotated

from fastapi import APIRouter, Query

from quotas import applications
from quotas.access import Action, require
from quotas.cash import account_of
from quotas.firms import OVER
from quotas.vocabulary import FirmId, FirmState
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin
from quotas.web.money_schemas import AccountOut, ReviewedOut
from quotas.web.schemas import ApplyIn, FirmOut, Limit, ReviewIn

router = APIRouter(prefix="/api/firms", tags=["firms"])


@router.post("", status_code=201)
async def apply(body: ApplyIn, db: Db, now: Now, origin: Origin) -> FirmOut:
    """Apply as a firm. Needs no account; the owner's is made here."""
    fields = body.model_dump(exclude={"owner_password"})
    application = applications.Application(**fields, password=body.owner_password.get_secret_value())
    return FirmOut.model_validate(await applications.apply(db, application, now=now, origin=origin))


@router.get("")
async def list_firms(
    principal: CurrentPrincipal,
    db: Db,
    state: Annotated[list[FirmState], Query()] = [],  # noqa: B006  (FastAPI copies it)
    after: Annotated[str, Query(max_length=64)] = "",
    limit: Limit = 100,
) -> list[FirmOut]:
    """Firms in the order they applied; `state=applied&state=in_review` is the review queue."""
    require(principal, Action.FIRM_READ, firm_id=None)
    async with db.transaction() as tx:
        rows = await applications.queue(tx, states=state, after=after, limit=limit)
        return [FirmOut.model_validate(row) for row in rows]


@router.get("/{firm_id}")
async def view_firm(firm_id: str, principal: CurrentPrincipal, db: Db) -> FirmOut:
    """One firm with what a reviewer must know."""
    require(principal, Action.FIRM_READ, firm_id=FirmId(firm_id))
    async with db.transaction() as tx:
        return FirmOut.model_validate(await applications.firm_row(tx, FirmId(firm_id)))


@router.post("/{firm_id}/review")
async def review(
    firm_id: str, body: ReviewIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> ReviewedOut:
    """Take a firm one step: take, approve, reject, suspend, resume, close. One that stops is shown with its money."""
    require(principal, Action.FIRM_REVIEW, firm_id=FirmId(firm_id))
    async with db.transaction() as tx:
        firm = await applications.review(
            tx, FirmId(firm_id), body.step, by=principal, now=now, reason=body.reason, origin=origin
        )
        shown, stops = FirmOut.model_validate(firm), firm.state == FirmState.SUSPENDED or firm.state in OVER
        money = AccountOut.of(await account_of(tx, FirmId(firm_id))) if stops else None
        return ReviewedOut(**shown.model_dump(), account=money)
