"""Who pays what lines grew by: vouchers that cover it, then cash, and at last nobody.

Of each voucher, and of cash, what the leases that records name hold of it goes first, then what is free.
Used where a charge follows the use: tokens, images, audio, storage, and jobs that ran outside the platform.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import InvalidInput, Unavailable
from kit.units import MicroYuan, Ppm
from quotas import chart
from quotas.adapters import ledger_store
from quotas.cash import account_of
from quotas.chart import AccountSpec
from quotas.ledger import Leg, Refusal, post, posted
from quotas.metering import draw
from quotas.programmes import usable_terms
from quotas.vocabulary import FirmId, LeaseId, ProgrammeId, RefusalReason, UsageKind, VoucherId, VoucherPart
from quotas.vouchers import Growth, VoucherTerms, explained, grow

Move = tuple[AccountSpec, AccountSpec, int]
"""(debit, credit, amount)"""


class Line(Protocol):
    """Of a line of a statement what paying changes, and what decides who pays."""

    id: str
    kind: str
    pool: str | None
    amount: int
    voucher: int
    cash: int
    loss: int
    vouchers: dict[str, int]
    voucher_bases: dict[str, int]
    explanation: list[str]


@dataclass(frozen=True, slots=True)
class Step:
    """What one line grows by; `at` decides which vouchers were valid. A line's steps come in the order of time."""

    row: Line
    amount: int
    at: datetime

    @property
    def kind(self) -> UsageKind:
        """What the line is of."""
        return UsageKind(self.row.kind)


@dataclass(slots=True)
class Due:
    """What one firm owes for one batch: the steps, what rounding left, and moves that go along."""

    steps: list[Step] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)


@dataclass(slots=True)
class Leased:
    """What the leases of a batch hold: (pending id, what is left), of cash and of each voucher."""

    cash: list[tuple[int, int]] = field(default_factory=list)
    vouchers: dict[VoucherId, list[tuple[int, int]]] = field(default_factory=dict)

    def of_vouchers(self) -> dict[VoucherId, int]:
        """How much they hold of each voucher."""
        return {name: sum(left for _, left in held) for name, held in self.vouchers.items()}


async def collect(
    tx: AsyncSession,
    firm_id: FirmId,
    due: Due,
    *,
    scope: str,
    request: object,
    lease_ids: set[LeaseId],
    vouchers: bool,
    now: datetime,
) -> int:
    """Take a batch's money in one operation and write on its lines who paid. Returns the platform's loss.

    `vouchers`: whether the firm has any that is not over.
    """
    leased = await _leases(tx, lease_ids, firm_id, now=now)
    held = leased.of_vouchers()
    for _ in range(ledger_store.RACES):
        terms = await usable_terms(tx, firm_id, at=now, held=held) if vouchers else []
        growths = _shared(due.steps, terms)
        owed = sum(growth.cash for growth in growths)
        need_cash = owed > sum(left for _, left in leased.cash)
        free = (await account_of(tx, firm_id)).available if need_cash else 0
        taken, from_cash, loss = draw(owed, leased.cash, free)
        programmes = {voucher.id: voucher.programme_id for voucher in terms}
        drawn = (sum(amount for _, amount in taken), from_cash, loss)
        redeemed, redemptions = _redeemed(growths, leased, programmes)
        moves = [*due.moves, *redemptions, *_moves(firm_id, due.steps, growths, programmes, drawn)]
        ids = await ledger_store.accounts(tx, [spec for move in moves for spec in move[:2]], at=now)
        legs: list[Leg] = [post(number, amount, final=False) for number, amount in [*taken, *redeemed]]
        legs += [posted(ids[debit], ids[credit], amount) for debit, credit, amount in moves]
        if not legs:
            break
        key = ledger_store.request_hash([firm_id, request]).hex()
        posting = await ledger_store.post(tx, scope=scope, key=key, request=request, legs=legs, at=now)
        if not isinstance(posting, Refusal):
            break
        if posting.reason is not RefusalReason.EXCEEDS_FUNDS:
            raise InvalidInput(
                f"The usage of firm {firm_id} in this batch cannot be booked: {posting.reason}.",
                code=posting.reason.value,
                hint="one entry is at most 2^53 micro-yuan or GPU-milliseconds; look at the counts",
            )
        # Somebody spent it meanwhile: the cash, or a voucher. Nothing has changed, and what is seen next stays there.
        await ledger_store.lock_balances(tx, await _purses(tx, firm_id, terms, now=now))
    else:
        raise Unavailable(
            f"What firm {firm_id} has was spent again and again while its usage was charged. Nothing was charged.",
            hint="send the same again",
        )
    _write(due.steps, growths, terms, loss)
    return loss


async def _purses(tx: AsyncSession, firm_id: FirmId, terms: Sequence[VoucherTerms], *, now: datetime) -> list[int]:
    """The accounts a firm can pay from: its cash and these vouchers."""
    purses = [chart.firm_cash(firm_id), *(chart.voucher(voucher.id, voucher.programme_id) for voucher in terms)]
    return list((await ledger_store.accounts(tx, purses, at=now)).values())


def _redeemed(
    growths: Sequence[Growth], leased: Leased, programmes: Mapping[VoucherId, ProgrammeId]
) -> tuple[list[tuple[int, int]], list[Move]]:
    """From where vouchers pay: what leases hold of them, (pending id, amount), then what is free of them."""
    paid: dict[VoucherId, int] = {}
    for growth in growths:
        for voucher_id, amount in growth.paid.items():
            paid[voucher_id] = paid.get(voucher_id, 0) + amount
    taken: list[tuple[int, int]] = []
    moves: list[Move] = []
    for voucher_id, amount in paid.items():
        from_leases, free, _ = draw(amount, leased.vouchers.get(voucher_id, ()), amount)
        taken += from_leases
        programme = programmes[voucher_id]
        moves.append((chart.voucher(voucher_id, programme), chart.programme_redeemed(programme), free))
    return taken, added(moves)


def _shared(steps: Sequence[Step], terms: Sequence[VoucherTerms]) -> list[Growth]:
    """Who pays each step, a voucher's money once."""
    left = {voucher.id: voucher for voucher in terms}
    parts: dict[str, Sequence[VoucherPart]] = {}
    growths: list[Growth] = []
    for step in steps:
        before = parts.get(step.row.id)
        growth = grow(
            step.amount,
            _parts_of(step.row, terms) if before is None else before,
            list(left.values()),
            kind=step.kind,
            pool=step.row.pool,
            at=step.at,
        )
        for voucher_id, amount in growth.paid.items():
            left[voucher_id] = replace(left[voucher_id], left=MicroYuan(left[voucher_id].left - amount))
        parts[step.row.id] = growth.parts
        growths.append(growth)
    return growths


def _parts_of(row: Line, terms: Sequence[VoucherTerms]) -> list[VoucherPart]:
    """What vouchers paid of a line so far; one that is over keeps its part, and its share matters no more."""
    shares = {voucher.id: voucher.share_ppm for voucher in terms}
    return [
        VoucherPart(
            VoucherId(name),
            MicroYuan(base),
            shares.get(VoucherId(name), Ppm(0)),
            MicroYuan(row.vouchers.get(name, 0)),
        )
        for name, base in row.voucher_bases.items()
    ]


def _moves(
    firm_id: FirmId,
    steps: Sequence[Step],
    growths: Sequence[Growth],
    programmes: Mapping[VoucherId, ProgrammeId],
    drawn: tuple[int, int, int],
) -> list[Move]:
    """Funders, cash and loss, and to each kind of usage its revenue: the cash of leases was held for tokens."""
    leased, from_cash, loss = drawn
    moves: list[Move] = []
    owed: dict[UsageKind, int] = {}
    for step, growth in zip(steps, growths, strict=True):
        revenue = chart.revenue(step.kind)
        owed[step.kind] = owed.get(step.kind, 0) + growth.cash
        for voucher_id, amount in growth.paid.items():
            moves.append((chart.funder_receivable(programmes[voucher_id]), revenue, amount))
    tokens = chart.revenue(UsageKind.TOKENS)
    for kind in sorted(owed, key=lambda one: (one is not UsageKind.TOKENS, one)):
        from_lease = min(leased, owed[kind])
        cash = min(from_cash, owed[kind] - from_lease)
        lost = owed[kind] - from_lease - cash
        leased, from_cash, loss = leased - from_lease, from_cash - cash, loss - lost
        if kind is not UsageKind.TOKENS:
            moves.append((tokens, chart.revenue(kind), from_lease))
        moves += [(chart.firm_cash(firm_id), chart.revenue(kind), cash), (chart.LOSS, chart.revenue(kind), lost)]
    assert (leased, from_cash, loss) == (0, 0, 0), "what was drawn is what was owed"
    return added(moves)


def residue_moves(residue: int, kind: UsageKind) -> list[Move]:
    """What rounding gave to the firm (residue above zero) or took from it, in its own tiny asset."""
    given, taken = chart.residue(kind)
    if residue > 0:
        return [(given, taken, residue)]
    return [(taken, given, -residue)] if residue else []


def added(moves: Iterable[Move]) -> list[Move]:
    """The moves between the same two accounts as one; those of nothing left out."""
    sums: dict[tuple[AccountSpec, AccountSpec], int] = {}
    for debit, credit, amount in moves:
        sums[debit, credit] = sums.get((debit, credit), 0) + amount
    return [(debit, credit, amount) for (debit, credit), amount in sums.items() if amount]


def _write(steps: Sequence[Step], growths: Sequence[Growth], terms: Sequence[VoucherTerms], loss: int) -> None:
    """Say on the lines who paid; the loss falls on the last of them first."""
    for step, growth in zip(reversed(steps), reversed(growths), strict=True):
        row = step.row
        lost = min(growth.cash, loss)
        loss -= lost
        row.loss += lost
        row.cash += growth.cash - lost
        row.voucher += sum(growth.paid.values())
        row.amount += step.amount - lost
    for step, growth in zip(steps, growths, strict=True):
        row = step.row
        row.vouchers = {part.voucher_id: int(part.amount) for part in growth.parts if part.amount}
        row.voucher_bases = {part.voucher_id: int(part.base) for part in growth.parts}
        if growth.parts or terms:
            row.explanation = list(explained(growth.parts, terms, kind=step.kind, pool=row.pool, at=step.at))


async def _leases(tx: AsyncSession, lease_ids: set[LeaseId], firm_id: FirmId, *, now: datetime) -> Leased:
    """What the firm's open leases among these hold, locked."""
    found = Leased()
    if not lease_ids:
        return found
    # First the leases, then what they name: a lease that is being renewed may name another transfer afterwards.
    rows = await tx.execute(
        text("""SELECT pending_id, vouchers FROM quotas.allowance_lease
            WHERE id = ANY(CAST(:ids AS text[])) AND firm_id = :firm AND state = 'open' AND expires_at > :now
            ORDER BY id FOR UPDATE"""),
        {"ids": sorted(lease_ids), "firm": firm_id, "now": now},
    )
    leases = [(row.pending_id, {VoucherId(name): number for name, number in row.vouchers.items()}) for row in rows]
    numbers = [number for cash, vouchers in leases for number in (cash, *vouchers.values())]
    left = await ledger_store.pending_left(tx, numbers) if numbers else {}
    for cash, vouchers in leases:
        if cash in left:
            found.cash.append((cash, left[cash]))
        for name, number in vouchers.items():
            if number in left:
                found.vouchers.setdefault(name, []).append((number, left[number]))
    return found
