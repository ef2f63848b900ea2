"""GPU time after it was used: settle a hold at what was used, roll a replica's hold on, refund a charge."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from kit.errors import Conflict, InvalidInput, NotFound, Refused
from kit.units import GpuMilli, GpuMs, MicroYuan
from quotas import chart
from quotas.adapters import ledger_store
from quotas.adapters.money_tables import ChargeRow, ComputeHoldRow, ComputeUsageRow
from quotas.bills import Bill, bill_open, line_values, moves_of, resolving_legs
from quotas.cash import account_of, hold_gone
from quotas.discounts import discounts_between
from quotas.holds import expire_hold, hold_compute, locked_hold
from quotas.ledger import Refusal, posted
from quotas.periods import billing_periods
from quotas.price_times import keep_prices
from quotas.pricing import priced, share_of
from quotas.programmes import programme_ids
from quotas.spending import take_turns
from quotas.statements import service_period
from quotas.tariffs import payout_ppm, tariffs_between
from quotas.vocabulary import (
    PLATFORM_FIRM,
    Charge,
    ChargeId,
    ComputeUsage,
    FirmId,
    Hold,
    HoldId,
    HoldState,
    KeyId,
    Payer,
    Period,
    PoolName,
    ProjectId,
    QoS,
    TariffId,
    UsageKind,
    VoucherPart,
)
from quotas.vouchers import Allocation


async def settle_compute(tx: AsyncSession, *, hold_id: HoldId, usage: ComputeUsage, now: datetime) -> Charge:
    """Charge a usage against its hold and give the rest back. The same usage again returns the same charge.

    Never charges more than was held. A hold that expired before it was settled is charged to cash as far as it goes;
    the rest is the platform's loss. Raises NotFound, Conflict (`usage_differs`, `usage_overlaps`, `hold_resolved`).
    """
    _check(usage)
    row = await locked_hold(tx, hold_id)
    request = usage_hash(hold_id, usage)
    if known := await _charged_before(tx, usage, request):
        return known
    if row.state in (HoldState.SETTLED, HoldState.RELEASED):
        raise hold_gone(f"Hold {hold_id}", row.state)
    if (row.firm_id, row.subject, row.pool) != (
        usage.firm_id,
        usage.subject,
        usage.pool,
    ):
        raise Conflict(
            f"Hold {hold_id} was made for other work.",
            code="hold_mismatch",
            hint="settle its own usage",
        )
    if row.state == HoldState.OPEN and row.expires_at <= now:
        await expire_hold(tx, row, now=now)
    bill = await _bill(tx, row, usage, now=now)
    await _post(tx, row, usage, bill, now=now)
    charge = await _record(tx, row, usage, bill, request, now=now)
    if row.state == HoldState.OPEN:
        row.state, row.closed_at, row.close_reason = (
            HoldState.SETTLED.value,
            now,
            f"settled by {charge.id}",
        )
    await tx.flush()
    return charge


def usage_hash(hold_id: HoldId, usage: ComputeUsage) -> bytes:
    """The same for the same usage against the same hold."""
    return ledger_store.request_hash([hold_id, usage.pool, usage.qos, usage.gpu_ms, usage.ended_at])


def _check(usage: ComputeUsage) -> None:
    if usage.gpu_ms < 0 or usage.ended_at < usage.started_at:
        raise InvalidInput("a usage has no negative time", hint="started_at comes before ended_at")


async def _charged_before(tx: AsyncSession, usage: ComputeUsage, request: bytes) -> Charge | None:
    rows = (
        (
            await tx.execute(
                select(ComputeUsageRow).where(
                    text(
                        "attempt_id = :attempt AND (started_at = :start OR tstzrange(started_at, ended_at) && "
                        "tstzrange(CAST(:start AS timestamptz), CAST(:end AS timestamptz)))"
                    )
                ),
                {"attempt": usage.attempt_id, "start": usage.started_at, "end": usage.ended_at},
            )
        )
        .scalars()
        .all()
    )
    for row in rows:
        if row.started_at != usage.started_at:
            raise Conflict(
                f"Part of that time of attempt {usage.attempt_id} is charged already.",
                code="usage_overlaps",
            )
        if row.request_hash != request:
            raise Conflict(
                f"That usage of attempt {usage.attempt_id} was charged differently.",
                code="usage_differs",
            )
        return await charge_of(tx, ChargeId(row.charge_id))
    return None


async def _bill(tx: AsyncSession, row: ComputeHoldRow, usage: ComputeUsage, *, now: datetime) -> Bill:
    await keep_prices(tx)
    tariffs = await tariffs_between(tx, usage.started_at, usage.ended_at)
    contracts = await discounts_between(tx, [usage.firm_id], usage.started_at, usage.ended_at)
    segments, listed, price = priced(usage, tariffs, contracts.get(usage.firm_id, ()))
    payout = await payout_ppm(tx, centre=usage.centre, at=usage.started_at)
    payable = share_of(listed.amount, payout)
    if usage.firm_id == PLATFORM_FIRM:
        nothing = Allocation((), MicroYuan(0), ("the platform's own workload",))
        return Bill(listed, price, segments, nothing, MicroYuan(0), MicroYuan(0), payout, payable)
    if row.state == HoldState.OPEN:
        return bill_open(row, usage, tariffs, contracts.get(usage.firm_id, ()), payout)
    cash = await ledger_store.accounts(tx, [chart.firm_cash(usage.firm_id)], at=now)
    await ledger_store.lock_balances(tx, list(cash.values()))  # nobody spends what it is about to pay with
    there = max(0, (await account_of(tx, usage.firm_id)).available)
    amount = MicroYuan(min(price.amount, row.amount, there))
    allocation = Allocation((), amount, ("the hold had expired: cash pays what it can",))
    return Bill(
        listed,
        price,
        segments,
        allocation,
        amount,
        MicroYuan(price.amount - amount),
        payout,
        payable,
    )


async def _post(
    tx: AsyncSession,
    row: ComputeHoldRow,
    usage: ComputeUsage,
    bill: Bill,
    *,
    now: datetime,
) -> None:
    """One operation: the posting table of docs/ledger.md, row "settle"."""
    programmes = await programme_ids(tx, [part.voucher_id for part in bill.allocation.parts])
    moves = moves_of(row, usage, bill, programmes)
    ids = await ledger_store.accounts(tx, [spec for move in moves for spec in move[:2]], at=now)
    legs = resolving_legs(row, usage, bill) + [posted(ids[debit], ids[credit], n) for debit, credit, n in moves]
    if not legs:
        return
    key = f"{usage.attempt_id} {usage.started_at.isoformat()}"
    posting = await ledger_store.post(tx, scope="settle", key=key, request=[row.id, usage.gpu_ms], legs=legs, at=now)
    if isinstance(posting, Refusal):
        raise Refused(
            f"The ledger refuses to settle hold {row.id}: {posting.reason}.",
            code=posting.reason.value,
            hint="try again",
        )


async def _record(
    tx: AsyncSession, row: ComputeHoldRow, usage: ComputeUsage, bill: Bill, request: bytes, *, now: datetime
) -> Charge:
    service = service_period(usage.started_at, usage.ended_at)
    period = (await billing_periods(tx, [(usage.firm_id, service)], now=now))[usage.firm_id, service]
    line = ChargeRow(**line_values(row, usage, bill, period))
    tx.add(line)
    await tx.flush()
    tx.add(
        ComputeUsageRow(
            attempt_id=usage.attempt_id,
            started_at=usage.started_at,
            ended_at=usage.ended_at,
            gpu_ms=usage.gpu_ms,
            request_hash=request,
            charge_id=line.id,
        )
    )
    await tx.flush()
    return charge_view(line, bill.allocation.parts)


def charge_view(row: ChargeRow, parts: Sequence[VoucherPart] = ()) -> Charge:
    """A charge as others see it."""
    return charge_seen(row.model_dump(), parts)


def charge_seen(line: Mapping[str, Any], parts: Sequence[VoucherPart] = ()) -> Charge:
    """The same of a line that is not an object yet."""
    return Charge(
        ChargeId(line["id"]),
        FirmId(line["firm_id"]),
        ProjectId(line["project_id"]),
        UsageKind(line["kind"]),
        line["subject"],
        None if line["tariff_id"] is None else TariffId(line["tariff_id"]),
        MicroYuan(line["amount"]),
        MicroYuan(line["cash"]),
        MicroYuan(line["voucher"]),
        Period(line["period"]),
        GpuMs(line["gpu_ms"]),
        tuple(parts),
    )


def charge_not_found(charge_id: ChargeId) -> NotFound:
    """The answer for a charge that does not exist, and for a credit note where a charge is asked for."""
    hint = "its month shows it: heliu statement YYYY-MM"
    return NotFound(f"There is no charge {charge_id}.", code="charge_not_found", hint=hint)


async def charge_of(tx: AsyncSession, charge_id: ChargeId) -> Charge:
    """A charge by its id. Raises NotFound."""
    row = await tx.get(ChargeRow, charge_id, populate_existing=True)
    if row is None:
        raise charge_not_found(charge_id)
    return charge_view(row)


async def charges_of(tx: AsyncSession, subject: str) -> list[Charge]:
    """Every charge of a job or replica, oldest first."""
    rows = await tx.execute(select(ChargeRow).where(col(ChargeRow.subject) == subject).order_by(text("first_at, id")))
    return [charge_view(row) for row in rows.scalars()]


async def renew_compute(
    tx: AsyncSession,
    *,
    hold_id: HoldId,
    usage_slice: ComputeUsage,
    seconds_max: int,
    now: datetime,
) -> tuple[Charge, Hold]:
    """Roll a replica's hold on: settle the slice it used, hold the next; returns that charge and that hold.

    Raises NoMoney or Refused (`no_tariff`) when the next cannot be held: the slice is settled in `tx` all the same;
    commit it or roll it back and settle it at the end. Again with the same slice returns the same charge and next hold.
    Call nothing that touches the firm's balance before it in `tx`: it takes turns first.
    """
    row = await locked_hold(tx, hold_id)
    await take_turns(tx, Payer(FirmId(row.firm_id)))  # before any balance is touched: see there
    charge = await settle_compute(tx, hold_id=hold_id, usage=usage_slice, now=now)
    following = await hold_compute(
        tx,
        key=f"renew {hold_id}",
        firm_id=FirmId(row.firm_id),
        project_id=ProjectId(row.project_id),
        subject=row.subject,
        pool=PoolName(row.pool),
        qos=QoS(row.qos),
        gpu_milli=GpuMilli(row.gpu_milli),
        seconds_max=seconds_max,
        key_id=None if row.key_id is None else KeyId(row.key_id),
        now=now,
    )
    return charge, following
