"""Credit notes: give a charge back to whoever paid it. Nothing is ever edited."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from kit.errors import Conflict
from kit.ids import new_id
from kit.units import MicroYuan, format_yuan
from quotas import chart
from quotas.adapters import ledger_store
from quotas.adapters.ledger_store import Posting
from quotas.adapters.money_tables import ChargeRow
from quotas.charges import charge_not_found, charge_view
from quotas.chart import AccountSpec
from quotas.ledger import posted
from quotas.periods import billing_periods
from quotas.programmes import programme_ids
from quotas.statements import period_of
from quotas.vocabulary import Charge, ChargeId, FirmId, Period, UsageKind, VoucherId


async def refund_charge(
    tx: AsyncSession, *, charge_id: ChargeId, reason: str, now: datetime, expected: MicroYuan | None = None
) -> Charge:
    """Give a charge back, by a credit note: cash to cash, each voucher its own part with its own expiry. Once.

    The GPU time stays used and the centre stays paid. Raises NotFound, Conflict (`refunded_already`,
    `nothing_to_refund`; `charge_changed` when it is not the amount that was `expected`: the line of an open month
    grows).
    """
    row = await _refundable(tx, charge_id)
    if expected is not None and row.amount != expected:
        raise Conflict(
            f"Charge {charge_id} is {format_yuan(row.amount)} by now, not {format_yuan(expected)}.",
            code="charge_changed",
            hint="ask for the refund anew, best after its month has ended",
        )
    await _post(tx, row, now=now)
    firm_id, month = FirmId(row.firm_id), period_of(now)
    period = (await billing_periods(tx, [(firm_id, month)], now=now))[firm_id, month]
    note = _credit_note(row, period, reason)
    tx.add(note)
    await tx.flush()
    return charge_view(note)


async def refundable(tx: AsyncSession, charge_id: ChargeId) -> Charge:
    """A charge that can be given back. Raises NotFound, Conflict (`refunded_already`, `nothing_to_refund`)."""
    return charge_view(await _refundable(tx, charge_id))


async def _refundable(tx: AsyncSession, charge_id: ChargeId) -> ChargeRow:
    row = await tx.get(ChargeRow, charge_id, with_for_update=True, populate_existing=True)
    if row is None or row.reverses is not None:
        raise charge_not_found(charge_id)
    found = await tx.execute(select(ChargeRow).where(col(ChargeRow.reverses) == charge_id))
    if found.scalar_one_or_none() is not None:
        raise Conflict(
            f"Charge {charge_id} was given back already.",
            code="refunded_already",
            hint="what a line of an open month grew by since is paid back as a top-up, with the charge as its evidence",
        )
    if row.amount == 0:
        raise Conflict(f"Charge {charge_id} is of nothing; there is nothing to give back.", code="nothing_to_refund")
    return row


async def _post(tx: AsyncSession, row: ChargeRow, *, now: datetime) -> None:
    """The posting table of docs/ledger.md, row "refund"."""
    firm_id, revenue = FirmId(row.firm_id), chart.revenue(UsageKind(row.kind))
    moves: list[tuple[AccountSpec, AccountSpec, int]] = [(revenue, chart.firm_cash(firm_id), row.cash)]
    programmes = await programme_ids(tx, [VoucherId(voucher) for voucher in row.vouchers])
    for voucher_id, amount in sorted(row.vouchers.items()):
        programme = programmes[VoucherId(voucher_id)]
        moves.append(
            (
                chart.programme_redeemed(programme),
                chart.voucher(VoucherId(voucher_id), programme),
                amount,
            )
        )
        moves.append((revenue, chart.funder_receivable(programme), amount))
    moves = [move for move in moves if move[2]]
    ids = await ledger_store.accounts(tx, [spec for move in moves for spec in move[:2]], at=now)
    if moves:
        posting = await ledger_store.post(
            tx,
            scope="refund",
            key=row.id,
            request=row.id,
            legs=[posted(ids[debit], ids[credit], amount) for debit, credit, amount in moves],
            at=now,
        )
        assert isinstance(posting, Posting), f"what was paid can be given back: {posting}"


def _credit_note(row: ChargeRow, period: Period, reason: str) -> ChargeRow:
    return ChargeRow(
        id=new_id("chg"),
        line_key=f"refund:{row.id}",
        kind=row.kind,
        firm_id=row.firm_id,
        project_id=row.project_id,
        subject=row.subject,
        period=period,
        service_period=row.service_period,
        tariff_id=row.tariff_id,
        key_id=row.key_id,
        model=row.model,
        pool=row.pool,
        qos=row.qos,
        rates={},
        contract_rates={},
        voucher_bases={},
        amount=-row.amount,
        voucher=-row.voucher,
        cash=-row.cash,
        vouchers={voucher: -amount for voucher, amount in row.vouchers.items()},
        list_amount=0,
        first_at=row.first_at,
        last_at=row.last_at,
        explanation=[f"credit note for {row.id}"],
        reverses=row.id,
        note=reason,
    )
