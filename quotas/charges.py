"""GPU time after it was used: settle a hold at what was used, roll a replica's hold on, refund a charge."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from kit.errors import Conflict, InvalidInput, NotFound, Refused
from kit.ids import new_id
from kit.units import GpuMilli, GpuMs, MicroYuan, Ppm
from quotas import chart
from quotas.adapters import ledger_store
from quotas.adapters.money_tables import ChargeRow, ComputeHoldRow, ComputeUsageRow
from quotas.cash import account_of, hold_gone
from quotas.chart import AccountSpec
from quotas.collecting import residue_moves
from quotas.discounts import discounts_between
from quotas.holds import expire_hold, hold_compute, locked_hold, parts_of
from quotas.ledger import Leg, Refusal, post, posted, void
from quotas.periods import billing_periods
from quotas.price_times import keep_prices
from quotas.pricing import Price, Segment, priced, share_of, shown_rates
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
    ProgrammeId,
    ProjectId,
    QoS,
    TariffId,
    UsageKind,
    VoucherId,
    VoucherPart,
)
from quotas.vouchers import Allocation, paid_by, settle


@dataclass(frozen=True, slots=True)
class _Bill:
    """What a usage costs: `listed` at the tariff, `price` by contract, `amount` what the firm is asked.

    `loss` is what nobody pays. Centres are paid their part of the list price: a discount is the platform's.
    """

    listed: Price
    price: Price
    segments: tuple[Segment, ...]
    allocation: Allocation
    amount: MicroYuan
    loss: MicroYuan
    payout: Ppm
    payable: MicroYuan

    @property
    def discount(self) -> MicroYuan:
        """What the firm's contract takes off the list price."""
        return MicroYuan(self.listed.amount - self.price.amount)

    @property
    def residue(self) -> int:
        """What rounding left, where the rounded price is what was asked."""
        return self.price.residue if self.amount == self.price.amount else 0


async def settle_compute(tx: AsyncSession, *, hold_id: HoldId, usage: ComputeUsage, now: datetime) -> Charge:
    """Charge a usage against its hold and give the rest back. The same usage again returns the same charge.

    Never charges more than was held. A hold that expired before it was settled is charged to cash as far as it goes;
    the rest is the platform's loss. Raises NotFound, Conflict (`usage_differs`, `usage_overlaps`, `hold_resolved`).
    """
    _check(usage)
    row = await locked_hold(tx, hold_id)
    request = ledger_store.request_hash([hold_id, usage.pool, usage.qos, usage.gpu_ms, usage.ended_at])
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


async def _bill(tx: AsyncSession, row: ComputeHoldRow, usage: ComputeUsage, *, now: datetime) -> _Bill:
    await keep_prices(tx)
    tariffs = await tariffs_between(tx, usage.started_at, usage.ended_at)
    contracts = await discounts_between(tx, [usage.firm_id], usage.started_at, usage.ended_at)
    segments, listed, price = priced(usage, tariffs, contracts.get(usage.firm_id, ()))
    payout = await payout_ppm(tx, centre=usage.centre, at=usage.started_at)
    payable = share_of(listed.amount, payout)
    if usage.firm_id == PLATFORM_FIRM:
        nothing = Allocation((), MicroYuan(0), ("the platform's own workload",))
        return _Bill(listed, price, segments, nothing, MicroYuan(0), MicroYuan(0), payout, payable)
    if row.state == HoldState.OPEN:
        amount = MicroYuan(min(price.amount, row.amount))
        allocation = settle(amount, parts_of(row))
        assert allocation.cash <= row.cash, "what is settled is at most what was held, part by part"
        return _Bill(listed, price, segments, allocation, amount, MicroYuan(0), payout, payable)
    cash = await ledger_store.accounts(tx, [chart.firm_cash(usage.firm_id)], at=now)
    await ledger_store.lock_balances(tx, list(cash.values()))  # nobody spends what it is about to pay with
    there = max(0, (await account_of(tx, usage.firm_id)).available)
    amount = MicroYuan(min(price.amount, row.amount, there))
    allocation = Allocation((), amount, ("the hold had expired: cash pays what it can",))
    return _Bill(
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
    bill: _Bill,
    *,
    now: datetime,
) -> None:
    """One operation: the posting table of docs/ledger.md, row "settle"."""
    programmes = await programme_ids(tx, [part.voucher_id for part in bill.allocation.parts])
    moves = _moves(row, usage, bill, programmes)
    ids = await ledger_store.accounts(tx, [spec for move in moves for spec in move[:2]], at=now)
    legs = _resolving_legs(row, usage, bill) + [posted(ids[debit], ids[credit], n) for debit, credit, n in moves]
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


def _own_cost_held(row: ComputeHoldRow, bill: _Bill) -> int:
    """What of the platform's own work is paid from its hold; the centre is owed the rest too."""
    return min(bill.payable, row.cash) if row.state == HoldState.OPEN else 0


def _resolving_legs(row: ComputeHoldRow, usage: ComputeUsage, bill: _Bill) -> list[Leg]:
    if row.state != HoldState.OPEN:
        return []
    cash = _own_cost_held(row, bill) if usage.firm_id == PLATFORM_FIRM else bill.allocation.cash
    paid = paid_by(bill.allocation.parts)
    takes = [(part["pending_id"], paid.get(part["voucher_id"], 0)) for part in row.parts]
    if row.cash_pending_id is not None:
        takes.insert(0, (row.cash_pending_id, cash))
    return [post(number, amount) if amount else void(number) for number, amount in takes]


def _moves(
    row: ComputeHoldRow,
    usage: ComputeUsage,
    bill: _Bill,
    programmes: dict[VoucherId, ProgrammeId],
) -> list[tuple[AccountSpec, AccountSpec, int]]:
    """(debit, credit, amount) of all that moves at once, beside what was held."""
    revenue = chart.revenue(UsageKind.COMPUTE)
    moves = [
        (
            chart.funder_receivable(programmes[part.voucher_id]),
            revenue,
            int(part.amount),
        )
        for part in bill.allocation.parts
    ]
    moves.append(
        (
            chart.firm_gpu(usage.firm_id, usage.pool),
            chart.pool_capacity(usage.pool),
            int(usage.gpu_ms),
        )
    )
    if usage.firm_id != PLATFORM_FIRM:
        moves.append((chart.CENTRE_COST, chart.centre_payable(usage.centre), bill.payable))
        moves.append((chart.LOSS, revenue, bill.loss))
        if row.state != HoldState.OPEN:
            moves.append((chart.firm_cash(usage.firm_id), revenue, bill.allocation.cash))
        moves += residue_moves(bill.residue, UsageKind.COMPUTE)
    else:
        held = _own_cost_held(row, bill)
        moves.append((chart.OWN_COST, chart.centre_payable(usage.centre), bill.payable - held))
    return [move for move in moves if move[2]]


async def _record(
    tx: AsyncSession, row: ComputeHoldRow, usage: ComputeUsage, bill: _Bill, request: bytes, *, now: datetime
) -> Charge:
    service = service_period(usage.started_at, usage.ended_at)
    period = (await billing_periods(tx, [(usage.firm_id, service)], now=now))[usage.firm_id, service]
    start_us = (usage.started_at - datetime(1970, 1, 1, tzinfo=usage.started_at.tzinfo)) // timedelta(microseconds=1)
    capped = bill.price.amount - bill.amount - bill.loss if usage.firm_id != PLATFORM_FIRM else 0
    line = ChargeRow(
        id=new_id("chg"),
        line_key=f"compute:{usage.attempt_id}:{start_us}",
        kind=UsageKind.COMPUTE.value,
        firm_id=usage.firm_id,
        project_id=usage.project_id,
        subject=usage.subject,
        period=period,
        service_period=service,
        tariff_id=bill.segments[0].tariff_id,
        key_id=row.key_id,
        pool=usage.pool,
        centre=usage.centre,
        qos=usage.qos.value,
        gpu_ms=usage.gpu_ms,
        requests=1,
        rates=shown_rates(bill.segments, contract=False),
        contract_rates=shown_rates(bill.segments, contract=True),
        discount=bill.discount,
        discount_id=next((one.discount_id for one in bill.segments if one.discount_id), None),
        amount=bill.amount,
        voucher=bill.amount - bill.allocation.cash,
        cash=bill.allocation.cash,
        vouchers=dict(paid_by(bill.allocation.parts)),
        loss=bill.loss,
        list_amount=bill.listed.amount,
        payout_ppm=bill.payout,
        payable=bill.payable,
        residue=bill.residue,
        first_at=usage.started_at,
        last_at=usage.ended_at,
        explanation=list(bill.allocation.explanation),
        note=f"{capped} micro-yuan above the agreed maximum are not charged" if capped else "",
    )  # fmt: skip
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
    return Charge(
        ChargeId(row.id),
        FirmId(row.firm_id),
        ProjectId(row.project_id),
        UsageKind(row.kind),
        row.subject,
        None if row.tariff_id is None else TariffId(row.tariff_id),
        MicroYuan(row.amount),
        MicroYuan(row.cash),
        MicroYuan(row.voucher),
        Period(row.period),
        GpuMs(row.gpu_ms),
        tuple(parts),
    )


async def charge_of(tx: AsyncSession, charge_id: ChargeId) -> Charge:
    """A charge by its id. Raises NotFound."""
    row = await tx.get(ChargeRow, charge_id, populate_existing=True)
    if row is None:
        raise NotFound(f"There is no charge {charge_id}.", code="charge_not_found")
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
