"""Examine prices: each line has the rates that its tariff and its contract say, and GPU time costs what it must."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import Refused
from kit.units import GpuMs, Ppm
from quotas.discounts import discounts_by_id, every_discount
from quotas.metering import TOKEN_RATES, UNIT, Rates, rates_in
from quotas.pricing import Discount, Tariff, contract_rate, priced, share_of, shown_rates
from quotas.tariffs import payouts, tariffs_between
from quotas.vocabulary import (
    CentreName,
    ComputeUsage,
    DiscountId,
    Finding,
    FirmId,
    PoolName,
    ProjectId,
    QoS,
    TariffId,
    UsageKind,
)

LINES_AT_ONCE = 2_000

# Rates that are the same for many lines are looked at once. The window of a line is in its key, before two months.
_METERED = text(r"""
    SELECT c.kind, c.tariff_id, c.discount_id, c.rates, c.contract_rates, u.base_model,
        coalesce(substring(c.line_key FROM '\|([^|]*)\|\d{4}-\d\d\|\d{4}-\d\d(\|[^|]*)?$'), '') AS "window",
        min(c.id) AS id
    FROM quotas.charge c
    CROSS JOIN LATERAL (SELECT t.base_model FROM quotas.token_usage t WHERE t.charge_id = c.id LIMIT 1) u
    WHERE c.kind <> 'compute' AND c.reverses IS NULL GROUP BY 1, 2, 3, 4, 5, 6, 7""")

_COMPUTE = text("""
    SELECT id, firm_id, project_id, subject, pool, centre, qos, gpu_ms, first_at, last_at, tariff_id, discount_id,
        rates, contract_rates, list_amount, discount, amount, residue, payout_ppm, payable
    FROM quotas.charge WHERE kind = 'compute' AND reverses IS NULL""")


@dataclass(frozen=True, slots=True)
class _Line:
    """What a line of GPU time must say."""

    tariff_id: TariffId
    discount_id: DiscountId | None
    rates: Mapping[str, int]
    contract_rates: Mapping[str, int]
    list_amount: int
    discount: int
    payout_ppm: Ppm
    payable: int


async def check_prices(tx: AsyncSession) -> list[Finding]:
    """L3: the rates of every line are those of its tariff and contract; GPU time is priced anew, line by line."""
    tariffs = await tariffs_between(tx, None, None)
    return [*await _metered(tx, tariffs), *await _compute(tx, tariffs)]


async def _metered(tx: AsyncSession, tariffs: Sequence[Tariff]) -> list[Finding]:
    known = {tariff.id: tariff for tariff in tariffs}
    rows = (await tx.execute(_METERED)).all()
    contracts = await discounts_by_id(tx, {DiscountId(row.discount_id) for row in rows if row.discount_id})
    findings: list[Finding] = []
    for row in rows:
        kind, tariff = UsageKind(row.kind), known.get(TariffId(row.tariff_id or ""))
        names = TOKEN_RATES if kind is UsageKind.TOKENS else (UNIT,)
        found = None if tariff is None else rates_in(tariff, kind, row.base_model, row.window)
        rates: Rates = found or dict.fromkeys(names, 0)
        contract = contracts.get(DiscountId(row.discount_id or ""))
        net = {} if contract is None else {name: contract_rate(rate, contract) for name, rate in rates.items()}
        if row.rates != rates:
            findings.append(_says(row.id, "rates", row.rates, "its tariff", rates))
        if row.contract_rates != net:
            findings.append(_says(row.id, "rates under contract", row.contract_rates, "its contract", net))
    return findings


async def _compute(tx: AsyncSession, tariffs: Sequence[Tariff]) -> list[Finding]:
    contracts, paid_out = await every_discount(tx), await payouts(tx)
    findings: list[Finding] = []
    lines = await tx.stream(_COMPUTE, execution_options={"yield_per": LINES_AT_ONCE})
    async for rows in lines.partitions():
        for row in rows:
            usage = _usage(row)
            try:
                must = _line(usage, tariffs, contracts.get(usage.firm_id, ()), paid_out(usage.centre, usage.started_at))
            except Refused as refused:
                findings.append(Finding("L3", f"charge {row.id}", refused.message))
            else:
                findings += _differences(row, must)
    return findings


def _line(
    usage: ComputeUsage, tariffs: Sequence[Tariff], discounts: Collection[Discount], payout: Ppm
) -> tuple[_Line, int]:
    """What the line must say, and what rounding leaves where all of its price is asked."""
    segments, listed, price = priced(usage, tariffs, tuple(discounts))
    line = _Line(
        segments[0].tariff_id,
        next((one.discount_id for one in segments if one.discount_id), None),
        shown_rates(segments, contract=False),
        shown_rates(segments, contract=True),
        listed.amount,
        listed.amount - price.amount,
        payout,
        share_of(listed.amount, payout),
    )
    return line, price.residue


def _differences(row: Row[Any], must: tuple[_Line, int]) -> list[Finding]:
    line, residue = must
    findings = [
        _says(row.id, name.replace("_", " "), getattr(row, name), "its time at its tariff", getattr(line, name))
        for name in _Line.__slots__
        if getattr(row, name) != getattr(line, name)
    ]
    # Where less than the price was asked, nothing was rounded.
    price = line.list_amount - line.discount
    if row.residue != residue and (row.residue != 0 or row.amount == price):
        findings.append(_says(row.id, "residue", row.residue, "its time at its tariff", residue))
    return findings


def _usage(row: Row[Any]) -> ComputeUsage:
    return ComputeUsage(
        subject=row.subject,
        attempt_id="",
        firm_id=FirmId(row.firm_id),
        project_id=ProjectId(row.project_id),
        pool=PoolName(row.pool),
        centre=CentreName(row.centre),
        qos=QoS(row.qos),
        gpu_ms=GpuMs(row.gpu_ms),
        started_at=row.first_at,
        ended_at=row.last_at,
    )


def _says(charge: str, what: str, seen: object, of: str, must: object) -> Finding:
    return Finding("L3", f"charge {charge}", f"its {what}: {seen}; {of} says {must}")
