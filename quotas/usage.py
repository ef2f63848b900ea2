"""Usage in: token records in batches, each charged exactly once, on the line of its key, model, tariff and month.

Every record is kept. A batch moves money once per firm, however many requests it carries: lines grow by exact counts
and are rounded as a whole, so the order, the repetition and the size of batches never change a charge.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import InvalidInput
from quotas import chart
from quotas.adapters import ledger_store
from quotas.adapters.money_tables import ChargeRow
from quotas.cash import account_of
from quotas.charges import residue_moves
from quotas.chart import AccountSpec
from quotas.ledger import Leg, Refusal, post, posted
from quotas.metering import (
    LineKey,
    Quantities,
    Rates,
    check_records,
    draw,
    price_line,
    summed,
    unique,
)
from quotas.periods import billing_periods
from quotas.pricing import Tariff, tariff_at
from quotas.statements import period_of
from quotas.tariffs import tariffs_between, token_rates
from quotas.vocabulary import (
    PLATFORM_FIRM,
    ChargeId,
    FirmId,
    IngestResult,
    TokenUsage,
    UsageKind,
)

BATCH_MAX = 10_000


@dataclass(slots=True)
class _Due:
    """What one firm owes for one batch."""

    amount: int = 0
    residue: int = 0
    lines: list[tuple[ChargeRow, int]] | None = None


async def ingest_tokens(tx: AsyncSession, records: Sequence[TokenUsage], *, now: datetime) -> IngestResult:
    """Keep and charge a batch of at most 10,000 records; those seen before (same source and id) change nothing.

    Money comes from the lease a record names, then from free cash; what neither covers is the platform's loss.
    Raises InvalidInput naming the first bad record; then nothing is taken.
    """
    if len(records) > BATCH_MAX:
        raise InvalidInput(f"a batch carries at most {BATCH_MAX} records, not {len(records)}")
    check_records(records)
    if not records:
        return IngestResult(0, 0)
    distinct = unique(records)
    lines = await _lines_of(tx, distinct)
    new = await _keep(tx, distinct, lines, now=now)
    if new:
        await _charge(tx, new, lines, now=now)
    return IngestResult(accepted=len(new), duplicates=len(records) - len(new))


async def _lines_of(tx: AsyncSession, records: Sequence[TokenUsage]) -> dict[tuple[str, str], LineKey]:
    """(source, id) → the line it belongs to."""
    instants = [record.at for record in records]
    tariffs = await tariffs_between(tx, min(instants), max(instants))
    periods = await billing_periods(tx, {(record.firm_id, period_of(record.at)) for record in records})
    lines: dict[tuple[str, str], LineKey] = {}
    for record in records:
        tariff = None if free_of_charge(record) else _tariff_of(tariffs, record)
        service = period_of(record.at)
        lines[record.source, record.id] = LineKey(
            record.firm_id,
            record.project_id,
            record.key_id,
            record.model,
            record.base_model,
            record.dedicated,
            tariff.id if tariff else None,
            tariff.window_at(record.at) if tariff else "",
            service,
            periods[record.firm_id, service],
        )
    return lines


def free_of_charge(record: TokenUsage) -> bool:
    """A dedicated deployment's tokens are paid by its GPU time; the platform does not charge itself."""
    return record.dedicated or record.firm_id == PLATFORM_FIRM


def _tariff_of(tariffs: Sequence[Tariff], record: TokenUsage) -> Tariff | None:
    """The tariff that prices a record. None: metered, unpriced, and a finding of the ledger check."""
    tariff = tariff_at(tariffs, record.at)
    if tariff is None or token_rates(tariff, record.base_model, tariff.window_at(record.at)) is None:
        return None
    return tariff


def charge_id_of(line: LineKey) -> ChargeId:
    """A line's id follows from what it is, so that a record can name it before it exists."""
    return ChargeId("chg_" + hashlib.sha256(line.text.encode()).hexdigest()[:26])


_KEEP = text("""
    INSERT INTO quotas.token_usage (source, id, firm_id, project_id, key_id, model, base_model, input, cached_input,
        output, at, outcome, lease_id, dedicated, charge_id, ingested_at)
    SELECT u.*, CAST(:now AS timestamptz) FROM unnest(
        CAST(:source AS text[]), CAST(:id AS text[]), CAST(:firm_id AS text[]), CAST(:project_id AS text[]),
        CAST(:key_id AS text[]), CAST(:model AS text[]), CAST(:base_model AS text[]), CAST(:input AS bigint[]),
        CAST(:cached_input AS bigint[]), CAST(:output AS bigint[]), CAST(:at AS timestamptz[]),
        CAST(:outcome AS text[]), CAST(:lease_id AS text[]), CAST(:dedicated AS boolean[]),
        CAST(:charge_id AS text[])) AS u
    ON CONFLICT (source, id) DO NOTHING RETURNING source, id""")
_FIELDS = (
    "source", "id", "firm_id", "project_id", "key_id", "model", "base_model", "input", "cached_input", "output", "at",
    "outcome", "lease_id", "dedicated",
)  # fmt: skip


async def _keep(
    tx: AsyncSession,
    records: Sequence[TokenUsage],
    lines: Mapping[tuple[str, str], LineKey],
    *,
    now: datetime,
) -> list[TokenUsage]:
    """Store the records; returns those that were not there before. They come sorted, so two batches never deadlock."""
    ids = {line: charge_id_of(line) for line in set(lines.values())}
    columns: dict[str, object] = {field: [getattr(record, field) for record in records] for field in _FIELDS}
    columns["charge_id"] = [ids[lines[record.source, record.id]] for record in records]
    rows = await tx.execute(_KEEP, columns | {"now": now})
    new = {(row.source, row.id) for row in rows}
    return [record for record in records if (record.source, record.id) in new]


async def _charge(
    tx: AsyncSession,
    new: Sequence[TokenUsage],
    lines: Mapping[tuple[str, str], LineKey],
    *,
    now: datetime,
) -> None:
    growth = summed(lines, new)
    rows = await _locked_lines(tx, sorted(growth), now=now)
    due: dict[FirmId, _Due] = {}
    for line, more in sorted(growth.items()):
        row = rows[line.text]
        step, residue = _grow(row, more)
        owed = due.setdefault(line.firm_id, _Due(lines=[]))
        owed.amount += step
        owed.residue += residue
        assert owed.lines is not None
        owed.lines.append((row, step))
    for firm_id, owed in sorted(due.items()):
        of_firm = [record for record in new if record.firm_id == firm_id]
        await _collect(tx, firm_id, owed, of_firm, now=now)
    await tx.flush()


async def _locked_lines(tx: AsyncSession, lines: Sequence[LineKey], *, now: datetime) -> dict[str, ChargeRow]:
    """The lines' rows, locked in order; those that do not exist are begun."""
    rows = await _lock(tx, lines)
    missing = [line for line in lines if line.text not in rows]
    if missing:
        rates = await _rates_of(tx, missing)
        begun = [_begun(line, rates[line], now) for line in missing]
        await tx.execute(insert(ChargeRow).values(begun).on_conflict_do_nothing(index_elements=["line_key"]))
        rows |= await _lock(tx, missing)
    return rows


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
    priced = {line.tariff_id for line in lines if line.tariff_id is not None}
    tariffs = {t.id: t for t in await tariffs_between(tx, None, None) if t.id in priced} if priced else {}
    found: dict[LineKey, Rates] = {}
    for line in lines:
        rates = token_rates(tariffs[line.tariff_id], line.base_model, line.window) if line.tariff_id else None
        found[line] = Rates(*rates) if rates else Rates()
    return found


def _begun(line: LineKey, rates: Rates, now: datetime) -> dict[str, object]:
    return {
        "id": charge_id_of(line),
        "line_key": line.text,
        "kind": UsageKind.TOKENS.value,
        "firm_id": line.firm_id,
        "project_id": line.project_id,
        "subject": f"{line.key_id} {line.model}",
        "period": line.period,
        "service_period": line.service_period,
        "tariff_id": line.tariff_id,
        "key_id": line.key_id,
        "model": line.model,
        "rates": {
            "input": rates.input,
            "cached_input": rates.cached_input,
            "output": rates.output,
        },
        "amount": 0,
        "voucher": 0,
        "cash": 0,
        "vouchers": {},
        "list_amount": 0,
        "first_at": now,
        "last_at": now,
        "explanation": [],
        "note": "dedicated deployment: its GPU time is charged, its tokens are not" if line.dedicated else "",
    }


def _grow(row: ChargeRow, more: Quantities) -> tuple[int, int]:
    """Add counts to a line; returns by how much its amount and its residue changed."""
    before = Quantities(
        row.input,
        row.cached_input,
        row.output,
        row.requests,
        row.first_at if row.requests else None,
        row.last_at if row.requests else None,
    )
    after = before.plus(more)
    price = price_line(after, Rates(**row.rates))
    step, residue = price.amount - row.list_amount, price.residue - row.residue
    assert step >= 0, "a line only grows"
    row.input, row.cached_input, row.output, row.requests = (
        after.input,
        after.cached_input,
        after.output,
        after.requests,
    )
    assert after.first_at is not None and after.last_at is not None, "a record has a time"
    row.first_at, row.last_at = after.first_at, after.last_at
    row.list_amount, row.residue = price.amount, price.residue
    return step, residue


async def _collect(
    tx: AsyncSession,
    firm_id: FirmId,
    owed: _Due,
    records: Sequence[TokenUsage],
    *,
    now: datetime,
) -> None:
    """Take a batch's money from the leases its records name, then from cash, and book the rest as loss."""
    cash, revenue = chart.firm_cash(firm_id), chart.revenue(UsageKind.TOKENS)
    leases = await _leases(tx, {record.lease_id for record in records if record.lease_id}, firm_id, now=now)
    free = (await account_of(tx, firm_id)).available if owed.amount > sum(left for _, left in leases) else 0
    taken, from_cash, loss = draw(owed.amount, leases, free)
    while True:
        moves: list[tuple[AccountSpec, AccountSpec, int]] = [
            (cash, revenue, from_cash),
            (chart.LOSS, revenue, loss),
        ]
        moves = [move for move in moves if move[2]] + residue_moves(owed.residue)
        ids = await ledger_store.accounts(tx, [spec for move in moves for spec in move[:2]], at=now)
        legs: list[Leg] = [post(number, amount, final=False) for number, amount in taken]
        legs += [posted(ids[debit], ids[credit], amount) for debit, credit, amount in moves]
        if not legs:
            return
        names = [[record.source, record.id] for record in records]
        posting = await ledger_store.post(
            tx,
            scope="usage",
            key=ledger_store.request_hash([firm_id, names]).hex(),
            request=names,
            legs=legs,
            at=now,
        )
        if not isinstance(posting, Refusal):
            break
        assert from_cash, f"only free cash can be gone: {posting}"
        from_cash, loss = 0, loss + from_cash  # somebody spent it meanwhile
    _spread_loss(owed, loss)


def _spread_loss(owed: _Due, loss: int) -> None:
    """Say on the lines what the firm paid; the loss falls on the last of them first."""
    for row, step in reversed(owed.lines or []):
        lost = min(step, loss)
        loss -= lost
        row.loss += lost
        row.cash += step - lost
        row.amount += step - lost


async def _leases(tx: AsyncSession, lease_ids: set[str], firm_id: FirmId, *, now: datetime) -> list[tuple[int, int]]:
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
