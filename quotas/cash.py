"""Prepaid money: record what finance received, pay back, allow a credit line, and say how a firm stands."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from kit.errors import Conflict, InvalidInput, NoMoney, Refused
from kit.ids import new_id
from kit.units import MAX_AMOUNT, MicroYuan, format_yuan
from quotas import chart
from quotas.adapters import ledger_store
from quotas.adapters.money_tables import CashMovementRow
from quotas.ledger import Refusal, posted
from quotas.statements import period_of
from quotas.vocabulary import FirmId


@dataclass(frozen=True, slots=True)
class CashMovement:
    """`amount` is what the firm paid in; negative when it was paid back."""

    id: str
    firm_id: FirmId
    amount: MicroYuan
    evidence: str
    recorded_by: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Account:
    """How a firm stands: `available = balance - held + credit_line`."""

    firm_id: FirmId
    balance: MicroYuan
    held: MicroYuan
    credit_line: MicroYuan
    available: MicroYuan


async def record_topup(
    tx: AsyncSession,
    *,
    key: str,
    firm_id: FirmId,
    amount: MicroYuan,
    evidence: str,
    by: str,
    now: datetime,
) -> CashMovement:
    """Book money that reached the platform's bank account. The same key twice books once.

    Raises InvalidInput for an amount outside 1..2^53, Conflict (`key_reused`).
    """
    return await _move(tx, key=key, firm_id=firm_id, amount=amount, evidence=evidence, by=by, now=now)


async def record_withdrawal(
    tx: AsyncSession,
    *,
    key: str,
    firm_id: FirmId,
    amount: MicroYuan,
    evidence: str,
    by: str,
    now: datetime,
) -> CashMovement:
    """Book money paid back to a firm. Raises NoMoney when it has less than that free."""
    return await _move(
        tx,
        key=key,
        firm_id=firm_id,
        amount=MicroYuan(-amount),
        evidence=evidence,
        by=by,
        now=now,
    )


async def _move(
    tx: AsyncSession,
    *,
    key: str,
    firm_id: FirmId,
    amount: MicroYuan,
    evidence: str,
    by: str,
    now: datetime,
) -> CashMovement:
    if not 1 <= abs(amount) <= MAX_AMOUNT:
        raise InvalidInput(f"{amount} micro-yuan cannot be booked; an amount is between 1 and 2^53 micro-yuan")
    cash = chart.firm_cash(firm_id)
    ids = await ledger_store.accounts(tx, [cash, chart.BANK], at=now)
    paid_in = amount > 0
    debit, credit = (chart.BANK, cash) if paid_in else (cash, chart.BANK)
    posting = await ledger_store.post(
        tx,
        scope="cash",
        key=key,
        request={"firm": firm_id, "amount": amount, "evidence": evidence},
        legs=[posted(ids[debit], ids[credit], abs(amount))],
        at=now,
    )
    if isinstance(posting, Refusal):
        raise await no_money(tx, firm_id, abs(amount))
    if posting.replayed:
        known = await tx.execute(
            select(CashMovementRow).where(col(CashMovementRow.operation_id) == posting.operation_id)
        )
        return _view(known.scalar_one())
    row = CashMovementRow(
        id=new_id("top" if paid_in else "wdr"),
        firm_id=firm_id,
        amount=amount,
        evidence=evidence,
        recorded_by=by,
        at=now,
        period=period_of(now),
        operation_id=posting.operation_id,
    )
    tx.add(row)
    await tx.flush()
    return _view(row)


def _view(row: CashMovementRow) -> CashMovement:
    return CashMovement(
        row.id,
        FirmId(row.firm_id),
        MicroYuan(row.amount),
        row.evidence,
        row.recorded_by,
        row.at,
    )


async def movements(tx: AsyncSession, firm_id: FirmId) -> list[CashMovement]:
    """What a firm paid in and was paid back, newest first."""
    rows = await tx.execute(
        select(CashMovementRow)
        .where(col(CashMovementRow.firm_id) == firm_id)
        .order_by(text("at DESC, id DESC"))
        .limit(500)
    )
    return [_view(row) for row in rows.scalars()]


async def account_of(tx: AsyncSession, firm_id: FirmId) -> Account:
    """A firm's cash as it stands now."""
    cash = chart.firm_cash(firm_id)
    state = (await ledger_store.bounded_states(tx, [cash])).get(cash.code)
    if state is None:
        return Account(firm_id, MicroYuan(0), MicroYuan(0), MicroYuan(0), MicroYuan(0))
    return Account(
        firm_id,
        MicroYuan(state.posted),
        MicroYuan(state.held),
        MicroYuan(-state.floor),
        MicroYuan(state.available),
    )


async def set_credit_line(tx: AsyncSession, *, firm_id: FirmId, amount: MicroYuan, now: datetime) -> Account:
    """Let a firm owe up to `amount`. Raises Refused (`credit_line_in_use`) when it owes or holds more already."""
    if not 0 <= amount <= MAX_AMOUNT:
        raise InvalidInput(f"{amount} micro-yuan is no credit line; it is between 0 and 2^53 micro-yuan")
    cash = chart.firm_cash(firm_id)
    ids = await ledger_store.accounts(tx, [cash], at=now)
    if not await ledger_store.set_floor(tx, ids[cash], -amount):
        raise Refused(
            f"The firm owes or has on hold more than {format_yuan(amount)}.",
            code="credit_line_in_use",
            hint="wait until it has paid, or choose a higher line",
        )
    return await account_of(tx, firm_id)


async def no_money(tx: AsyncSession, firm_id: FirmId, needed: int) -> NoMoney:
    """The refusal that says what is there and what is missing."""
    state = await account_of(tx, firm_id)
    return NoMoney(
        f"{format_yuan(needed)} is needed and {format_yuan(state.available)} is available "
        f"({format_yuan(state.held)} is on hold).",
        hint="top up the firm's account, or ask for less",
        details={
            "needed_micro_yuan": needed,
            "available_micro_yuan": state.available,
            "held_micro_yuan": state.held,
        },
    )


def hold_gone(what: str, state: str) -> Conflict:
    """A hold or lease was resolved already, another way than is asked now."""
    return Conflict(
        f"{what} is {state} already.",
        code="hold_resolved",
        hint="it cannot be resolved twice",
    )
