"""Statements: which month a usage belongs to, what the lines add up to, and the hash that closes them.

Periods are months of Asia/Shanghai (UTC+8, no daylight saving), half-open, written "2026-11".
"""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta

from kit.errors import InvalidInput
from kit.units import MicroYuan
from quotas.pricing import SHANGHAI
from quotas.vocabulary import Finding, Period, Statement, StatementLine, StatementState

GRACE = timedelta(hours=72)
"""How long after its end a period still takes late usage."""
_PERIOD = re.compile(r"^(\d{4})-(0[1-9]|1[0-2])$")
_MILLISECOND = timedelta(milliseconds=1)


def period_of(at: datetime) -> Period:
    """The Shanghai month an instant falls into."""
    return Period(at.astimezone(SHANGHAI).strftime("%Y-%m"))


def service_period(started_at: datetime, ended_at: datetime) -> Period:
    """The month in which a usage ended; an end exactly at midnight belongs to the day before."""
    return period_of(max(started_at, ended_at - _MILLISECOND))


def bounds(period: str) -> tuple[datetime, datetime]:
    """[start, end) of a period. Raises InvalidInput for what is not written YYYY-MM."""
    match = _PERIOD.match(period)
    if match is None:
        raise InvalidInput(f"{period!r} is not a month; write it as 2026-11")
    year, month = int(match[1]), int(match[2])
    if year < 1970:
        raise InvalidInput(f"{period!r} is before this ledger's time; write a month as 2026-11")
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return datetime(year, month, 1, tzinfo=SHANGHAI), datetime(*following, 1, tzinfo=SHANGHAI)


def following(period: Period) -> Period:
    """The next month."""
    return period_of(bounds(period)[1])


def billing_period(service: Period, closed: Collection[str], now: datetime) -> Period:
    """Where a usage is billed: its own month, or the first later one that is not closed and whose grace is not over.

    A month of which nothing was billed is never sealed; its grace ends all the same, so that months stay in order.
    """
    period = service
    while period in closed or may_close(period, now):
        period = following(period)
    return period


def state_at(period: str, now: datetime, *, closed: bool) -> StatementState:
    """Open while the month runs, closing during the grace after it, closed once it is sealed."""
    if closed:
        return StatementState.CLOSED
    return StatementState.OPEN if now < bounds(period)[1] else StatementState.CLOSING


def may_close(period: str, now: datetime) -> bool:
    """Whether the grace is over."""
    return now >= bounds(period)[1] + GRACE


def totals(lines: Sequence[StatementLine]) -> tuple[MicroYuan, MicroYuan, MicroYuan]:
    """(amount, voucher, cash) of all lines."""
    amount, voucher, cash = (
        sum(line.amount for line in lines),
        sum(line.voucher for line in lines),
        sum(line.cash for line in lines),
    )
    return MicroYuan(amount), MicroYuan(voucher), MicroYuan(cash)


def statement_hash(statement: Statement) -> str:
    """SHA-256 of what a statement says, independent of its state and of when it was closed."""
    content = asdict(statement)
    for changing in ("hash", "state", "closed_at"):
        del content[changing]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> str:
    return value.astimezone(SHANGHAI).isoformat() if isinstance(value, datetime) else str(value)


def check_statement(statement: Statement) -> list[Finding]:
    """The sums of a statement, to the micro-yuan."""
    about = f"statement {statement.firm_id} {statement.period}"
    findings = [
        Finding("L3", about, f"line {line.charge_id}: {line.amount} is not voucher {line.voucher} + cash {line.cash}")
        for line in statement.lines
        if line.amount != line.voucher + line.cash or line.voucher != sum(line.vouchers.values())
    ]
    if totals(statement.lines) != (statement.amount, statement.voucher, statement.cash):
        findings.append(Finding("L3", about, "its sums are not those of its lines"))
    if statement.closing != statement.opening + statement.top_ups - statement.cash:
        findings.append(Finding("L3", about, "opening + top-ups - cash is not closing"))
    return findings
