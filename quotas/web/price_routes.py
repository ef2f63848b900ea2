"""Prices and who is paid what: tariffs, rates, centres' contracts."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.ext.asyncio import AsyncSession

from kit.units import Ppm
from quotas import centre_contracts, previews, tariffs
from quotas.access import Action, require
from quotas.applications import firm_of
from quotas.pricing import Tariff
from quotas.vocabulary import CentreName, FirmId, ModelName, MoneyAction, Period, PoolName, QoS, TariffId
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin
from quotas.web.money_deeds import PROPOSED, ContractOrder, do_or_propose
from quotas.web.names import Centre
from quotas.web.price_schemas import (
    ContractIn,
    ContractOut,
    GpuPriceOut,
    PreviewIn,
    PreviewOut,
    TariffIn,
    TariffOut,
    TokenPriceOut,
)
from quotas.web.schemas import Instant

router = APIRouter(prefix="/api", tags=["prices"])


@router.post("/tariffs", status_code=201, response_model=TariffOut, responses=PROPOSED)
async def publish(body: TariffIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> object:
    """Publish a version of the price book. It ends the version it falls into; prices of passed time never change.

    With a price above the policy's a second administrator approves it first.
    """
    require(principal, Action.TARIFF_PUBLISH, firm_id=None)
    dearest = max(body.rates().values())
    async with db.transaction() as tx:
        return await do_or_propose(
            tx, MoneyAction.TARIFF, body, amount=dearest, firm_id=None, by=principal, now=now, origin=origin
        )


@router.post("/tariffs/preview")
async def preview_tariff(body: PreviewIn, principal: CurrentPrincipal, db: Db, now: Now) -> PreviewOut:
    """What a month would have cost with a draft: every usage priced anew, to the micro-yuan. Publishes nothing."""
    require(principal, Action.TARIFF_PUBLISH, firm_id=None)
    period = Period(body.period or previews.month_before(now))
    draft = Tariff(TariffId("draft"), now, None, body.tariff.rates(), body.tariff.spans())
    async with db.transaction() as tx:
        firm_id = None if body.firm_id is None else (await firm_of(tx, FirmId(body.firm_id))).id
        return PreviewOut.of(await previews.preview(tx, draft, period, firm_id=firm_id))


@router.get("/tariffs")
async def list_tariffs(principal: CurrentPrincipal, db: Db) -> list[TariffOut]:
    """Every version, oldest first."""
    require(principal, Action.TARIFF_READ, firm_id=None)
    async with db.transaction() as tx:
        names = await tariffs.tariff_names(tx)
        return [TariffOut.of(one, names[one.id]) for one in await tariffs.tariffs_between(tx, None, None)]


@router.get("/prices/gpu")
async def gpu_price(
    principal: CurrentPrincipal,
    db: Db,
    now: Now,
    pool: Annotated[str, Query(max_length=120)],
    qos: QoS = QoS.STANDARD,
    at: Instant | None = None,
) -> GpuPriceOut:
    """The price of a GPU-hour of a pool, now or at an instant."""
    require(principal, Action.TARIFF_READ, firm_id=None)
    async with db.transaction() as tx:
        rate = await tariffs.gpu_rate(tx, pool=PoolName(pool), qos=qos, at=at or now)
    return GpuPriceOut(
        tariff_id=rate.tariff_id, pool=pool, qos=qos, micro_yuan_per_gpu_hour=rate.micro_yuan_per_gpu_hour
    )


@router.get("/prices/tokens")
async def token_price(
    principal: CurrentPrincipal,
    db: Db,
    now: Now,
    model: Annotated[str, Query(max_length=120)],
    at: Instant | None = None,
) -> TokenPriceOut:
    """The prices of a model's tokens, now or at an instant."""
    require(principal, Action.TARIFF_READ, firm_id=None)
    async with db.transaction() as tx:
        rate = await tariffs.token_rate(tx, model=ModelName(model), at=at or now)
    return TokenPriceOut(
        tariff_id=rate.tariff_id,
        model=model,
        input_micro_yuan_per_million=rate.input,
        cached_input_micro_yuan_per_million=rate.cached_input,
        output_micro_yuan_per_million=rate.output,
    )


@router.put("/centres/{centre}/contract", response_model=ContractOut, responses=PROPOSED)
async def set_contract(
    centre: Centre, body: ContractIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> object:
    """From now on pay a centre this part of the list price of the time it lends.

    Where that pays more for its dearest GPU-hour than the policy's price, a second administrator approves it first.
    """
    require(principal, Action.TARIFF_PUBLISH, firm_id=None)
    order = ContractOrder(centre=centre, payout_ppm=body.payout_ppm, reason=body.reason)

    async def sign(tx: AsyncSession) -> object:
        hour = await centre_contracts.dearest_hour(tx, CentreName(centre), Ppm(body.payout_ppm), now=now)
        return await do_or_propose(
            tx, MoneyAction.CENTRE_CONTRACT, order, amount=hour, firm_id=None, by=principal, now=now, origin=origin
        )

    return await db.retrying(sign)


@router.get("/centres/{centre}/contracts")
async def list_contracts(centre: Centre, principal: CurrentPrincipal, db: Db) -> list[ContractOut]:
    """What a centre is and was paid of the list price, oldest first."""
    require(principal, Action.CENTRE_BILLING_READ, firm_id=None)
    async with db.transaction() as tx:
        return [ContractOut.of(one) for one in await centre_contracts.contracts_of(tx, CentreName(centre))]
