"""How much of a workload is still to be done, and what was lost of it. Pure arithmetic on what attempts kept."""

from datetime import datetime, timedelta


def seconds_left(seconds: int | None, kept_ms: int) -> int | None:
    """What is left of a duration when so much of the work is kept: at least a second; None stays None."""
    return None if seconds is None else max(1, seconds - kept_ms // 1000)


def run_ms(started_at: datetime, until: datetime) -> int:
    """Milliseconds from a start to an instant, never negative."""
    return max(0, (until - started_at) // timedelta(milliseconds=1))
