"""Allowance leases: a slice of a firm's money in a gateway's hands, so that it decides without asking.

A lease is a hold in the ledger, so the sum of all leases never exceeds what is there. Its holder renews it, tops it
up, returns it, or loses it when it dies.
"""

from datetime import datetime, timedelta

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import InvalidInput, NotFound
from kit.ids import new_id
from kit.units import MicroYuan
from quotas import chart
from quotas.adapters import ledger_store
from quotas.adapters.money_tables import AllowanceLeaseRow
from quotas.cash import account_of, hold_gone, no_money
from quotas.ledger import Leg, Refusal, expire, extend, pending, void
from quotas.vocabulary import AllowanceLease, FirmId, LeaseId, UsageKind

LEASE_SECONDS_MAX = 3600
RACES = 5


async def lease_allowance(
    tx: AsyncSession,
    *,
    holder: str,
    firm_id: FirmId,
    amount: MicroYuan,
    lease_seconds: int,
    now: datetime,
) -> AllowanceLease:
    """Lease up to `amount` of what the firm has free: less when there is less, never nothing.

    Raises NoMoney when nothing is free; others' unused leases may then be recalled.
    """
    _check(amount, lease_seconds)
    lease_id = LeaseId(new_id("lse"))
    expires_at = now + timedelta(seconds=lease_seconds)
    number, granted = await _reserve(tx, lease_id, firm_id, amount, expires_at=expires_at, now=now)
    row = AllowanceLeaseRow(
        id=lease_id,
        holder=holder,
        firm_id=firm_id,
        pending_id=number,
        state="open",
        created_at=now,
        expires_at=expires_at,
    )
    tx.add(row)
    await tx.flush()
    return _view(row, granted)


def _check(amount: int, lease_seconds: int) -> None:
    if amount <= 0:
        raise InvalidInput("a lease is of at least one micro-yuan")
    if not 0 < lease_seconds <= LEASE_SECONDS_MAX:
        raise InvalidInput(f"a lease lasts between 1 and {LEASE_SECONDS_MAX} seconds")


async def _reserve(
    tx: AsyncSession,
    lease_id: LeaseId,
    firm_id: FirmId,
    amount: int,
    *,
    expires_at: datetime,
    now: datetime,
) -> tuple[int, MicroYuan]:
    """Hold up to `amount`; returns the pending transfer and what was held."""
    cash, revenue = chart.firm_cash(firm_id), chart.revenue(UsageKind.TOKENS)
    ids = await ledger_store.accounts(tx, [cash, revenue], at=now)
    for _ in range(RACES):
        granted = min(amount, (await account_of(tx, firm_id)).available)
        if granted <= 0:
            break
        posting = await ledger_store.post(
            tx,
            scope="lease",
            key=new_id("op"),
            request=lease_id,
            legs=[pending(ids[cash], ids[revenue], granted, expires_at)],
            at=now,
        )
        if not isinstance(posting, Refusal):
            return posting.transfer_ids[0], MicroYuan(granted)
    raise await no_money(tx, firm_id, 1)


def _view(row: AllowanceLeaseRow, left: int) -> AllowanceLease:
    return AllowanceLease(
        LeaseId(row.id),
        row.holder,
        FirmId(row.firm_id),
        MicroYuan(left),
        row.expires_at,
        row.recalled_at is not None,
    )


async def _locked(tx: AsyncSession, lease_id: LeaseId, holder: str) -> AllowanceLeaseRow:
    row = await tx.get(AllowanceLeaseRow, lease_id, with_for_update=True, populate_existing=True)
    if row is None or row.holder != holder:
        raise NotFound(f"There is no lease {lease_id} of {holder}.", code="lease_not_found")
    return row


async def renew_allowance(
    tx: AsyncSession,
    *,
    lease_id: LeaseId,
    holder: str,
    top_up: int = 0,
    lease_seconds: int,
    now: datetime,
) -> AllowanceLease:
    """Keep a lease for another `lease_seconds` and add up to `top_up` to it, as far as money is free.

    A recalled lease gets no more money: use what is left, ship its usage, return it. Raises NotFound, Conflict
    (`hold_resolved`) when it was returned or has expired.
    """
    row = await _locked(tx, lease_id, holder)
    if row.state == "open" and row.expires_at <= now:
        await _close(tx, row, "expired", now=now)
    if row.state != "open":
        raise hold_gone(f"Lease {lease_id}", row.state)
    row.expires_at = now + timedelta(seconds=lease_seconds)
    _check(1, lease_seconds)
    left = (await ledger_store.pending_left(tx, [row.pending_id])).get(row.pending_id, 0)
    if left:
        await ledger_store.hold_until(tx, row.pending_id, row.expires_at)
    if top_up > 0 and row.recalled_at is None:
        left += await _top_up(tx, row, left, top_up, now=now)
    await tx.flush()
    return _view(row, left)


async def _top_up(tx: AsyncSession, row: AllowanceLeaseRow, left: int, top_up: int, *, now: datetime) -> int:
    """Add what is free to a lease: to its hold, or to a new one when that was used up. Returns how much."""
    free = min(top_up, (await account_of(tx, FirmId(row.firm_id))).available)
    if free <= 0:
        return 0
    cash, revenue = (
        chart.firm_cash(FirmId(row.firm_id)),
        chart.revenue(UsageKind.TOKENS),
    )
    ids = await ledger_store.accounts(tx, [cash, revenue], at=now)
    leg: Leg = extend(row.pending_id, free) if left else pending(ids[cash], ids[revenue], free, row.expires_at)
    posting = await ledger_store.post(tx, scope="lease", key=new_id("op"), request=row.id, legs=[leg], at=now)
    if isinstance(posting, Refusal):  # somebody was faster; the next renewal sees what is left
        return 0
    if not left:
        row.pending_id = posting.transfer_ids[0]
    return free


async def return_allowance(tx: AsyncSession, *, lease_id: LeaseId, holder: str, now: datetime) -> None:
    """Give back what a lease has left. Ship its usage first. Again is no change."""
    row = await _locked(tx, lease_id, holder)
    if row.state == "open":
        await _close(tx, row, "returned", now=now)


async def _close(tx: AsyncSession, row: AllowanceLeaseRow, state: str, *, now: datetime) -> None:
    if await ledger_store.pending_left(tx, [row.pending_id]):
        leg = expire(row.pending_id) if row.expires_at <= now else void(row.pending_id)
        posting = await ledger_store.post(tx, scope=f"lease-{state}", key=row.id, request=row.id, legs=[leg], at=now)
        assert not isinstance(posting, Refusal), f"what a lease has left can be given back: {posting}"
    row.state, row.closed_at = state, now
    await tx.flush()


async def recall_allowances(tx: AsyncSession, *, firm_id: FirmId, except_holder: str, now: datetime) -> int:
    """Ask every other holder to return what it does not use; they see it when they renew. Returns how many."""
    done = await tx.execute(
        text("""UPDATE quotas.allowance_lease SET recalled_at = :now
            WHERE firm_id = :firm AND holder <> :holder AND state = 'open' AND recalled_at IS NULL RETURNING id"""),
        {"firm": firm_id, "holder": except_holder, "now": now},
    )
    return len(done.all())


async def open_leases(tx: AsyncSession, *, holder: str) -> list[AllowanceLease]:
    """What a holder has in hand; a gateway that starts again returns what its dead self left."""
    rows = (
        (
            await tx.execute(
                select(AllowanceLeaseRow).where(text("holder = :holder AND state = 'open'")),
                {"holder": holder},
            )
        )
        .scalars()
        .all()
    )
    left = await ledger_store.pending_left(tx, [row.pending_id for row in rows])
    return [_view(row, left.get(row.pending_id, 0)) for row in rows]


async def expire_leases(tx: AsyncSession, *, now: datetime, at_most: int = 200) -> int:
    """Take back the leases of holders that did not renew in time. Returns how many."""
    rows = await tx.execute(
        select(AllowanceLeaseRow)
        .where(text("state = 'open' AND expires_at <= :now"))
        .order_by(text("id"))
        .limit(at_most)
        .with_for_update(skip_locked=True),
        {"now": now},
    )
    due = rows.scalars().all()
    for row in due:
        await _close(tx, row, "expired", now=now)
    return len(due)
