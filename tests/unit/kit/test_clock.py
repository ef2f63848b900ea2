from datetime import UTC, datetime, timedelta, timezone

import pytest

from kit.clock import FixedClock, SystemClock, utc_now


def test_the_machine_tells_its_time_in_utc() -> None:
    assert SystemClock().now().utcoffset() == timedelta(0)
    assert utc_now().utcoffset() == timedelta(0)


def test_a_fixed_clock_moves_only_when_told_to() -> None:
    start = datetime(2026, 11, 2, 10, 0, tzinfo=timezone(timedelta(hours=8)))
    clock = FixedClock(start)
    assert clock.now() == clock.now() == datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
    assert clock.advance(timedelta(minutes=5)) == clock.now() == start + timedelta(minutes=5)


def test_a_clock_without_a_time_zone_is_refused() -> None:
    with pytest.raises(AssertionError, match="time zone"):
        FixedClock(datetime(2026, 11, 2, 10, 0))  # noqa: DTZ001
