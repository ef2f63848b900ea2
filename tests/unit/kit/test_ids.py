import time

import pytest

from kit.ids import is_id, new_id
from tests.support.until import until


def test_an_id_says_what_it_names() -> None:
    made = new_id("job")
    assert made.startswith("job_")
    assert len(made) == len("job_") + 26
    assert is_id(made, "job")
    assert not is_id(made, "firm")


def test_ten_thousand_ids_are_ten_thousand_different_ids() -> None:
    assert len({new_id("x" * 3) for _ in range(10_000)}) == 10_000


def test_later_ids_sort_after_earlier_ones() -> None:
    first = new_id("job")
    millisecond = time.time_ns() // 1_000_000
    until(lambda: time.time_ns() // 1_000_000 > millisecond, seconds=1, what="the next millisecond")
    assert first < new_id("job")


@pytest.mark.parametrize("text", ["", "job_", "job_12 34567890", "JOB_0123456789", "job-0123456789", "job_../../etc"])
def test_what_has_not_the_form_of_an_id_is_none(text: str) -> None:
    assert not is_id(text, "job")
