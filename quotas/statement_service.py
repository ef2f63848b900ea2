"""Statements from the books: a firm's month, a centre's month, and the closing of months."""

from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from kit.auth import SYSTEM
from kit.errors import HeliuError
from kit.units import GpuMs, MicroYuan, Ppm
from quotas import audit
from quotas.adapters.money_tables import ChargeRow, StatementRow
from quotas.periods import bar_usage
from quotas.statements import (
    bounds,
    check_statement,
    may_close,
    state_at,
    statement_hash,
    totals,
)
from quotas.vocabulary import (
    CentreLine,
    CentreName,
    CentreStatement,
    ChargeId,
    Finding,
    FirmId,
    Period,
    PoolName,
    ProjectId,
    Statement,
    StatementLine,
    StatementState,
    TariffId,
    UsageKind,
)


async def statement(tx: AsyncSession, firm_id: FirmId, period: str, now: datetime) -> Statement:
    """A firm's month as it stands, or as it was closed. Raises InvalidInput for what is no month."""
    bounds(period)
    closed = await tx.get(StatementRow, (firm_id, period))
    if closed is not None:
        return _stored(closed)
    return await _computed(tx, firm_id, Period(period), now)


async def _computed(tx: AsyncSession, firm_id: FirmId, period: Period, now: datetime) -> Statement:
    starts_at, ends_at = bounds(period)
    rows = await tx.execute(
        select(ChargeRow)
        .where(col(ChargeRow.firm_id) == firm_id, col(ChargeRow.period) == period)
        .order_by(text("kind, subject, first_at, id"))
        .execution_options(populate_existing=True)
    )
    lines = tuple(_line(row) for row in rows.scalars())
    amount, voucher, cash = totals(lines)
    sums = (
        await tx.execute(
            text("""SELECT
                (SELECT coalesce(sum(amount), 0) FROM quotas.cash_movement WHERE firm_id = :firm AND period < :period)
                - (SELECT coalesce(sum(cash), 0) FROM quotas.charge WHERE firm_id = :firm AND period < :period)
                AS opening,
                (SELECT coalesce(sum(amount), 0) FROM quotas.cash_movement WHERE firm_id = :firm AND period = :period)
                AS top_ups"""),
            {"firm": firm_id, "period": period},
        )
    ).one()
    opening, top_ups = int(sums.opening), int(sums.top_ups)
    idle = not lines and not top_ups  # there is nothing to seal, and nothing can come any more
    made = Statement(
        firm_id=firm_id,
        period=period,
        starts_at=starts_at,
        ends_at=ends_at,
        state=state_at(period, now, closed=idle and may_close(period, now)),
        lines=lines,
        amount=amount,
        voucher=voucher,
        cash=cash,
        opening=MicroYuan(opening),
        top_ups=MicroYuan(top_ups),
        closing=MicroYuan(opening + top_ups - cash),
        hash="",
        discount=MicroYuan(sum(line.discount for line in lines)),
    )
    return replace(made, hash=statement_hash(made))


def _line(row: ChargeRow) -> StatementLine:
    about = {"pool": row.pool, "qos": row.qos, "key_id": row.key_id, "model": row.model, "discount_id": row.discount_id}
    return StatementLine(
        charge_id=ChargeId(row.id),
        kind=UsageKind(row.kind),
        subject=row.subject,
        project_id=ProjectId(row.project_id),
        tariff_id=None if row.tariff_id is None else TariffId(row.tariff_id),
        service_period=Period(row.service_period),
        first_at=row.first_at,
        last_at=row.last_at,
        about={name: value for name, value in about.items() if value is not None},
        quantities=_quantities(row),
        rates=dict(row.rates),
        amount=MicroYuan(row.amount),
        voucher=MicroYuan(row.voucher),
        cash=MicroYuan(row.cash),
        vouchers=dict(row.vouchers),
        explanation=tuple(row.explanation),
        note=row.note,
        discount=MicroYuan(row.discount),
        contract_rates=dict(row.contract_rates),
        loss=MicroYuan(row.loss),
        reverses=None if row.reverses is None else ChargeId(row.reverses),
    )


def _quantities(row: ChargeRow) -> dict[str, int]:
    match UsageKind(row.kind):
        case UsageKind.COMPUTE:
            return {"gpu_ms": row.gpu_ms}
        case UsageKind.TOKENS:
            fresh = row.input - row.cached_input
            counts = {"input": fresh, "cached_input": row.cached_input, "output": row.output}
        case UsageKind.IMAGES:
            counts = {"images": row.quantity}
        case UsageKind.AUDIO:
            counts = {"audio_ms": row.quantity}
        case UsageKind.STORAGE:
            return {"byte_hours": row.quantity}
    return counts | {"requests": row.requests}


async def centre_statement(tx: AsyncSession, centre: CentreName, period: str, now: datetime) -> CentreStatement:
    """What a centre lent in a month, per pool and payout, and what it is owed. Raises InvalidInput for no month."""
    bounds(period)
    rows = await tx.execute(
        text("""SELECT pool, payout_ppm, sum(gpu_ms)::bigint AS gpu_ms, sum(list_amount)::bigint AS list_amount,
                sum(payable)::bigint AS payable
            FROM quotas.charge WHERE centre = :centre AND period = :period GROUP BY pool, payout_ppm
            ORDER BY pool, payout_ppm"""),
        {"centre": centre, "period": period},
    )
    lines = tuple(
        CentreLine(
            PoolName(row.pool),
            Ppm(row.payout_ppm),
            GpuMs(row.gpu_ms),
            MicroYuan(row.list_amount),
            MicroYuan(row.payable),
        )
        for row in rows
    )
    return CentreStatement(
        centre,
        Period(period),
        lines,
        GpuMs(sum(line.gpu_ms for line in lines)),
        MicroYuan(sum(line.payable for line in lines)),
    )


async def close_statement(tx: AsyncSession, firm_id: FirmId, period: Period, *, now: datetime) -> Statement:
    """Seal a month whose grace is over; what comes later goes to the next. Again returns the closed one.

    The audit log says so too, under its own chain: a statement that is gone later is missed.
    """
    assert may_close(period, now), "a month closes after its grace"
    await bar_usage(tx, firm_id)
    known = await tx.get(StatementRow, (firm_id, period))
    if known is not None:
        return _stored(known)
    made = await _computed(tx, firm_id, period, now)
    if findings := check_statement(made):
        raise HeliuError(
            f"statement {firm_id} {period} does not add up: {findings[0].detail}",
            code="statement_wrong",
            hint="nothing was closed; see: heliu ledger verify",
        )
    body = asdict(made)
    del body["hash"], body["state"], body["closed_at"]
    row = StatementRow(
        firm_id=firm_id,
        period=period,
        hash=made.hash,
        body=_jsonable(body),
        closed_at=now,
    )
    tx.add(row)
    subject, closed = f"{firm_id} {period}", {"hash": made.hash, "closing_micro_yuan": made.closing}
    await audit.record(tx, "statement.close", subject, by=SYSTEM, now=now, firm_id=firm_id, after=closed)
    await tx.flush()
    return _stored(row)


async def due_statements(tx: AsyncSession, *, now: datetime) -> list[tuple[FirmId, Period]]:
    """Months with charges or payments that may be closed and are not, oldest first."""
    rows = await tx.execute(
        text("""SELECT DISTINCT s.firm_id, s.period FROM (
                SELECT firm_id, period FROM quotas.charge UNION SELECT firm_id, period FROM quotas.cash_movement) s
            WHERE NOT EXISTS (SELECT FROM quotas.statement d WHERE d.firm_id = s.firm_id AND d.period = s.period)
            AND s.period < :this ORDER BY s.period, s.firm_id"""),
        {"this": now.strftime("%Y-%m-%d")},
    )
    return [(FirmId(row.firm_id), Period(row.period)) for row in rows if may_close(row.period, now)]


async def check_statements(tx: AsyncSession) -> list[Finding]:
    """Every closed statement is what was sealed, adds up, follows from the books and begins where the last one ended.

    One at a time, however many there are.
    """
    findings = [
        Finding("L3", f"statement {row.firm_id} {row.period}", f"it opens with {row.opening}; {row.last} closed with "
            f"{row.closing}")
        for row in await tx.execute(_OPENINGS)
    ]  # fmt: skip
    closed = await tx.execute(select(col(StatementRow.firm_id), col(StatementRow.period)).order_by(text("1, 2")))
    for firm_id, period in closed.all():
        row = await tx.get_one(StatementRow, (firm_id, period), populate_existing=True)
        findings += await _check_closed(tx, row)
        tx.expunge(row)
    return findings


_OPENINGS = text("""
    SELECT * FROM (
        SELECT firm_id, period, (body ->> 'opening')::numeric AS opening, lag(period) OVER months AS last,
            lag((body ->> 'closing')::numeric) OVER months AS closing
        FROM quotas.statement WINDOW months AS (PARTITION BY firm_id ORDER BY period)) s
    WHERE last IS NOT NULL AND opening IS DISTINCT FROM closing""")


async def _check_closed(tx: AsyncSession, row: StatementRow) -> list[Finding]:
    about = f"statement {row.firm_id} {row.period}"
    try:
        sealed = _stored(row)
    except (KeyError, TypeError, ValueError) as error:
        return [Finding("L3", about, f"it is not what was sealed, and cannot be read: {error!r}")]
    findings = check_statement(sealed)
    if statement_hash(sealed) != sealed.hash:
        findings.append(Finding("L3", about, "it is not what was sealed under its hash"))
    computed = await _computed(tx, FirmId(row.firm_id), Period(row.period), row.closed_at)
    if computed.hash != sealed.hash:
        findings.append(Finding("L3", about, f"it closes with {sealed.closing}; its charges say otherwise"))
    return findings


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(one) for one in value]
    return value.isoformat() if isinstance(value, datetime) else value


def _stored(row: StatementRow) -> Statement:
    body = dict(row.body)
    lines = tuple(
        StatementLine(
            **{
                **line,
                "kind": UsageKind(line["kind"]),
                "first_at": datetime.fromisoformat(line["first_at"]),
                "last_at": datetime.fromisoformat(line["last_at"]),
                "explanation": tuple(line["explanation"]),
            }
        )
        for line in body.pop("lines")
    )
    for name in ("starts_at", "ends_at"):
        body[name] = datetime.fromisoformat(body[name])
    return Statement(
        **body,
        lines=lines,
        hash=row.hash,
        state=StatementState.CLOSED,
        closed_at=row.closed_at,
    )
