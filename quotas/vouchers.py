"""Vouchers: which of a firm's vouchers pay how much of a cost, and why.

One yuan of cost is subsidised by one programme only ("one subsidy per contract"): a voucher of share s that pays p
uses up p / s of the cost; what remains goes to the next voucher, and at last to cash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from kit.units import PPM, MicroYuan, Ppm, format_yuan
from quotas.vocabulary import FirmId, ProgrammeId, UsageKind, VoucherId, VoucherPart


@dataclass(frozen=True, slots=True)
class VoucherTerms:
    """A voucher as it stands when a decision is made; `left` is what its account still has available."""

    id: VoucherId
    programme_id: ProgrammeId
    firm_id: FirmId
    share_ppm: Ppm
    priority: int
    valid_from: datetime
    expires_at: datetime
    left: MicroYuan
    covers: frozenset[UsageKind] = frozenset({UsageKind.COMPUTE})
    """The kinds of usage its programme pays for; `pools` narrows compute only."""
    pools: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """Who pays an amount: `amount = cash + sum(parts)`; the explanation has one sentence per voucher."""

    parts: tuple[VoucherPart, ...]
    cash: MicroYuan
    explanation: tuple[str, ...]


def burn_order(vouchers: Sequence[VoucherTerms]) -> list[VoucherTerms]:
    """Lower priority number first, then what expires first, then the id."""
    return sorted(vouchers, key=lambda v: (v.priority, v.expires_at, v.id))


def allocate(
    amount: MicroYuan, vouchers: Sequence[VoucherTerms], *, kind: UsageKind, pool: str | None = None, at: datetime
) -> Allocation:
    """Share a cost between vouchers, in burn order, and cash."""
    parts: list[VoucherPart] = []
    explanation: list[str] = []
    open_cost = int(amount)
    for voucher in burn_order(vouchers):
        if reason := why_unused(voucher, kind=kind, pool=pool, at=at):
            explanation.append(f"{voucher.id} does not pay: {reason}")
            continue
        if open_cost == 0:
            explanation.append(f"{voucher.id} does not pay: nothing was left to pay")
            continue
        part = _part(open_cost, voucher.id, voucher.share_ppm, voucher.left)
        explanation.append(
            f"{voucher.id} of {voucher.programme_id} pays {format_yuan(part.amount)}: "
            f"{voucher.share_ppm / 10_000:g} % of {format_yuan(part.base)}"
            + (", all that it had" if part.amount == voucher.left else "")
        )
        if part.amount:
            parts.append(part)
            open_cost -= part.base
    cash = amount - sum(part.amount for part in parts)
    assert 0 <= cash <= amount, "vouchers never pay more than the cost"
    explanation.append(f"cash pays {format_yuan(cash)}")
    return Allocation(tuple(parts), MicroYuan(cash), tuple(explanation))


def affordable(
    amount: MicroYuan,
    cash: int,
    vouchers: Sequence[VoucherTerms],
    *,
    kind: UsageKind,
    pool: str | None = None,
    at: datetime,
) -> Allocation:
    """Share as much of an amount as vouchers and `cash` can pay: less than all of it where cash is missing.

    Who owes already (`cash` below zero) can still use what vouchers pay in full.
    """
    cash = max(0, cash)
    least, most = min(amount, cash), int(amount)
    while least < most:  # the cash that an amount takes grows with it, so the largest is found by halving
        middle = (least + most + 1) // 2
        if allocate(MicroYuan(middle), vouchers, kind=kind, pool=pool, at=at).cash <= cash:
            least = middle
        else:
            most = middle - 1
    return allocate(MicroYuan(least), vouchers, kind=kind, pool=pool, at=at)


@dataclass(frozen=True, slots=True)
class Growth:
    """Who pays what a line grew by: `parts` are the vouchers' totals on the line, `paid` and `cash` the growth's."""

    parts: tuple[VoucherPart, ...]
    paid: Mapping[VoucherId, int]
    cash: int


def grow(
    amount: int,
    before: Sequence[VoucherPart],
    vouchers: Sequence[VoucherTerms],
    *,
    kind: UsageKind,
    pool: str | None = None,
    at: datetime,
) -> Growth:
    """Share the growth of a line that is charged piece by piece, as if it had come at once.

    A voucher's share is rounded down over all of the line that it has covered, so that neither the size nor the order
    of the pieces changes who pays, until a voucher is used up or expires.
    """
    parts = {part.voucher_id: part for part in before}
    paid: dict[VoucherId, int] = {}
    open_cost = amount
    for voucher in burn_order(vouchers):
        if open_cost == 0:
            break
        if why_unused(voucher, kind=kind, pool=pool, at=at):
            continue
        known = parts.get(voucher.id)
        base, had = (known.base, known.amount) if known else (0, 0)
        whole = _part(base + open_cost, voucher.id, voucher.share_ppm, MicroYuan(had + voucher.left))
        if whole.base > base:
            parts[voucher.id] = whole
            paid[voucher.id] = whole.amount - had
            open_cost -= whole.base - base
    cash = amount - sum(paid.values())
    assert 0 <= cash <= amount, "vouchers never pay more than the cost"
    return Growth(tuple(parts.values()), {name: part for name, part in paid.items() if part}, cash)


def explained(
    parts: Sequence[VoucherPart],
    vouchers: Sequence[VoucherTerms],
    *,
    kind: UsageKind,
    pool: str | None = None,
    at: datetime,
) -> tuple[str, ...]:
    """Which voucher paid how much of a growing line, and why the others did not."""
    said = [_paid_sentence(part) for part in parts]
    known = {part.voucher_id for part in parts}
    said += [
        f"{voucher.id} does not pay: {why_unused(voucher, kind=kind, pool=pool, at=at) or 'nothing was left to pay'}"
        for voucher in burn_order(vouchers)
        if voucher.id not in known
    ]
    return tuple(said)


def _paid_sentence(part: VoucherPart) -> str:
    share = f" ({part.share_ppm / 10_000:g} %)" if part.share_ppm else ""
    return f"{part.voucher_id} paid {format_yuan(part.amount)} of {format_yuan(part.base)}{share}"


def settle(amount: MicroYuan, held: Sequence[VoucherPart]) -> Allocation:
    """Share what was really used between the vouchers that were held for it, in the same order, and cash.

    No voucher pays more than was held of it, so that `settled <= held` part by part.
    """
    parts: list[VoucherPart] = []
    open_cost = int(amount)
    for before in held:
        part = _part(open_cost, before.voucher_id, before.share_ppm, before.amount)
        if part.amount:
            parts.append(part)
            open_cost -= part.base
    cash = amount - sum(part.amount for part in parts)
    return Allocation(
        tuple(parts),
        MicroYuan(cash),
        tuple(_paid_sentence(part) for part in parts),
    )


def why_unused(voucher: VoucherTerms, *, kind: UsageKind, pool: str | None, at: datetime) -> str | None:
    """Why a voucher does not pay for this, or None when it may."""
    if at < voucher.valid_from:
        return f"valid from {voucher.valid_from.isoformat()}"
    if at >= voucher.expires_at:
        return f"expired at {voucher.expires_at.isoformat()}"
    if kind not in voucher.covers:
        return f"its programme does not pay for {kind}"
    if kind is UsageKind.COMPUTE and voucher.pools is not None and pool not in voucher.pools:
        return f"its programme does not pay for pool {pool}"
    if voucher.left <= 0:
        return "it is used up"
    return None


def _part(cost: int, voucher_id: VoucherId, share_ppm: Ppm, left: MicroYuan) -> VoucherPart:
    """What a voucher pays of a cost: never above its share (rounded down), never above what it has."""
    wanted = cost * share_ppm // PPM
    if wanted < left:
        return VoucherPart(voucher_id, MicroYuan(cost), share_ppm, MicroYuan(wanted))
    base = min(cost, -(-left * PPM // share_ppm))
    return VoucherPart(voucher_id, MicroYuan(base), share_ppm, left)


def paid_by(parts: Sequence[VoucherPart]) -> Mapping[str, int]:
    """Voucher id → micro-yuan."""
    return {part.voucher_id: int(part.amount) for part in parts}


def room_under_cap(*, cap: MicroYuan, granted_this_year: MicroYuan) -> MicroYuan:
    """How much a firm may still be granted of a programme in a Shanghai calendar year."""
    return MicroYuan(max(0, cap - granted_this_year))
