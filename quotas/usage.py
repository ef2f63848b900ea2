"""Usage in: records in batches, each charged exactly once, on the line of its key, model, tariff and month.

Every record is kept. A batch moves money once per firm, however many requests it carries: lines grow by exact counts
and are rounded as a whole, so the order, the repetition and the size of batches never change a charge.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import InvalidInput
from kit.units import MAX_AMOUNT
from quotas.adapters.ledger_store import request_hash
from quotas.adapters.money_tables import ChargeRow
from quotas.adapters.usage_store import keep
from quotas.collecting import Due, Step, added, collect, residue_moves
from quotas.discounts import discounts_between, discounts_by_id
from quotas.metering import (
    TOKEN_RATES,
    UNIT,
    IngestResult,
    Kin,
    LineKey,
    Quantities,
    Rates,
    UsageRecord,
    check_records,
    counts_of,
    kin_of,
    price_line,
    rates_in,
    summed,
    unique,
)
from quotas.periods import billing_periods
from quotas.price_times import keep_prices
from quotas.pricing import Discount, Tariff, contract_rate, discount_at, price_edges, tariff_at
from quotas.programmes import validity_edges
from quotas.statements import period_of
from quotas.tariffs import tariffs_between
from quotas.vocabulary import (
    PLATFORM_FIRM,
    ChargeId,
    DiscountId,
    FirmId,
    Period,
    TariffId,
    TokenUsage,
    UsageKind,
)

BATCH_MAX = 10_000
COUNT_MAX = 2**63 - 1
"""Largest count a line can carry, in the database."""
MINUTE = timedelta(minutes=1)


async def ingest_tokens(tx: AsyncSession, records: Sequence[TokenUsage], *, now: datetime) -> IngestResult:
    """What gateways ship; as `ingest_usage`."""
    return await ingest_usage(tx, records, now=now)


async def ingest_usage(
    tx: AsyncSession, records: Sequence[UsageRecord], *, now: datetime, refuse_unpriced: bool = False
) -> IngestResult:
    """Keep and charge a batch of at most 10,000 records; those seen before (same source and id) change nothing.

    Vouchers pay their share, first from what the lease that a record names holds of them; then the cash of that lease,
    then free cash; what none covers is the platform's loss. Raises InvalidInput naming the first bad record, and with
    `refuse_unpriced` the first that has no price (`no_tariff`); then nothing is taken.
    """
    if len(records) > BATCH_MAX:
        raise InvalidInput(f"a batch carries at most {BATCH_MAX} records, not {len(records)}", hint="send it in parts")
    check_records(records)
    if not records:
        return IngestResult(0, 0)
    distinct = unique(records)
    kin = kin_of(distinct)
    lines = await _lines_of(tx, distinct, kin, now=now)
    if refuse_unpriced:
        _refuse_unpriced(distinct, kin, lines)
    charges = {number: charge_id_of(line) for number, line in {id(line): line for line in lines}.items()}
    kept = await keep(tx, distinct, kin, [charges[id(line)] for line in lines], now=now)
    new = [(line, record) for line, record, is_new in zip(lines, distinct, kept, strict=True) if is_new]
    if new:
        await _charge(tx, new, now=now)
    return IngestResult(len(new), len(records) - len(new), tuple(record for _, record in new))


async def _lines_of(
    tx: AsyncSession, records: Sequence[UsageRecord], kin: Sequence[Kin], *, now: datetime
) -> list[LineKey]:
    """The line that each record belongs to; equal lines are the same object."""
    instants = [record.at for record in records]
    first, last = min(instants), max(instants)
    await keep_prices(tx)
    tariffs = await tariffs_between(tx, first, last)
    contracts = await discounts_between(tx, {one.firm_id for one in kin}, first, last)
    periods = await billing_periods(tx, _services(instants, kin, period_of(first), period_of(last)), now=now)

    def line_of(of: Kin, at: datetime) -> LineKey:
        tariff = None if free_of_charge(of) else _tariff_of(tariffs, of, at)
        contract = discount_at(contracts.get(of.firm_id, ()), of.kind, of.base, at) if tariff else None
        service = period_of(at)
        return LineKey(
            of.firm_id,
            of.project_id,
            of.key_id,
            of.resource,
            of.base,
            of.dedicated,
            tariff.id if tariff else TariffId(""),
            tariff.window_at(at) if tariff else "",
            service,
            periods[of.firm_id, service],
            of.kind,
            contract.id if contract else DiscountId(""),
        )

    # Hours of the day and months change on the minute; all other prices at these instants.
    edges = price_edges(tariffs, [discount for of_firm in contracts.values() for discount in of_firm])
    found: dict[tuple[int, datetime, int], LineKey] = {}
    same: dict[LineKey, LineKey] = {}
    lines: list[LineKey] = []
    minute = first.replace(second=0, microsecond=0)
    for of, at in zip(kin, instants, strict=True):
        if not minute <= at < minute + MINUTE:
            minute = at.replace(second=0, microsecond=0)
        priced = (id(of), minute, bisect_right(edges, at))
        line = found.get(priced)
        if line is None:
            line = line_of(of, at)
            line = found[priced] = same.setdefault(line, line)
        lines.append(line)
    return lines


def _services(
    instants: Sequence[datetime], kin: Sequence[Kin], first: Period, last: Period
) -> set[tuple[FirmId, Period]]:
    """In which periods which firm used anything."""
    if first == last:
        return {(of.firm_id, first) for of in kin}
    return {(of.firm_id, period_of(at)) for of, at in zip(kin, instants, strict=True)}


def free_of_charge(of: Kin) -> bool:
    """What a dedicated deployment serves is paid by its GPU time; the platform does not charge itself."""
    return of.dedicated or of.firm_id == PLATFORM_FIRM


def _tariff_of(tariffs: Sequence[Tariff], of: Kin, at: datetime) -> Tariff | None:
    """The tariff that prices a record. None: metered, unpriced, and a finding of the ledger check."""
    tariff = tariff_at(tariffs, at)
    if tariff is None or rates_in(tariff, of.kind, of.base, tariff.window_at(at)) is None:
        return None
    return tariff


def _refuse_unpriced(records: Sequence[UsageRecord], kin: Sequence[Kin], lines: Sequence[LineKey]) -> None:
    for record, of, line in zip(records, kin, lines, strict=True):
        if free_of_charge(of) or line.tariff_id:
            continue
        raise InvalidInput(
            f"usage {record.id!r} of {record.source!r}: no tariff prices {of.kind} of "
            f"{of.base} at {record.at.isoformat()}",
            code="no_tariff",
            hint="look at the model's name and the time; heliu tariff list says what has a price, and since when",
        )


def charge_id_of(line: LineKey) -> ChargeId:
    """A line's id follows from what it is, so that a record can name it before it exists."""
    return ChargeId("chg_" + hashlib.sha256(line.text.encode()).hexdigest()[:26])


async def _charge(tx: AsyncSession, new: Sequence[tuple[LineKey, UsageRecord]], *, now: datetime) -> None:
    of_firms: dict[FirmId, list[UsageRecord]] = {}
    for _, record in new:
        of_firms.setdefault(record.firm_id, []).append(record)
    edges = await validity_edges(tx, of_firms.keys() - {PLATFORM_FIRM}, at=now)

    def span(record: UsageRecord) -> int:
        return bisect_right(edges.get(record.firm_id, ()), record.at)

    growth = summed(new, span if edges else None)
    rows = await _locked_lines(tx, sorted({line for line, _ in growth}), now=now)
    dues: dict[FirmId, Due] = {}
    for (line, _), more in sorted(growth.items(), key=lambda item: item[0]):
        if not _fits(rows[line.text], more):
            raise _too_much([record for of, record in new if of == line])
        step, residue = _grow(rows[line.text], more)
        assert more.last_at is not None, "a record has a time"
        due = dues.setdefault(line.firm_id, Due())
        due.steps.append(Step(rows[line.text], step, more.last_at))
        due.moves += residue_moves(residue, line.kind)
    for firm_id, due in sorted(dues.items()):
        due.moves = added(due.moves)
        await collect(
            tx,
            firm_id,
            due,
            scope="usage",
            request=request_hash([(record.source, record.id) for record in of_firms[firm_id]]).hex(),
            lease_ids={record.lease_id for record in of_firms[firm_id] if record.lease_id},
            vouchers=firm_id in edges,
            now=now,
        )
    await tx.flush()


async def _locked_lines(tx: AsyncSession, lines: Sequence[LineKey], *, now: datetime) -> dict[str, ChargeRow]:
    """The lines' rows, locked in order; those that do not exist are begun."""
    rows = await _lock(tx, lines)
    missing = [line for line in lines if line.text not in rows]
    if missing:
        rates = await _rates_of(tx, missing)
        contracts = await discounts_by_id(tx, {line.discount_id for line in missing if line.discount_id})
        begun = [_begun(line, rates[line], contracts.get(line.discount_id), now) for line in missing]
        await tx.execute(begin_lines(begun))
        rows |= await _lock(tx, missing)
    return rows


def begin_lines(rows: Sequence[dict[str, object]]) -> Insert:
    """Write the lines that nobody wrote before.

    Whichever index sees another's line first: who names one of them as the arbiter is refused by the other.
    """
    return insert(ChargeRow).values(list(rows)).on_conflict_do_nothing()


async def _lock(tx: AsyncSession, lines: Sequence[LineKey]) -> dict[str, ChargeRow]:
    rows = await tx.execute(
        select(ChargeRow)
        .where(text("line_key = ANY(CAST(:keys AS text[]))"))
        .order_by(text("line_key"))
        .with_for_update()
        .execution_options(populate_existing=True),
        {"keys": [line.text for line in lines]},
    )
    return {row.line_key: row for row in rows.scalars()}


async def _rates_of(tx: AsyncSession, lines: Sequence[LineKey]) -> dict[LineKey, Rates]:
    priced = {line.tariff_id for line in lines if line.tariff_id}
    tariffs = {t.id: t for t in await tariffs_between(tx, None, None) if t.id in priced} if priced else {}
    found: dict[LineKey, Rates] = {}
    for line in lines:
        rates = rates_in(tariffs[line.tariff_id], line.kind, line.base_model, line.window) if line.tariff_id else None
        found[line] = rates or dict.fromkeys(TOKEN_RATES if line.kind is UsageKind.TOKENS else (UNIT,), 0)
    return found


def _begun(line: LineKey, rates: Rates, discount: Discount | None, now: datetime) -> dict[str, object]:
    words = [line.key_id, line.model] if line.key_id else [line.model]
    contract = {} if discount is None else {name: contract_rate(rate, discount) for name, rate in rates.items()}
    return {
        "id": charge_id_of(line),
        "line_key": line.text,
        "kind": line.kind.value,
        "firm_id": line.firm_id,
        "project_id": line.project_id,
        "subject": " ".join(words),
        "period": line.period,
        "service_period": line.service_period,
        "tariff_id": line.tariff_id or None,
        "key_id": line.key_id or None,
        "model": line.model,
        "rates": dict(rates),
        "contract_rates": contract,
        "discount_id": line.discount_id or None,
        "amount": 0,
        "voucher": 0,
        "cash": 0,
        "vouchers": {},
        "voucher_bases": {},
        "list_amount": 0,
        "first_at": now,
        "last_at": now,
        "explanation": [],
        "note": "dedicated deployment: its GPU time is charged, its tokens are not" if line.dedicated else "",
    }


def _too_much(records: Sequence[UsageRecord]) -> InvalidInput:
    """Names the largest of the records that a line cannot take."""
    most = max(records, key=lambda record: sum(counts_of(record)))
    return InvalidInput(
        f"usage {most.id!r} of {most.source!r} is more than its line of the statement can hold",
        code="amount_too_large",
        hint="a line costs at most 2^53 micro-yuan; look at the counts",
    )


def _counted(row: ChargeRow) -> Quantities:
    return Quantities(
        row.input,
        row.cached_input,
        row.output,
        row.requests,
        row.first_at if row.requests else None,
        row.last_at if row.requests else None,
        row.quantity,
    )


def _fits(row: ChargeRow, more: Quantities) -> bool:
    """Whether the line stays within what the books can hold."""
    after = _counted(row).plus(more)
    cost = price_line(UsageKind(row.kind), after, row.rates).amount
    return cost <= MAX_AMOUNT and max(after.input, after.output, after.quantity) <= COUNT_MAX


def _grow(row: ChargeRow, more: Quantities) -> tuple[int, int]:
    """Add counts to a line; returns by how much what it costs and its residue changed."""
    kind = UsageKind(row.kind)
    after = _counted(row).plus(more)
    listed = price_line(kind, after, row.rates)
    price = price_line(kind, after, row.contract_rates) if row.discount_id else listed
    step, residue = price.amount - (row.list_amount - row.discount), price.residue - row.residue
    assert step >= 0, "a line only grows"
    row.input, row.cached_input, row.output = after.input, after.cached_input, after.output
    row.requests, row.quantity = after.requests, after.quantity
    assert after.first_at is not None and after.last_at is not None, "a record has a time"
    row.first_at, row.last_at = after.first_at, after.last_at
    row.list_amount, row.discount, row.residue = listed.amount, listed.amount - price.amount, price.residue
    return step, residue
