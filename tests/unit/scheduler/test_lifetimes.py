"""How much of a job is left when part of it is kept."""

import pytest

from scheduler.lifetimes import seconds_left


@pytest.mark.parametrize(
    ("seconds", "kept_ms", "left"),
    [(100, 0, 100), (100, 30_000, 70), (100, 30_999, 70), (100, 500_000, 1), (None, 9, None)],
)
def test_what_is_kept_need_not_run_again(seconds: int | None, kept_ms: int, left: int | None) -> None:
    assert seconds_left(seconds, kept_ms) == left
