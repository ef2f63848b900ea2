"""Who pays what lines grew by: vouchers that cover it, leases its records name, free cash, and at last nobody.

Used where a charge follows the use: tokens, images, audio, storage, and jobs that ran outside the platform.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import InvalidInput, Unavailable
from kit.units import MicroYuan, Ppm
from quotas import chart
from quotas.adapters import ledger_store
from quotas.adapters.money_tables import ChargeRow
from quotas.cash import account_of
from quotas.chart import AccountSpec
from quotas.ledger import Leg, Refusal, post, posted
from quotas.metering import draw
from quotas.programmes import usable_terms
from quotas.vocabulary import FirmId, LeaseId, ProgrammeId, RefusalReason, UsageKind, VoucherId, VoucherPart
from quotas.vouchers import Growth, VoucherTerms, explained, grow

RACES = 5
"""How often it is shared out anew when somebody spent a voucher or the cash meanwhile."""
Move = tuple[AccountSpec, AccountSpec, int]
"""(debit, credit, amount)"""


@dataclass(frozen=True, slots=True)
class Step:
    """What one line grows by; `at` decides which vouchers were valid. A line's steps come in the order of time."""

    row: ChargeRow
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


async def collect(
    tx: AsyncSession,
    firm_id: FirmId,
    due: Due,
    *,
    scope: str,
    request: object,
    lease_ids: set[LeaseId],
    terms: Sequence[VoucherTerms],
    now: datetime,
) -> int:
    """Take a batch's money in one operation and write on its lines who paid. Returns the platform's loss."""
    leases = await _leases(tx, lease_ids, firm_id, now=now)
    for _ in range(RACES):
        growths = _shared(due.steps, terms)
        owed = sum(growth.cash for growth in growths)
        need_cash = owed > sum(left for _, left in leases)
        free = (await account_of(tx, firm_id)).available if need_cash else 0
        taken, from_cash, loss = draw(owed, leases, free)
        programmes = {voucher.id: voucher.programme_id for voucher in terms}
        drawn = (sum(amount for _, amount in taken), from_cash, loss)
        moves = [*due.moves, *_moves(firm_id, due.steps, growths, programmes, drawn)]
        ids = await ledger_store.accounts(tx, [spec for move in moves for spec in move[:2]], at=now)
        legs: list[Leg] = [post(number, amount, final=False) for number, amount in taken]
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
        terms = await usable_terms(tx, firm_id, at=now)
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


def _parts_of(row: ChargeRow, terms: Sequence[VoucherTerms]) -> list[VoucherPart]:
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
    """Vouchers and funders, cash and loss, and to each kind of usage its revenue: leases were held for tokens."""
    leased, from_cash, loss = drawn
    moves: list[Move] = []
    owed: dict[UsageKind, int] = {}
    for step, growth in zip(steps, growths, strict=True):
        revenue = chart.revenue(step.kind)
        owed[step.kind] = owed.get(step.kind, 0) + growth.cash
        for voucher_id, amount in growth.paid.items():
            programme = programmes[voucher_id]
            moves.append((chart.voucher(voucher_id, programme), chart.programme_redeemed(programme), amount))
            moves.append((chart.funder_receivable(programme), revenue, amount))
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


async def _leases(
    tx: AsyncSession, lease_ids: set[LeaseId], firm_id: FirmId, *, now: datetime
) -> list[tuple[int, int]]:
    """(pending id, what is left) of the firm's open leases among these, locked."""
    if not lease_ids:
        return []
    rows = await tx.execute(
        text("""SELECT l.pending_id, p.amount_left FROM quotas.allowance_lease l
            JOIN quotas.pending p ON p.id = l.pending_id AND p.expires_at > :now
            WHERE l.id = ANY(CAST(:ids AS text[])) AND l.firm_id = :firm AND l.state = 'open'
            ORDER BY l.id FOR UPDATE OF l, p"""),
        {"ids": sorted(lease_ids), "firm": firm_id, "now": now},
    )
    return [(row.pending_id, row.amount_left) for row in rows]
