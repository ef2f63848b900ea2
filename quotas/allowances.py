"""Allowance leases: a slice of a firm's money in a gateway's hands, so that it decides without asking.

A lease is holds in the ledger, of vouchers in burn order and of cash (lease_money.py), so the sum of all leases never
exceeds what is there, nor what hard budgets leave.
Where a month's limit on tokens is over its payer, it carries tokens too. Its holder renews it, tops it up, returns it,
or loses it when it dies.
"""

from datetime import datetime, timedelta

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import notify
from kit.errors import InvalidInput, NotFound
from kit.ids import new_id
from kit.units import MicroYuan
from quotas.adapters import ledger_store
from quotas.adapters.money_tables import AllowanceLeaseRow
from quotas.cash import hold_gone, no_money
from quotas.lease_money import NOTHING, VOUCHER_MARGIN, cash_missing, keep_until, let_go, pending_ids, set_aside
from quotas.spending import UNBOUND, room_of, take_turns, used_up
from quotas.vocabulary import (
    ALLOWANCES_CHANNEL,
    KEYS_CHANNEL,
    AllowanceLease,
    FirmId,
    LeaseId,
    Payer,
)

LEASE_SECONDS_MAX = 3600


async def lease_allowance(
    tx: AsyncSession,
    *,
    holder: str,
    firm_id: FirmId,
    amount: int,
    lease_seconds: int,
    payer: Payer | None = None,
    tokens: int = 0,
    kept: bool = False,
    now: datetime,
) -> AllowanceLease:
    """Lease up to `amount` of what the firm has free and `payer`'s budgets leave: less when there is less.

    Vouchers for tokens pay their share, and the lease ends no later than they do; cash pays the rest. Money is granted
    or NoMoney raised, unless none is asked for; of `tokens` under the month's limits as many as are left, which may be
    none. Others' unused leases may then be recalled. `kept`: it was leased before and is in use, so a limit that was
    lowered meanwhile does not take it away.
    """
    payer = payer or Payer(firm_id)
    _check(amount or tokens, lease_seconds)
    room = UNBOUND if kept else await room_of(tx, payer, now=now)
    if amount and room.micro_yuan is not None and room.micro_yuan <= 0:
        raise used_up(room.budget or {}, asked=amount)
    amount, tokens = room.of(micro_yuan=amount, tokens=tokens)
    row = AllowanceLeaseRow(
        id=LeaseId(new_id("lse")),
        holder=holder,
        firm_id=firm_id,
        pending_id=0,
        vouchers={},
        state="open",
        created_at=now,
        expires_at=now + timedelta(seconds=lease_seconds),
        project_id=payer.project_id,
        key_id=payer.line_id,
        tokens_left=tokens,
    )
    granted = 0
    if amount:
        margin = NOTHING if kept else VOUCHER_MARGIN
        granted, row.expires_at = await set_aside(tx, row, amount, until=row.expires_at, margin=margin, now=now)
        if not granted:
            refusal = await cash_missing(tx, firm_id=firm_id, amount=amount, now=now)
            raise refusal or await no_money(tx, firm_id, 1)
    tx.add(row)
    await tx.flush()
    return _view(row, granted)


def _check(amount: int, lease_seconds: int) -> None:
    if amount <= 0:
        raise InvalidInput("a lease is of at least one micro-yuan")
    if not 0 < lease_seconds <= LEASE_SECONDS_MAX:
        raise InvalidInput(f"a lease lasts between 1 and {LEASE_SECONDS_MAX} seconds")


def _view(row: AllowanceLeaseRow, left: int) -> AllowanceLease:
    return AllowanceLease(
        LeaseId(row.id),
        row.holder,
        FirmId(row.firm_id),
        MicroYuan(left),
        row.expires_at,
        row.recalled_at is not None,
        row.tokens_left,
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
    tokens_left: int | None = None,
    more_tokens: int = 0,
    lease_seconds: int,
    now: datetime,
) -> AllowanceLease:
    """Keep a lease for another `lease_seconds` and add up to `top_up` to it, as far as money is free.

    `tokens_left` tells how many of its tokens the holder may still use, or has used and not shipped; up to
    `more_tokens` are added, as far as the month's limits leave any. A recalled lease gets nothing more: use what is
    left, ship its usage, return it. Raises NotFound, Conflict (`hold_resolved`) when it was returned or has expired.
    """
    row = await _locked(tx, lease_id, holder)
    payer = Payer.named(" ".join(filter(None, (row.firm_id, row.project_id, row.key_id))))
    grows = (top_up > 0 or more_tokens > 0) and row.recalled_at is None
    room = await room_of(tx, payer, now=now, but_lease=lease_id) if grows else UNBOUND
    if row.state != "open" or row.expires_at <= now:  # the sweeper gives back what an expired one has left
        raise hold_gone(f"Lease {lease_id}", "expired" if row.state == "open" else row.state)
    _check(1, lease_seconds)
    until = now + timedelta(seconds=lease_seconds)
    if tokens_left is not None:
        row.tokens_left = min(row.tokens_left, tokens_left)
    if grows:
        top_up, tokens = room.of(micro_yuan=top_up, tokens=row.tokens_left + more_tokens)
        row.tokens_left = max(row.tokens_left, tokens)
        if top_up:
            await set_aside(tx, row, top_up, until=until, now=now)
    left = await keep_until(tx, row, until)
    await tx.flush()
    return _view(row, left)


async def return_allowance(tx: AsyncSession, *, lease_id: LeaseId, holder: str, now: datetime) -> None:
    """Give back what a lease has left. Ship its usage first. Again is no change."""
    row = await _locked(tx, lease_id, holder)
    if row.state == "open":
        await take_turns(tx, Payer(FirmId(row.firm_id)))  # what is kept of it is leased anew in the same transaction
        await let_go(tx, row, "returned", now=now)


async def recall_allowances(tx: AsyncSession, *, firm_id: FirmId, except_holder: str, now: datetime) -> int:
    """Ask every other holder to return what it does not use; they see it when they renew. Returns how many."""
    done = await tx.execute(
        text("""UPDATE quotas.allowance_lease SET recalled_at = :now
            WHERE firm_id = :firm AND holder <> :holder AND state = 'open' AND recalled_at IS NULL RETURNING id"""),
        {"firm": firm_id, "holder": except_holder, "now": now},
    )
    return len(done.all())


async def reach_gateways(tx: AsyncSession, firm_id: FirmId, *, now: datetime) -> None:
    """A rule over spending changes: gateways ask again whom they lease for, and return all that they do not use."""
    await recall_allowances(tx, firm_id=firm_id, except_holder="", now=now)
    await notify(tx, KEYS_CHANNEL, "*")
    await notify(tx, ALLOWANCES_CHANNEL, f"- {firm_id}")


async def leased_elsewhere(tx: AsyncSession, *, firm_id: FirmId, except_holder: str) -> bool:
    """Whether another holder has anything of the firm that it might return."""
    query = text("""SELECT EXISTS (SELECT FROM quotas.allowance_part l
        LEFT JOIN quotas.pending p ON p.id = l.pending_id
        WHERE l.firm_id = :firm AND l.holder <> :holder AND l.state = 'open'
            AND (p.amount_left > 0 OR l.tokens_left > 0))""")
    return bool((await tx.execute(query, {"firm": firm_id, "holder": except_holder})).scalar_one())


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
    left = await ledger_store.pending_left(tx, [number for row in rows for number in pending_ids(row)])
    return [_view(row, sum(left.get(number, 0) for number in pending_ids(row))) for row in rows]


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
        await let_go(tx, row, "expired", now=now)
    return len(due)
