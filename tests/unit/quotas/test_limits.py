"""Which quota is in force when, and whether an ask fits."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import InvalidInput
from kit.units import GpuMilli
from quotas.limits import MAX_NOMINAL, QuotaVersion, grant_state, in_force, valid_nominal
from quotas.vocabulary import FirmId, PoolName, RequestState

FIRM, POOL = FirmId("firm_1"), PoolName("optics-valley/cpu-slot")
DAY_ONE = datetime(2026, 11, 1, tzinfo=UTC)


def version(number: int, nominal: int, day: int) -> QuotaVersion:
    return QuotaVersion(number, FIRM, POOL, GpuMilli(nominal), DAY_ONE + timedelta(days=day))


@pytest.mark.parametrize(
    ("day", "nominal"), [(-1, None), (0, 1000), (4, 1000), (5, 3000), (9, 3000), (10, 2000), (11, 2000)]
)
def test_the_latest_start_up_to_the_instant_is_in_force(day: int, nominal: int | None) -> None:
    # written in another order than they start: 2 was set for day 10 before 3 was set for day 5
    versions = [version(1, 1000, 0), version(2, 2000, 10), version(3, 3000, 5)]
    chosen = in_force(versions, at=DAY_ONE + timedelta(days=day)).get((FIRM, POOL))
    assert (chosen.nominal if chosen else None) == nominal


def test_of_two_versions_with_one_start_the_later_written_holds() -> None:
    versions = [version(2, 0, 0), version(1, 1000, 0)]
    assert in_force(versions, at=DAY_ONE)[FIRM, POOL].nominal == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=20), st.integers(-1, 21))
def test_the_order_in_which_versions_are_read_does_not_matter(rows: list[tuple[int, int]], day: int) -> None:
    versions = [version(number, nominal, start) for number, (start, nominal) in enumerate(rows)]
    at = DAY_ONE + timedelta(days=day)
    assert in_force(versions, at=at) == in_force(reversed(versions), at=at)


def test_a_grant_is_whole_in_part_or_too_much() -> None:
    asked = GpuMilli(4000)
    assert grant_state(asked=asked, granted=GpuMilli(4000)) is RequestState.GRANTED
    assert grant_state(asked=asked, granted=GpuMilli(0)) is RequestState.PARTLY_GRANTED
    with pytest.raises(InvalidInput):
        grant_state(asked=asked, granted=GpuMilli(4001))


@pytest.mark.parametrize("amount", [-1, MAX_NOMINAL + 1, 2**63])
def test_a_quota_outside_its_range_is_refused(amount: int) -> None:
    with pytest.raises(InvalidInput):
        valid_nominal(amount)
