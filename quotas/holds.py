"""Money for GPU time, before it is used: quote it, put it aside, let it go."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from kit.errors import NotFound
from kit.units import GpuMilli, MicroYuan, Ppm
from quotas import chart
from quotas.adapters import ledger_store
from quotas.adapters.ledger_store import Posting
from quotas.adapters.money_tables import ComputeHoldRow
from quotas.cash import account_of, hold_gone, no_money
from quotas.discounts import discounts_between
from quotas.hold_terms import HoldPrice, HoldRequest, hold_values, price_between
from quotas.ledger import Leg, Refusal, expire, pending, void
from quotas.pricing import share_of
from quotas.programmes import programme_ids, usable_terms
from quotas.spending import payer_of, require_room
from quotas.tariffs import payout_ppm, tariffs_between
from quotas.vocabulary import (
    PLATFORM_FIRM,
    ComputeQuote,
    FirmId,
    Hold,
    HoldId,
    HoldState,
    KeyId,
    PoolName,
    ProjectId,
    QoS,
    TariffId,
    UsageKind,
    VoucherId,
    VoucherPart,
    centre_of,
)
from quotas.vouchers import Allocation, allocate

QUOTE_VALID = timedelta(minutes=15)
HOLD_SLACK = timedelta(days=1)
"""How long after its work must be over a hold waits to be settled before the sweeper lets it go."""


async def quote_compute(
    tx: AsyncSession,
    *,
    firm_id: FirmId,
    pool: PoolName,
    qos: QoS,
    gpu_milli: GpuMilli,
    seconds_min: int,
    seconds_max: int,
    cap_micro_yuan: MicroYuan | None = None,
    at: datetime,
    now: datetime,
) -> ComputeQuote:
    """What GPU time from `at` would cost, who would pay, and whether it can be paid now. Holds nothing.

    With `cap_micro_yuan` it is never charged more than that, as with a hold.

    Raises Refused (`no_tariff`).
    """
    price = await _price(tx, firm_id, pool, qos, gpu_milli, seconds_min, seconds_max, at=at)
    terms = [] if firm_id == PLATFORM_FIRM else await usable_terms(tx, firm_id, at=now)
    dearest, cheapest = price.capped(cap_micro_yuan), MicroYuan(min(price.least, price.capped(cap_micro_yuan)))
    most = allocate(dearest, terms, kind=UsageKind.COMPUTE, pool=pool, at=at)
    least = allocate(cheapest, terms, kind=UsageKind.COMPUTE, pool=pool, at=at)
    account = await account_of(tx, firm_id)
    return ComputeQuote(
        tariff_id=price.tariff_id,
        min_micro_yuan=cheapest,
        max_micro_yuan=dearest,
        voucher_pays_min=MicroYuan(cheapest - least.cash),
        voucher_pays_max=MicroYuan(dearest - most.cash),
        cash_min=least.cash,
        cash_max=most.cash,
        voucher_ids=tuple(part.voucher_id for part in most.parts),
        explanation=most.explanation,
        affordable=firm_id == PLATFORM_FIRM or most.cash <= account.available,
        valid_until=now + QUOTE_VALID,
    )


async def _price(
    tx: AsyncSession,
    firm_id: FirmId,
    pool: PoolName,
    qos: QoS,
    milli: int,
    seconds_min: int,
    seconds_max: int,
    *,
    at: datetime,
) -> HoldPrice:
    end = at + timedelta(seconds=seconds_max)
    tariffs = await tariffs_between(tx, at, end)
    discounts = (await discounts_between(tx, [firm_id], at, end)).get(firm_id, ())
    return price_between(tariffs, discounts, pool, qos, milli, seconds_min, seconds_max, at=at)


async def hold_compute(
    tx: AsyncSession,
    *,
    key: str,
    firm_id: FirmId,
    project_id: ProjectId,
    subject: str,
    pool: PoolName,
    qos: QoS,
    gpu_milli: GpuMilli,
    seconds_max: int,
    cap_micro_yuan: MicroYuan | None = None,
    key_id: KeyId | None = None,
    now: datetime,
) -> Hold:
    """Put aside what a workload may cost, at most `cap_micro_yuan`: vouchers in burn order, then cash.

    `key_id`: the API key that asked for it. The same key returns the same hold. Raises NoMoney (`budget_reached` for a
    hard budget), Refused (`no_tariff`), Conflict (`key_reused`); after any of them nothing has changed and `tx` may go
    on.
    """
    asked = HoldRequest(
        key, firm_id, project_id, subject, pool, qos, gpu_milli, seconds_max, cap_micro_yuan, key_id
    )  # fmt: skip
    request = asked.hash
    if known := await _known(tx, key, request):
        return known
    price = await _price(tx, firm_id, pool, qos, gpu_milli, 0, seconds_max, at=now)
    amount = price.capped(cap_micro_yuan)
    expires_at = now + timedelta(seconds=seconds_max) + HOLD_SLACK
    await require_room(tx, await payer_of(tx, firm_id, project_id, key_id), amount, now=now)
    allocation, posting = await _reserve(tx, key, firm_id, pool, amount, expires_at=expires_at, now=now)
    if posting and posting.replayed and (held := await _known(tx, key, request)):
        return held
    numbers = list(posting.transfer_ids) if posting else []
    cash_pending = numbers.pop(0) if posting and len(numbers) > len(allocation.parts) else None
    values = hold_values(asked, price.tariff_id, allocation, cash_pending, numbers, expires_at=expires_at, now=now)
    await tx.execute(insert(ComputeHoldRow).values(values).on_conflict_do_nothing(index_elements=["request_key"]))
    held = await _known(tx, key, request)
    assert held is not None, "it was just written, here or by whoever used the key at the same time"
    return held


async def _known(tx: AsyncSession, key: str, request: bytes) -> Hold | None:
    row = (await tx.execute(select(ComputeHoldRow).where(col(ComputeHoldRow.request_key) == key))).scalar_one_or_none()
    if row is not None and row.request_hash != request:
        raise ledger_store.key_reused("hold", key)
    return None if row is None else hold_view(row)


async def _reserve(
    tx: AsyncSession,
    key: str,
    firm_id: FirmId,
    pool: PoolName,
    amount: MicroYuan,
    *,
    expires_at: datetime,
    now: datetime,
) -> tuple[Allocation, Posting | None]:
    """Who pays an amount, and the ledger's operation that holds it (None when there is nothing to hold)."""
    cash_account, revenue = chart.firm_cash(firm_id), chart.revenue(UsageKind.COMPUTE)
    for _ in range(ledger_store.RACES):
        if firm_id == PLATFORM_FIRM:
            # The platform pays itself nothing; what it will owe the centre is what it holds.
            cash_account, revenue = (
                chart.OWN_COST,
                chart.centre_payable(centre_of(pool)),
            )
            owed = share_of(amount, await payout_ppm(tx, centre=centre_of(pool), at=now))
            allocation = Allocation((), owed, ("the platform pays its own workloads",))
        else:
            terms = await usable_terms(tx, firm_id, at=now)
            allocation = allocate(amount, terms, kind=UsageKind.COMPUTE, pool=pool, at=now)
        programmes = await programme_ids(tx, [part.voucher_id for part in allocation.parts])
        vouchers = [
            (
                part,
                chart.voucher(part.voucher_id, programmes[part.voucher_id]),
                programmes[part.voucher_id],
            )
            for part in allocation.parts
        ]
        redeemed = [chart.programme_redeemed(programme) for _, _, programme in vouchers]
        ids = await ledger_store.accounts(
            tx,
            [
                cash_account,
                revenue,
                *(account for _, account, _ in vouchers),
                *redeemed,
            ],
            at=now,
        )
        legs: list[Leg] = []
        if allocation.cash:
            legs.append(pending(ids[cash_account], ids[revenue], allocation.cash, expires_at))
        for (part, account, _), to in zip(vouchers, redeemed, strict=True):
            legs.append(pending(ids[account], ids[to], part.amount, expires_at))
        if not legs:
            return allocation, None
        posting = await ledger_store.post(tx, scope="hold", key=key, request=[firm_id, pool], legs=legs, at=now)
        if isinstance(posting, Posting):
            return allocation, posting
        if posting.account == ids[cash_account]:
            raise await no_money(tx, firm_id, allocation.cash)
        # Somebody used a voucher first. A race is no lack of money: what the next look sees stays there.
        await ledger_store.lock_balances(tx, [ids[cash_account], *(ids[account] for _, account, _ in vouchers)])
    raise await no_money(tx, firm_id, amount)


def hold_view(row: ComputeHoldRow) -> Hold:
    """A hold as others see it."""
    return Hold(
        HoldId(row.id),
        FirmId(row.firm_id),
        ProjectId(row.project_id),
        row.subject,
        MicroYuan(row.amount),
        MicroYuan(row.cash),
        tuple(parts_of(row)),
        TariffId(row.tariff_id),
        HoldState(row.state),
        row.expires_at,
    )


def parts_of(row: ComputeHoldRow) -> Sequence[VoucherPart]:
    """The vouchers' parts of a hold, in burn order."""
    return [_part(part) for part in row.parts]


def _part(part: dict[str, Any]) -> VoucherPart:
    return VoucherPart(
        VoucherId(part["voucher_id"]),
        MicroYuan(part["base"]),
        Ppm(part["share_ppm"]),
        MicroYuan(part["amount"]),
    )


async def locked_hold(tx: AsyncSession, hold_id: HoldId) -> ComputeHoldRow:
    """A hold's row, locked until the transaction ends. Raises NotFound."""
    row = await tx.get(ComputeHoldRow, hold_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound(f"There is no hold {hold_id}.", code="hold_not_found")
    return row


async def release_hold(tx: AsyncSession, *, hold_id: HoldId, reason: str, now: datetime) -> None:
    """Give everything held back: the platform broke the work, or it never ran. Again is no change.

    Raises Conflict (`hold_resolved`) when it was settled.
    """
    row = await locked_hold(tx, hold_id)
    if row.state == HoldState.SETTLED:
        raise hold_gone(f"Hold {hold_id}", row.state)
    if row.state == HoldState.OPEN:
        await _give_back(tx, row, void, scope="release", now=now)
        row.state, row.closed_at, row.close_reason = (
            HoldState.RELEASED.value,
            now,
            reason,
        )
        await tx.flush()


async def expire_hold(tx: AsyncSession, row: ComputeHoldRow, *, now: datetime) -> None:
    """Let a hold go whose time is over; `row` is locked and open."""
    await _give_back(tx, row, expire, scope="hold-expiry", now=now)
    row.state, row.closed_at, row.close_reason = (
        HoldState.EXPIRED.value,
        now,
        "nobody settled it in time",
    )
    await tx.flush()


async def _give_back(tx: AsyncSession, row: ComputeHoldRow, how: Any, *, scope: str, now: datetime) -> None:
    legs = [how(number) for number in pending_ids(row)]
    if legs:
        posting = await ledger_store.post(tx, scope=scope, key=row.id, request=row.id, legs=legs, at=now)
        assert not isinstance(posting, Refusal), f"an open hold can be given back: {posting}"


def pending_ids(row: ComputeHoldRow) -> list[int]:
    """The ledger's pending transfers of a hold."""
    cash = [] if row.cash_pending_id is None else [row.cash_pending_id]
    return cash + [part["pending_id"] for part in row.parts]


async def expire_holds(tx: AsyncSession, *, now: datetime, at_most: int = 200) -> int:
    """Let go of holds whose time is over. Returns how many."""
    due = await tx.execute(
        select(ComputeHoldRow)
        .where(text("state = 'open' AND expires_at <= :now"))
        .order_by(text("id"))
        .limit(at_most)
        .with_for_update(skip_locked=True),
        {"now": now},
    )
    rows = due.scalars().all()
    for row in rows:
        await expire_hold(tx, row, now=now)
    return len(rows)
