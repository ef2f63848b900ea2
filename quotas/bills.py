"""What a usage costs and who pays it, as lines and legs; nothing here asks the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kit.ids import new_id
from kit.units import MicroYuan, Ppm
from quotas import chart
from quotas.adapters.money_tables import ComputeHoldRow
from quotas.chart import AccountSpec
from quotas.collecting import residue_moves
from quotas.holds import parts_of
from quotas.ledger import Leg, post, void
from quotas.pricing import Discount, Price, Segment, Tariff, priced, share_of, shown_rates
from quotas.statements import service_period
from quotas.vocabulary import PLATFORM_FIRM, ComputeUsage, HoldState, Period, ProgrammeId, UsageKind, VoucherId
from quotas.vouchers import Allocation, paid_by, settle


@dataclass(frozen=True, slots=True)
class Bill:
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


def bill_open(
    row: ComputeHoldRow, usage: ComputeUsage, tariffs: Sequence[Tariff], discounts: Sequence[Discount], payout: Ppm
) -> Bill:
    """The bill of a usage whose hold is open: at most what was held, part by part. Raises Refused (`no_tariff`)."""
    segments, listed, price = priced(usage, tariffs, discounts)
    amount = MicroYuan(min(price.amount, row.amount))
    allocation = settle(amount, parts_of(row))
    assert allocation.cash <= row.cash, "what is settled is at most what was held, part by part"
    return Bill(listed, price, segments, allocation, amount, MicroYuan(0), payout, share_of(listed.amount, payout))


def _own_cost_held(row: ComputeHoldRow, bill: Bill) -> int:
    """What of the platform's own work is paid from its hold; the centre is owed the rest too."""
    return min(bill.payable, row.cash) if row.state == HoldState.OPEN else 0


def resolving_legs(row: ComputeHoldRow, usage: ComputeUsage, bill: Bill) -> list[Leg]:
    """The legs that take what a usage costs out of its hold and let the rest go."""
    if row.state != HoldState.OPEN:
        return []
    cash = _own_cost_held(row, bill) if usage.firm_id == PLATFORM_FIRM else bill.allocation.cash
    paid = paid_by(bill.allocation.parts)
    takes = [(part["pending_id"], paid.get(part["voucher_id"], 0)) for part in row.parts]
    if row.cash_pending_id is not None:
        takes.insert(0, (row.cash_pending_id, cash))
    return [post(number, amount) if amount else void(number) for number, amount in takes]


def moves_of(
    row: ComputeHoldRow,
    usage: ComputeUsage,
    bill: Bill,
    programmes: Mapping[VoucherId, ProgrammeId],
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


def line_values(row: ComputeHoldRow, usage: ComputeUsage, bill: Bill, period: Period) -> dict[str, Any]:
    """The line on the statement of `period`, as its row keeps it."""
    start_us = (usage.started_at - datetime(1970, 1, 1, tzinfo=usage.started_at.tzinfo)) // timedelta(microseconds=1)
    capped = bill.price.amount - bill.amount - bill.loss if usage.firm_id != PLATFORM_FIRM else 0
    beyond = f"{capped} micro-yuan above the agreed maximum are not charged" if capped else ""
    return {
        "id": new_id("chg"),
        "line_key": f"compute:{usage.attempt_id}:{start_us}",
        "kind": UsageKind.COMPUTE.value,
        "firm_id": usage.firm_id,
        "project_id": usage.project_id,
        "subject": usage.subject,
        "period": period,
        "service_period": service_period(usage.started_at, usage.ended_at),
        "tariff_id": bill.segments[0].tariff_id,
        "key_id": row.key_id,
        "pool": usage.pool,
        "centre": usage.centre,
        "qos": usage.qos.value,
        "gpu_ms": usage.gpu_ms,
        "requests": 1,
        "rates": shown_rates(bill.segments, contract=False),
        "contract_rates": shown_rates(bill.segments, contract=True),
        "discount": bill.discount,
        "discount_id": next((one.discount_id for one in bill.segments if one.discount_id), None),
        "amount": bill.amount,
        "voucher": bill.amount - bill.allocation.cash,
        "cash": bill.allocation.cash,
        "vouchers": dict(paid_by(bill.allocation.parts)),
        "loss": bill.loss,
        "list_amount": bill.listed.amount,
        "payout_ppm": bill.payout,
        "payable": bill.payable,
        "residue": bill.residue,
        "first_at": usage.started_at,
        "last_at": usage.ended_at,
        "explanation": list(bill.allocation.explanation),
        "note": "; ".join(filter(None, (usage.note, beyond))),
    }
