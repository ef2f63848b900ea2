import time

from kit.ids import new_id
from tests.support.until import until


def test_an_id_says_what_it_names() -> None:
    made = new_id("job")
    assert made.startswith("job_")
    assert len(made) == len("job_") + 26


def test_ten_thousand_ids_are_ten_thousand_different_ids() -> None:
    assert len({new_id("x" * 3) for _ in range(10_000)}) == 10_000


def test_later_ids_sort_after_earlier_ones() -> None:
    first = new_id("job")
    millisecond = time.time_ns() // 1_000_000
    until(lambda: time.time_ns() // 1_000_000 > millisecond, seconds=1, what="the next millisecond")
    assert first < new_id("job")
