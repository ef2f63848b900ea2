"""What administrators do with money, once: at once below the policy's amounts, else when a second one approves."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import Principal
from kit.errors import Conflict
from kit.ids import new_id
from kit.units import MAX_AMOUNT, MicroYuan, Ppm, format_yuan
from kit.web import Body, View
from quotas import approvals, audit, cash, centre_contracts, charges, discounts, programmes, refunds, tariffs
from quotas.adapters.approval_tables import ProposalRow
from quotas.applications import firm_of
from quotas.firms import OVER
from quotas.vocabulary import CentreName, ChargeId, FirmId, MoneyAction, ProgrammeId
from quotas.web.approval_schemas import PolicyIn, PolicyOut, ProposalOut
from quotas.web.money_schemas import AccountOut, CashIn, CashOut, ChargeOut, VoucherIn, VoucherOut
from quotas.web.price_schemas import ContractOut, DiscountIn, DiscountOut, TariffIn, TariffOut
from quotas.web.schemas import Id, Paragraph

PROPOSED: dict[int | str, dict[str, Any]] = {
    202: {"model": ProposalOut, "description": "a second administrator must approve it"}
}


class CreditLineOrder(Body):
    firm_id: Id
    amount_micro_yuan: Annotated[int, Field(ge=0, le=MAX_AMOUNT)]
    reason: Paragraph


class ContractOrder(Body):
    centre: Id
    payout_ppm: int
    reason: Paragraph


class RefundOrder(Body):
    charge_id: Id
    amount_micro_yuan: int
    """What is given back: what the charge was when it was asked."""
    reason: Paragraph


@dataclass(frozen=True, slots=True)
class Deed:
    """Who does it, when, from where, and under which idempotency key."""

    key: str
    by: Principal
    now: datetime
    origin: str | None


async def top_up(tx: AsyncSession, body: CashIn, deed: Deed) -> CashOut:
    """Book money that reached the platform's bank account; of a firm that is closed no more than what it owes."""
    owes = -(await cash.account_of(tx, FirmId(body.firm_id))).balance
    if body.amount_micro_yuan > owes:
        await _not_over(tx, FirmId(body.firm_id), owes=owes)
    return await _move(tx, body, deed, cash.record_topup, "cash.top_up")


async def withdrawal(tx: AsyncSession, body: CashIn, deed: Deed) -> CashOut:
    """Book money that was paid back to a firm."""
    return await _move(tx, body, deed, cash.record_withdrawal, "cash.withdraw")


async def _not_over(tx: AsyncSession, firm_id: FirmId, *, owes: int = 0) -> None:
    firm = await firm_of(tx, firm_id)
    if firm.state in OVER:
        but = f" It owes {format_yuan(owes)}, and may pay no more than that." if owes > 0 else ""
        raise Conflict(
            f"{firm.name} is {firm.state} and gets no more money.{but}",
            code="firm_closed",
            hint="pay back what it has: heliu account withdraw; a new application makes a new firm",
        )


async def _move(
    tx: AsyncSession, body: CashIn, deed: Deed, how: Callable[..., Awaitable[cash.CashMovement]], action: str
) -> CashOut:
    firm = FirmId(body.firm_id)
    await firm_of(tx, firm)
    amount = MicroYuan(body.amount_micro_yuan)
    one = await how(tx, key=deed.key, firm_id=firm, amount=amount, evidence=body.evidence, by=deed.by.id, now=deed.now)
    await _record(tx, action, one.id, deed, body, firm)
    return CashOut.of(one)


async def voucher_grant(tx: AsyncSession, body: VoucherIn, deed: Deed) -> VoucherOut:
    """Grant a firm part of a programme's pool."""
    firm = FirmId(body.firm_id)
    await _not_over(tx, firm)
    one = await programmes.grant_voucher(
        tx,
        key=deed.key,
        programme_id=ProgrammeId(body.programme_id),
        firm_id=firm,
        amount=MicroYuan(body.amount_micro_yuan),
        note=body.note,
        by=deed.by.id,
        now=deed.now,
    )
    await _record(tx, "voucher.grant", one.terms.id, deed, body, firm)
    return VoucherOut.of(one)


async def credit_line(tx: AsyncSession, body: CreditLineOrder, deed: Deed) -> AccountOut:
    """Let a firm owe up to an amount."""
    firm = FirmId(body.firm_id)
    await _not_over(tx, firm)
    before = await cash.account_of(tx, firm)
    after = await cash.set_credit_line(tx, firm_id=firm, amount=MicroYuan(body.amount_micro_yuan), now=deed.now)
    await audit.record(
        tx,
        "cash.credit_line",
        firm,
        by=deed.by,
        now=deed.now,
        firm_id=firm,
        origin=deed.origin,
        before={"credit_line": before.credit_line},
        after={"credit_line": after.credit_line},
        reason=body.reason,
    )
    return AccountOut.of(after)


async def refund(tx: AsyncSession, body: RefundOrder, deed: Deed) -> ChargeOut:
    """Give a charge back by a credit note."""
    firm = (await charges.charge_of(tx, ChargeId(body.charge_id))).firm_id
    note = await refunds.refund_charge(
        tx,
        charge_id=ChargeId(body.charge_id),
        reason=body.reason,
        now=deed.now,
        expected=MicroYuan(body.amount_micro_yuan),
    )
    await audit.record(
        tx,
        "charge.refund",
        body.charge_id,
        by=deed.by,
        now=deed.now,
        firm_id=firm,
        origin=deed.origin,
        after={"credit_note": note.id, "amount": note.amount},
        reason=body.reason,
    )
    return ChargeOut.of(note)


async def tariff(tx: AsyncSession, body: TariffIn, deed: Deed) -> TariffOut:
    """Publish a version of the price book."""
    one = await tariffs.publish_tariff(
        tx,
        name=body.name,
        valid_from=body.valid_from,
        rates=body.rates(),
        windows=body.spans(),
        ends_prices=body.ends_prices,
        by=deed.by.id,
        now=deed.now,
    )
    await _record(tx, "tariff.publish", one.id, deed, body, None)
    return TariffOut.of(one, body.name)


async def discount(tx: AsyncSession, body: DiscountIn, deed: Deed) -> DiscountOut:
    """Take so much off a firm's rates, as its contract says."""
    firm = FirmId(body.firm_id)
    await firm_of(tx, firm)
    one = await discounts.grant_discount(
        tx,
        firm_id=firm,
        kind=body.kind,
        resource=body.resource,
        off_ppm=Ppm(body.off_ppm),
        valid_from=body.valid_from,
        valid_until=body.valid_until,
        contract=body.contract,
        by=deed.by.id,
        now=deed.now,
    )
    await _record(tx, "discount.grant", one.terms.id, deed, body, firm)
    return DiscountOut.of(one)


async def centre_contract(tx: AsyncSession, body: ContractOrder, deed: Deed) -> ContractOut:
    """From now on pay a centre this part of the list price."""
    centre = CentreName(body.centre)
    before = (await centre_contracts.contracts_of(tx, centre))[-1]
    await tariffs.set_centre_contract(tx, centre=centre, payout_ppm=Ppm(body.payout_ppm), now=deed.now)
    await audit.record(
        tx,
        "centre.contract",
        centre,
        by=deed.by,
        now=deed.now,
        origin=deed.origin,
        before={"payout_ppm": before.payout_ppm},
        after={"payout_ppm": body.payout_ppm},
        reason=body.reason,
    )
    return ContractOut.of((await centre_contracts.contracts_of(tx, centre))[-1])


async def policy(tx: AsyncSession, body: PolicyIn, deed: Deed) -> PolicyOut:
    """Set the amounts above which a second administrator is needed."""
    row = await approvals.set_policy(
        tx,
        amount_above=body.amount_above_micro_yuan,
        rate_above=body.rate_above_micro_yuan,
        reason=body.reason,
        by=deed.by,
        now=deed.now,
        origin=deed.origin,
    )
    return PolicyOut.of(row)


DEEDS: dict[MoneyAction, tuple[type[Body], Callable[..., Awaitable[View]]]] = {
    MoneyAction.TOP_UP: (CashIn, top_up),
    MoneyAction.WITHDRAWAL: (CashIn, withdrawal),
    MoneyAction.VOUCHER_GRANT: (VoucherIn, voucher_grant),
    MoneyAction.CREDIT_LINE: (CreditLineOrder, credit_line),
    MoneyAction.REFUND: (RefundOrder, refund),
    MoneyAction.TARIFF: (TariffIn, tariff),
    MoneyAction.DISCOUNT: (DiscountIn, discount),
    MoneyAction.POLICY: (PolicyIn, policy),
    MoneyAction.CENTRE_CONTRACT: (ContractOrder, centre_contract),
}


async def do_or_propose(
    tx: AsyncSession,
    action: MoneyAction,
    body: Body,
    *,
    amount: int,
    firm_id: FirmId | None,
    by: Principal,
    now: datetime,
    origin: str | None,
    key: str | None = None,
) -> Any:
    """What was done, or the proposal that waits for a second administrator (202)."""
    limits = await approvals.policy(tx)
    deed = Deed(key or new_id("op"), by, now, origin)
    if isinstance(body, PolicyIn):
        wanted = {"amount_above": body.amount_above_micro_yuan, "rate_above": body.rate_above_micro_yuan}
        second = approvals.raises_policy(limits, **wanted)
    else:
        before, repeated = 0, False
        if firm_id is not None:
            before = await approvals.alone_so_far(tx, action, deed.key, firm_id, by=by, now=now)
            repeated = await approvals.done_alone(tx, action, deed.key, firm_id)
        second = not repeated and approvals.needs_second(action, before + amount, limits)
    if not second:
        done = await DEEDS[action][1](tx, body, deed)
        if firm_id is not None:
            await approvals.note_alone(tx, action, deed.key, firm_id, amount, by=by, now=now)
        return done
    if firm_id is not None:
        await firm_of(tx, firm_id)
    content = body.model_dump(mode="json")
    row = await approvals.propose(
        tx, action, amount, content, key=deed.key, firm_id=firm_id, by=by, now=now, origin=origin
    )
    return JSONResponse(ProposalOut.model_validate(row).model_dump(mode="json"), status_code=202)


def perform(by: Principal, now: datetime, origin: str | None) -> approvals.Perform:
    """How an approved proposal is carried out; the approver answers for it, the proposal names who asked."""

    async def carry_out(tx: AsyncSession, row: ProposalRow) -> str:
        shape, do = DEEDS[MoneyAction(row.action)]
        done = await do(tx, shape.model_validate(row.body), Deed(row.key, by, now, origin))
        match done:
            case AccountOut():
                return done.firm_id
            case PolicyOut():
                return "policy"
            case ContractOut():
                return done.centre
            case CashOut() | VoucherOut() | ChargeOut() | TariffOut() | DiscountOut():
                return done.id
            case _:
                raise AssertionError(f"{row.action} leads to nothing that has a name")

    return carry_out


async def _record(tx: AsyncSession, action: str, subject: str, deed: Deed, body: Body, firm_id: FirmId | None) -> None:
    after = body.model_dump(mode="json")
    await audit.record(tx, action, subject, by=deed.by, now=deed.now, firm_id=firm_id, origin=deed.origin, after=after)
