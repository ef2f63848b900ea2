"""What a month would have cost with a draft of a price book: every usage of it priced anew, line by line."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import Refused
from kit.units import GpuMs, MicroYuan
from quotas.discounts import discounts_between, discounts_by_id
from quotas.metering import Quantities, price_line, rates_in
from quotas.pricing import MINUTES_PER_DAY, Discount, Tariff, contract_rate, priced
from quotas.statements import bounds, period_of
from quotas.vocabulary import (
    PLATFORM_FIRM,
    CentreName,
    ComputeUsage,
    DiscountId,
    FirmId,
    Period,
    PoolName,
    ProjectId,
    QoS,
    UsageKind,
)

LONG_BEFORE = timedelta(days=1000)
"""A draft is taken to be in force from so long before its month: work that ended in it may have begun earlier."""


@dataclass(frozen=True, slots=True)
class PreviewLine:
    """A firm's usage of a kind: what it was priced at, after discounts and before caps, and what it would be."""

    firm_id: FirmId
    kind: UsageKind
    now: MicroYuan
    draft: MicroYuan


@dataclass(frozen=True, slots=True)
class Preview:
    """`unpriced` names what was used and has no price in the draft; it counts as nothing."""

    period: Period
    lines: tuple[PreviewLine, ...]
    unpriced: tuple[str, ...]


def month_before(now: datetime) -> Period:
    """The last whole month."""
    return period_of(bounds(period_of(now))[0] - timedelta(milliseconds=1))


def draft_of(tariff: Tariff, period: str) -> Tariff:
    """The draft as if it had been in force all of a month."""
    return Tariff(tariff.id, bounds(period)[0] - LONG_BEFORE, None, tariff.rates, tariff.windows)


async def preview(tx: AsyncSession, draft: Tariff, period: Period, *, firm_id: FirmId | None = None) -> Preview:
    """Price a month anew. Contracts' discounts stay as they were. Raises InvalidInput for what is no month."""
    draft = draft_of(draft, period)
    sums: dict[tuple[FirmId, UsageKind], int] = {}
    unpriced: set[str] = set()
    async for firm, kind, amount, missing in _priced_anew(tx, draft, period, firm_id):
        sums[firm, kind] = sums.get((firm, kind), 0) + amount
        if missing:
            unpriced.add(missing)
    known = await _priced_now(tx, period, firm_id)
    lines = tuple(
        PreviewLine(firm, kind, MicroYuan(known.get((firm, kind), 0)), MicroYuan(sums.get((firm, kind), 0)))
        for firm, kind in sorted(known.keys() | sums.keys())
    )
    return Preview(period, lines, tuple(sorted(unpriced)))


async def _priced_now(tx: AsyncSession, period: Period, firm_id: FirmId | None) -> dict[tuple[FirmId, UsageKind], int]:
    rows = await tx.execute(
        text("""SELECT firm_id, kind, sum(list_amount - discount)::bigint AS amount FROM quotas.charge
            WHERE service_period = :period AND reverses IS NULL AND firm_id <> :platform
                AND firm_id = coalesce(CAST(:firm AS text), firm_id)
            GROUP BY firm_id, kind"""),
        {"period": period, "firm": firm_id, "platform": PLATFORM_FIRM},
    )
    return {(FirmId(row.firm_id), UsageKind(row.kind)): row.amount for row in rows}


_Repriced = AsyncIterator[tuple[FirmId, UsageKind, int, str]]
"""(firm, kind, amount, what had no price)"""


async def _priced_anew(tx: AsyncSession, draft: Tariff, period: Period, firm_id: FirmId | None) -> _Repriced:
    start, end = bounds(period)
    firms = [firm_id] if firm_id else await _firms_of(tx, period)
    contracts = await discounts_between(tx, firms, draft.valid_from, end)
    async for one in _compute(tx, draft, period, firm_id, contracts):
        yield one
    ids = {contract.id for of_firm in contracts.values() for contract in of_firm}
    by_id = await discounts_by_id(tx, ids)
    rows = await tx.stream(
        _COUNTED,
        {
            "windows": _window_of_minutes(draft, start),
            "start": start,
            "end": end,
            "firm": firm_id,
            "platform": PLATFORM_FIRM,
            "contracts": bool(ids),
        },
    )
    async for row in rows:
        kind = UsageKind(row.kind)
        rates = rates_in(draft, kind, row.base_model, row.window)
        if rates is None:
            yield FirmId(row.firm_id), kind, 0, f"{kind} of {row.base_model}"
            continue
        discount = by_id[DiscountId(row.discount_id)] if row.discount_id else None
        counts = Quantities(int(row.input), int(row.cached_input), int(row.output), quantity=int(row.quantity))
        net = {name: contract_rate(rate, discount) for name, rate in rates.items()}
        yield FirmId(row.firm_id), kind, price_line(kind, counts, net).amount, ""


_COUNTED = text("""
    SELECT u.firm_id, u.kind, u.base_model, u.window, u.discount_id, sum(u.input) AS input,
        sum(u.cached_input) AS cached_input, sum(u.output) AS output, sum(u.quantity) AS quantity
    FROM (
        SELECT t.*, (CAST(:windows AS text[]))[1 + extract(hour FROM t.at AT TIME ZONE 'Asia/Shanghai')::int * 60
                + extract(minute FROM t.at AT TIME ZONE 'Asia/Shanghai')::int] AS "window",
            CASE WHEN :contracts THEN (
                SELECT d.id FROM quotas.discount d
                WHERE d.firm_id = t.firm_id AND d.kind = t.kind AND d.resource IN (t.base_model, '*')
                    AND d.validity @> t.at ORDER BY d.resource = '*' LIMIT 1) END AS discount_id
        FROM quotas.token_usage t
        WHERE t.at >= :start AND t.at < :end AND NOT t.dedicated AND t.firm_id <> :platform
            AND t.firm_id = coalesce(CAST(:firm AS text), t.firm_id)
    ) u
    GROUP BY u.firm_id, u.project_id, u.key_id, u.model, u.base_model, u.kind, u.window, u.discount_id""")


def _window_of_minutes(draft: Tariff, midnight: datetime) -> list[str]:
    """The draft's window at each minute of a day in Shanghai."""
    return [draft.window_at(midnight + timedelta(minutes=minute)) for minute in range(MINUTES_PER_DAY)]


async def _firms_of(tx: AsyncSession, period: Period) -> list[FirmId]:
    rows = await tx.execute(
        text("SELECT DISTINCT firm_id FROM quotas.charge WHERE service_period = :period"), {"period": period}
    )
    return [FirmId(row.firm_id) for row in rows]


async def _compute(
    tx: AsyncSession,
    draft: Tariff,
    period: Period,
    firm_id: FirmId | None,
    contracts: dict[FirmId, list[Discount]],
) -> _Repriced:
    rows = await tx.stream(
        text("""SELECT c.firm_id, c.project_id, c.subject, c.pool, c.centre, c.qos, g.attempt_id, g.gpu_ms,
                g.started_at, g.ended_at
            FROM quotas.compute_usage g JOIN quotas.charge c ON c.id = g.charge_id
            WHERE c.service_period = :period AND c.firm_id <> :platform
                AND c.firm_id = coalesce(CAST(:firm AS text), c.firm_id)"""),
        {"period": period, "firm": firm_id, "platform": PLATFORM_FIRM},
    )
    async for row in rows:
        firm = FirmId(row.firm_id)
        usage = ComputeUsage(
            row.subject,
            row.attempt_id,
            firm,
            ProjectId(row.project_id),
            PoolName(row.pool),
            CentreName(row.centre),
            QoS(row.qos),
            GpuMs(row.gpu_ms),
            row.started_at,
            row.ended_at,
        )
        try:
            _, _, price = priced(usage, [draft], contracts.get(firm, ()))
        except Refused:
            yield firm, UsageKind.COMPUTE, 0, f"{UsageKind.COMPUTE} of {row.pool} at {row.qos}"
        else:
            yield firm, UsageKind.COMPUTE, price.amount, ""
