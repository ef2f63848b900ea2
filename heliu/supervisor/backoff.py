"""When a child that died is started again. Pure."""

FIRST_DELAY_SECONDS = 0.5
DELAY_SECONDS_MAX = 20.0
HEALTHY_AFTER_SECONDS = 30.0


def failures_in_a_row(before: int, *, ran_seconds: float) -> int:
    """How many short runs in a row this end makes; a run of 30 seconds or more starts the count again."""
    return 1 if ran_seconds >= HEALTHY_AFTER_SECONDS else before + 1


def restart_delay_seconds(failures: int) -> float:
    """Half a second after the first end, then twice as long after each further one, 20 seconds at most."""
    assert failures >= 1, "only what ended is started again"
    return min(FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16), DELAY_SECONDS_MAX)
