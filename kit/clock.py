"""Time as a value: decisions take `now`, only composition roots hold a clock."""

from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Whoever needs the wall clock asks for one of these."""

    def now(self) -> datetime:
        """The current instant, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The current instant, aware, in UTC."""
        return datetime.now(UTC)


class FixedClock:
    """A clock that moves only when told to; for tests and the simulator."""

    def __init__(self, start: datetime) -> None:
        assert start.tzinfo is not None, "a clock without a time zone is a bug in waiting"
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        """The instant it was last set to."""
        return self._now

    def advance(self, by: timedelta) -> datetime:
        """Move forward by `by` and return the new instant."""
        self._now += by
        return self._now


def utc_now() -> datetime:
    """The machine's current instant in UTC, for places that are the edge themselves."""
    return datetime.now(UTC)
