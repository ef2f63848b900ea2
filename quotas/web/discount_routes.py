"""Discounts by contract: grant, list, end."""

from typing import Annotated

from fastapi import APIRouter, Path

from quotas import audit, discounts
from quotas.access import Action, home_firm, require
from quotas.vocabulary import FirmId, MoneyAction
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin
from quotas.web.money_deeds import PROPOSED, do_or_propose
from quotas.web.price_schemas import DiscountIn, DiscountOut
from quotas.web.schemas import FirmQuery

router = APIRouter(prefix="/api/discounts", tags=["prices"])


@router.post("", status_code=201, response_model=DiscountOut, responses=PROPOSED)
async def grant(body: DiscountIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> object:
    """Take so much off a firm's rates, as its contract says. A second administrator approves it first."""
    firm = FirmId(body.firm_id)
    require(principal, Action.TARIFF_PUBLISH, firm_id=firm)
    async with db.transaction() as tx:
        return await do_or_propose(
            tx, MoneyAction.DISCOUNT, body, amount=0, firm_id=firm, by=principal, now=now, origin=origin
        )


@router.get("")
async def list_discounts(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[DiscountOut]:
    """What a firm's contracts take off, took off and will take off, oldest first."""
    firm = FirmId(firm_id) if firm_id else home_firm(principal)
    require(principal, Action.BILLING_READ, firm_id=firm)
    async with db.transaction() as tx:
        return [DiscountOut.of(one) for one in await discounts.contracts_of(tx, firm)]


@router.post("/{discount_id}/end")
async def end(
    discount_id: Annotated[str, Path(max_length=64)], principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> DiscountOut:
    """Let a discount end now. One that has not begun is withdrawn."""
    require(principal, Action.TARIFF_PUBLISH, firm_id=None)
    async with db.transaction() as tx:
        before = DiscountOut.of(await discounts.contract_of(tx, discount_id))
        after = DiscountOut.of(await discounts.end_discount(tx, discount_id, now=now))
        await audit.record(
            tx, "discount.end", discount_id, by=principal, now=now, firm_id=FirmId(before.firm_id), origin=origin,
            before=before.model_dump(mode="json"), after=after.model_dump(mode="json"),
        )  # fmt: skip
        return after
