"""Which month something belongs to: Shanghai's, half-open, whatever the caller's time zone."""

from datetime import UTC, datetime, timedelta

import pytest

from kit.errors import InvalidInput
from quotas.statements import GRACE, billing_period, bounds, following, may_close, period_of, service_period, state_at
from quotas.vocabulary import Period, StatementState


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("instant", "period"),
    [
        (utc(2026, 10, 31, 15, 59, 59), "2026-10"),
        (utc(2026, 10, 31, 16, 0, 0), "2026-11"),  # midnight in Wuhan
        (utc(2028, 2, 29, 15, 59, 59), "2028-02"),  # a leap day
        (utc(2028, 2, 29, 16, 0, 0), "2028-03"),
        (utc(2026, 12, 31, 16, 0, 0), "2027-01"),
    ],
)
def test_a_month_begins_at_midnight_in_wuhan(instant: datetime, period: str) -> None:
    assert period_of(instant) == period
    start, end = bounds(period)
    assert start <= instant < end


@pytest.mark.parametrize(
    ("month", "days"), [("2026-02", 28), ("2028-02", 29), ("2026-12", 31), ("2100-02", 28), ("2026-11", 30)]
)
def test_a_period_is_as_long_as_its_month(month: str, days: int) -> None:
    start, end = bounds(month)
    assert end - start == timedelta(days=days)
    assert bounds(following(Period(month)))[0] == end


def test_usage_that_ends_exactly_at_midnight_belongs_to_the_month_that_ends() -> None:
    end = bounds("2026-11")[1]
    assert service_period(end - timedelta(hours=1), end) == "2026-11"
    assert service_period(end - timedelta(hours=1), end + timedelta(milliseconds=1)) == "2026-12"
    assert service_period(end, end) == "2026-12", "an instant at midnight is the new month's"


@pytest.mark.parametrize(
    ("service", "closed", "now", "billed"),
    [
        ("2026-11", set[str](), utc(2026, 11, 30), "2026-11"),
        ("2026-11", set[str](), utc(2026, 12, 3, 15, 59, 59), "2026-11"),  # the last second of its grace
        ("2026-11", set[str](), utc(2026, 12, 3, 16), "2026-12"),  # nothing was closed: the month was idle
        ("2026-10", {"2026-11"}, utc(2026, 12, 10), "2026-12"),  # never before a month that is closed
        ("2026-01", set[str](), utc(2026, 12, 10), "2026-12"),
        ("2026-11", {"2026-11", "2026-12"}, utc(2026, 12, 10), "2027-01"),
    ],
)
def test_late_usage_goes_to_the_first_month_that_is_open(
    service: str, closed: set[str], now: datetime, billed: str
) -> None:
    assert billing_period(Period(service), closed, now) == billed


def test_a_month_is_open_then_closing_then_closed() -> None:
    end = bounds("2026-11")[1]
    assert state_at("2026-11", end - timedelta(seconds=1), closed=False) is StatementState.OPEN
    assert state_at("2026-11", end, closed=False) is StatementState.CLOSING
    assert state_at("2026-11", end, closed=True) is StatementState.CLOSED
    assert not may_close("2026-11", end + GRACE - timedelta(seconds=1))
    assert may_close("2026-11", end + GRACE)


@pytest.mark.parametrize("wrong", ["2026-00", "2026-13", "2026-1", "26-01", "2026-01-01", "", "nonsense", "1969-12"])
def test_what_is_no_month_is_named(wrong: str) -> None:
    with pytest.raises(InvalidInput, match="2026-11"):
        bounds(wrong)
