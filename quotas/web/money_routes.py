"""A firm's money: vouchers, payments, account, statements, refunds."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import Principal
from quotas import audit, cash, programmes, refunds, statement_service
from quotas.access import Action, home_firm, require
from quotas.vocabulary import CentreName, ChargeId, FirmId, MoneyAction
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin, SignedInPrincipal
from quotas.web.ledger_schemas import CentreStatementOut
from quotas.web.money_deeds import PROPOSED, CreditLineOrder, RefundOrder, do_or_propose
from quotas.web.money_schemas import (
    AccountOut,
    CashIn,
    CashOut,
    ChargeOut,
    CreditLineIn,
    ProgrammeIn,
    ProgrammeOut,
    RefundIn,
    StatementOut,
    VoucherIn,
    VoucherOut,
)
from quotas.web.schemas import FirmQuery

router = APIRouter(prefix="/api", tags=["money"])

Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=200, description="the same key does a thing once"),
]
Month = Annotated[str, Query(max_length=20)]


def _firm(principal: Principal, firm_id: str | None, action: Action) -> FirmId:
    firm = FirmId(firm_id) if firm_id else home_firm(principal)
    require(principal, action, firm_id=firm)
    return firm


@router.post("/programmes", status_code=201)
async def create_programme(
    body: ProgrammeIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> ProgrammeOut:
    """Open a voucher programme."""
    require(principal, Action.PROGRAMME_MANAGE, firm_id=None)
    async with db.transaction() as tx:
        one = await programmes.create_programme(tx, body.spec(now), by=principal.id, now=now)
        after = body.model_dump(mode="json")
        await audit.record(tx, "programme.create", one.id, by=principal, now=now, origin=origin, after=after)
        return ProgrammeOut.of(one)


@router.get("/programmes")
async def list_programmes(principal: CurrentPrincipal, db: Db) -> list[ProgrammeOut]:
    """Every voucher programme and what is left in its pool."""
    require(principal, Action.PROGRAMME_READ, firm_id=None)
    async with db.transaction() as tx:
        return [ProgrammeOut.of(one) for one in await programmes.programmes(tx)]


@router.post("/vouchers", status_code=201, response_model=VoucherOut, responses=PROPOSED)
async def grant_voucher(
    body: VoucherIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin, key: Key = None
) -> object:
    """Grant a firm part of a programme's pool; above the policy's amount a second administrator approves first."""
    firm, amount = _firm(principal, body.firm_id, Action.VOUCHER_GRANT), body.amount_micro_yuan
    return await db.retrying(
        lambda tx: do_or_propose(
            tx,
            MoneyAction.VOUCHER_GRANT,
            body,
            amount=amount,
            firm_id=firm,
            by=principal,
            now=now,
            origin=origin,
            key=key,
        )
    )


@router.get("/vouchers")
async def list_vouchers(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[VoucherOut]:
    """A firm's vouchers, in the order in which they pay."""
    firm = _firm(principal, firm_id, Action.BILLING_READ)
    async with db.transaction() as tx:
        return [VoucherOut.of(one) for one in await programmes.vouchers_of(tx, firm)]


@router.post("/top-ups", status_code=201, response_model=CashOut, responses=PROPOSED)
async def record_topup(
    body: CashIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin, key: Key = None
) -> object:
    """Book money that reached the platform's bank account, with its evidence; four eyes above the policy's amount."""
    return await _move(MoneyAction.TOP_UP, body, principal, db, now, origin, key)


@router.post("/withdrawals", status_code=201, response_model=CashOut, responses=PROPOSED)
async def record_withdrawal(
    body: CashIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin, key: Key = None
) -> object:
    """Book money that was paid back to a firm; four eyes above the policy's amount."""
    return await _move(MoneyAction.WITHDRAWAL, body, principal, db, now, origin, key)


async def _move(
    action: MoneyAction, body: CashIn, principal: Principal, db: Db, now: Now, origin: Origin, key: str | None
) -> object:
    firm, amount = _firm(principal, body.firm_id, Action.TOPUP_RECORD), body.amount_micro_yuan
    return await db.retrying(
        lambda tx: do_or_propose(
            tx, action, body, amount=amount, firm_id=firm, by=principal, now=now, origin=origin, key=key
        )
    )


@router.get("/top-ups")
async def list_movements(principal: SignedInPrincipal, db: Db, firm_id: FirmQuery = None) -> list[CashOut]:
    """What a firm paid in and was paid back, newest first; a suspended firm's people may see it too."""
    firm = _firm(principal, firm_id, Action.BILLING_READ)
    async with db.transaction() as tx:
        return [CashOut.of(one) for one in await cash.movements(tx, firm)]


@router.get("/account")
async def account(principal: SignedInPrincipal, db: Db, firm_id: FirmQuery = None) -> AccountOut:
    """A firm's money as it stands now; a suspended firm's people may see it too."""
    firm = _firm(principal, firm_id, Action.BILLING_READ)
    async with db.transaction() as tx:
        return AccountOut.of(await cash.account_of(tx, firm))


@router.put("/firms/{firm_id}/credit-line", response_model=AccountOut, responses=PROPOSED)
async def set_credit_line(
    firm_id: Annotated[str, Path(max_length=64)],
    body: CreditLineIn,
    principal: CurrentPrincipal,
    db: Db,
    now: Now,
    origin: Origin,
) -> object:
    """Let a firm pay later, up to an amount; zero makes it prepaid again. Four eyes above the policy's amount."""
    firm, amount = _firm(principal, firm_id, Action.TOPUP_RECORD), body.amount_micro_yuan
    order = CreditLineOrder(firm_id=firm, amount_micro_yuan=amount, reason=body.reason)
    return await db.retrying(
        lambda tx: do_or_propose(
            tx, MoneyAction.CREDIT_LINE, order, amount=amount, firm_id=firm, by=principal, now=now, origin=origin
        )
    )


@router.get("/statements")
async def firm_statement(
    principal: SignedInPrincipal, db: Db, now: Now, period: Month, firm_id: FirmQuery = None
) -> StatementOut:
    """A firm's month: each line with its tariff, vouchers and cash, and the sums; seen also by a suspended firm."""
    firm = _firm(principal, firm_id, Action.BILLING_READ)
    async with db.transaction() as tx:
        return StatementOut.of(await statement_service.statement(tx, firm, period, now))


@router.get("/centre-statements")
async def centre_statement(
    principal: CurrentPrincipal, db: Db, now: Now, period: Month, centre: Annotated[str, Query(max_length=60)]
) -> CentreStatementOut:
    """What a centre lent in a month and what it is owed."""
    require(principal, Action.CENTRE_BILLING_READ, firm_id=None)
    async with db.transaction() as tx:
        return CentreStatementOut.of(await statement_service.centre_statement(tx, CentreName(centre), period, now))


@router.post("/charges/{charge_id}/refund", status_code=201, response_model=ChargeOut, responses=PROPOSED)
async def refund(
    charge_id: str, body: RefundIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> object:
    """Give a charge back by a credit note: to cash what cash paid, to each voucher its own."""
    require(principal, Action.MONEY_CORRECT, firm_id=None)

    async def give_back(tx: AsyncSession) -> object:
        charge = await refunds.refundable(tx, ChargeId(charge_id))
        require(principal, Action.MONEY_CORRECT, firm_id=charge.firm_id)
        order = RefundOrder(charge_id=charge_id, amount_micro_yuan=charge.amount, reason=body.reason)
        return await do_or_propose(
            tx,
            MoneyAction.REFUND,
            order,
            amount=charge.amount,
            firm_id=charge.firm_id,
            by=principal,
            now=now,
            origin=origin,
        )

    return await db.retrying(give_back)
