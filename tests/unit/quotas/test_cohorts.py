"""The tree of cohorts stays a tree, at every instant at which it changes."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import Conflict, HeliuError, InvalidInput
from quotas.cohorts import Placement, ancestors, check_placement, tree_at
from quotas.vocabulary import CohortName, FirmId

DAY_ONE = datetime(2026, 11, 1, tzinfo=UTC)


def put(version: int, node: str, parent: str | None, *, day: int = 0, weight: int = 1000) -> Placement:
    above = None if parent is None else CohortName(parent)
    return Placement(version, CohortName(node), above, weight, DAY_ONE + timedelta(days=day))


CITY = [put(1, "city", None), put(2, "games", "city"), put(3, "films", "city"), put(4, "firm_a", "games")]


def test_ancestors_come_nearest_first() -> None:
    tree = tree_at(CITY, at=DAY_ONE)
    assert ancestors(tree, FirmId("firm_a")) == ("games", "city")
    assert ancestors(tree, CohortName("city")) == ()
    assert ancestors(tree, FirmId("firm_unplaced")) == ()


def test_a_firm_moves_on_the_day_that_was_set() -> None:
    moved = [*CITY, put(5, "firm_a", "films", day=5)]
    assert ancestors(tree_at(moved, at=DAY_ONE + timedelta(days=4)), FirmId("firm_a")) == ("games", "city")
    assert ancestors(tree_at(moved, at=DAY_ONE + timedelta(days=5)), FirmId("firm_a")) == ("films", "city")


@pytest.mark.parametrize(
    ("new", "code"),
    [
        (put(9, "city", "games"), "cohort_loop"),
        (put(9, "city", "city"), "cohort_loop"),
        (put(9, "new", "nowhere"), "cohort_missing"),
        (put(9, "new", "firm_a"), "cohort_parent"),
        (put(9, "new", "city", weight=0), "cohort_weight"),
    ],
)
def test_what_would_break_the_tree_is_refused(new: Placement, code: str) -> None:
    with pytest.raises((Conflict, InvalidInput)) as refusal:
        check_placement(CITY, new)
    assert refusal.value.code == code


def test_two_moves_that_are_fine_today_but_close_a_loop_later_are_refused() -> None:
    later = [*CITY, put(5, "games", "films", day=10)]
    check_placement(CITY, later[-1])
    with pytest.raises(Conflict) as refusal:
        check_placement(later, put(6, "films", "games", day=5))
    assert refusal.value.code == "cohort_loop"


def test_a_parent_has_to_be_there_from_the_first_day() -> None:
    later = [*CITY, put(5, "studios", "city", day=10)]
    with pytest.raises(Conflict) as refusal:
        check_placement(later, put(6, "firm_b", "studios", day=5))
    assert refusal.value.code == "cohort_missing"
    check_placement(later, put(6, "firm_b", "studios", day=10))


nodes = st.sampled_from(["a", "b", "c", "firm_x"])
moves = st.lists(st.tuples(nodes, st.none() | nodes, st.integers(0, 5)), max_size=12)


@given(moves)
def test_whatever_is_accepted_is_a_tree_on_every_day(wanted: list[tuple[str, str | None, int]]) -> None:
    accepted: list[Placement] = []
    for number, (node, parent, day) in enumerate(wanted):
        new = put(number, node, parent, day=day)
        try:
            check_placement(accepted, new)
        except HeliuError:
            continue
        accepted.append(new)
    for day in range(7):
        tree = tree_at(accepted, at=DAY_ONE + timedelta(days=day))
        for node, placed in tree.items():
            assert placed.parent is None or placed.parent in tree
            assert node not in ancestors(tree, node)
