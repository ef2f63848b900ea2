"""The money in an allowance lease: some of each voucher, and cash, put aside, kept and let go together.

A lease ends no later than any voucher in it, so that its vouchers pay for whatever is used under it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import NoMoney
from kit.ids import new_id
from kit.units import MicroYuan, format_yuan
from quotas import chart
from quotas.adapters import ledger_store
from quotas.adapters.money_tables import AllowanceLeaseRow
from quotas.cash import account_of
from quotas.chart import AccountSpec
from quotas.ledger import Leg, Refusal, expire, extend, pending, void
from quotas.programmes import usable_terms, voucher_ends
from quotas.vocabulary import FirmId, UsageKind, VoucherId
from quotas.vouchers import Allocation, VoucherTerms, affordable, allocate

VOUCHER_MARGIN = timedelta(seconds=10)
"""A voucher this near its end is not leased any more: so short a lease would be over before it was of use."""
NOTHING = timedelta(0)


async def set_aside(
    tx: AsyncSession,
    row: AllowanceLeaseRow,
    amount: int,
    *,
    until: datetime,
    margin: timedelta = VOUCHER_MARGIN,
    now: datetime,
) -> tuple[int, datetime]:
    """Put up to `amount` more into a lease, of vouchers valid beyond `margin` and of cash, as far as they are free.

    Returns how much, and when it ends: at `until`, or with the first of the vouchers. The row names what holds it.
    """
    firm_id = FirmId(row.firm_id)
    for _ in range(ledger_store.RACES):
        terms = await usable_terms(tx, firm_id, at=now + margin)
        cash = (await account_of(tx, firm_id)).available
        share = affordable(MicroYuan(amount), cash, terms, kind=UsageKind.TOKENS, at=now)
        wanted = _wanted(firm_id, share, terms)
        if not wanted:
            break
        ends = {one.id: one.expires_at for one in terms}
        end = min([until, *(ends[part.voucher_id] for part in share.parts)])
        ids = await ledger_store.accounts(tx, [spec for move in wanted.values() for spec in move[:2]], at=now)
        known = await ledger_store.pending_left(tx, pending_ids(row))
        legs: list[Leg] = []
        for name, (debit, credit, part) in wanted.items():
            number = _pending_of(row, name)
            legs.append(extend(number, part) if number in known else pending(ids[debit], ids[credit], part, end))
        posting = await ledger_store.post(tx, scope="lease", key=new_id("op"), request=row.id, legs=legs, at=now)
        if not isinstance(posting, Refusal):
            for name, leg, number in zip(wanted, legs, posting.transfer_ids, strict=True):
                if leg.pending_id is None:
                    _name(row, name, number)
            return sum(part for _, _, part in wanted.values()), end
        # Somebody was faster. A race is no lack of money: what the next look sees stays there.
        await ledger_store.lock_balances(tx, [ids[debit] for debit, _, _ in wanted.values()])
    return 0, until


def _wanted(
    firm_id: FirmId, share: Allocation, terms: Sequence[VoucherTerms]
) -> Mapping[VoucherId | None, tuple[AccountSpec, AccountSpec, int]]:
    """Voucher (None: cash) → what to put aside: (debit, credit, amount)."""
    wanted: dict[VoucherId | None, tuple[AccountSpec, AccountSpec, int]] = {}
    if share.cash:
        wanted[None] = chart.firm_cash(firm_id), chart.revenue(UsageKind.TOKENS), share.cash
    programmes = {one.id: one.programme_id for one in terms}
    for part in share.parts:
        programme = programmes[part.voucher_id]
        voucher = chart.voucher(part.voucher_id, programme)
        wanted[part.voucher_id] = voucher, chart.programme_redeemed(programme), part.amount
    return wanted


def _pending_of(row: AllowanceLeaseRow, name: VoucherId | None) -> int:
    return row.pending_id if name is None else row.vouchers.get(name, 0)


def _name(row: AllowanceLeaseRow, name: VoucherId | None, number: int) -> None:
    if name is None:
        row.pending_id = number
    else:
        row.vouchers = {**row.vouchers, name: number}


def pending_ids(row: AllowanceLeaseRow) -> list[int]:
    """The ledger's pending transfers of a lease; of those used up nothing is left."""
    return [row.pending_id, *row.vouchers.values()]


async def keep_until(tx: AsyncSession, row: AllowanceLeaseRow, until: datetime) -> int:
    """Let an open lease end at `until`, or with the first voucher that it still has some of. Returns what is left."""
    left = await ledger_store.pending_left(tx, pending_ids(row))
    row.vouchers = {name: number for name, number in row.vouchers.items() if number in left}
    ends = await voucher_ends(tx, [VoucherId(name) for name in row.vouchers]) if row.vouchers else []
    row.expires_at = min([until, *ends])
    if left:
        await ledger_store.hold_until(tx, sorted(left), row.expires_at)
    return sum(left.values())


async def let_go(tx: AsyncSession, row: AllowanceLeaseRow, state: str, *, now: datetime) -> None:
    """Give back all that a lease has left, each part to where it came from; the lease becomes `state`."""
    left = await ledger_store.pending_left(tx, pending_ids(row))
    how = expire if row.expires_at <= now else void
    if left:
        legs = [how(number) for number in sorted(left)]
        posting = await ledger_store.post(tx, scope=f"lease-{state}", key=row.id, request=row.id, legs=legs, at=now)
        assert not isinstance(posting, Refusal), f"what a lease has left can be given back: {posting}"
    row.state, row.closed_at = state, now
    await tx.flush()


async def cash_missing(tx: AsyncSession, *, firm_id: FirmId, amount: int, now: datetime) -> NoMoney | None:
    """Why an amount that vouchers pay a part of cannot be leased; None when no voucher does, or when it can."""
    terms = await usable_terms(tx, firm_id, at=now + VOUCHER_MARGIN)
    share = allocate(MicroYuan(amount), terms, kind=UsageKind.TOKENS, at=now)
    state = await account_of(tx, firm_id)
    if not share.parts or share.cash <= state.available:
        return None
    return NoMoney(
        f"Of {format_yuan(amount)} vouchers pay {format_yuan(amount - share.cash)}; {format_yuan(share.cash)} of cash "
        f"is needed beside them, {format_yuan(state.available)} is available and {format_yuan(state.held)} on hold.",
        hint="top up the firm's account, or ask for less",
        details={
            "needed_micro_yuan": share.cash,
            "available_micro_yuan": state.available,
            "held_micro_yuan": state.held,
            "vouchers_micro_yuan": amount - share.cash,
        },
    )
