"""From an engine's blocks to the gateways' prefix blocks."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.node.cache_map import REQUESTS_MAX, CacheMap, Prompt

PREFIXES = (101, 102, 103)
PROMPT = Prompt(PREFIXES, 3.5, 70)
"""Three and a half prefix blocks of 20 tokens each; the engine's hold 10."""


def stored(map: CacheMap) -> list[int]:
    return list(map.take().stored)


def with_prompt() -> CacheMap:
    map = CacheMap()
    map.expect("r", PROMPT)
    return map


def test_a_prefix_block_is_held_once_every_engine_block_under_it_is() -> None:
    map = with_prompt()
    map.stored("r", "a", None, 10)
    assert stored(map) == []
    map.stored("r", "bcd", "a", 10)
    assert stored(map) == [101, 102]


def test_a_prefix_block_goes_with_the_first_engine_block_under_it() -> None:
    map = with_prompt()
    map.stored("r", "abcdef", None, 10)
    assert stored(map) == [101, 102, 103]
    map.removed("c")
    change = map.take()
    assert (list(change.removed), list(change.stored)) == ([102], [])
    map.removed("d")
    assert not map.take()
    assert list(map.all().stored) == [101, 103]


def test_how_much_of_a_prompt_is_left_is_told_until_all_its_full_blocks_are_there() -> None:
    map = with_prompt()
    map.stored("r", "abc", None, 10)
    assert map.take().left == {"r": 40}
    map.stored("r", "defg", "c", 10)
    assert map.take().left == {"r": 0}
    map.stored("r", "h", "g", 10)  # of its answer
    assert map.take().left == {}


def test_a_prompt_that_hits_what_another_request_left_is_known_from_its_beginning() -> None:
    map = CacheMap()
    map.stored(None, "abcdef", None, 10)  # nobody said what this was made of
    assert not map.take()
    map.expect("r", PROMPT)
    map.stored("r", "g", "f", 10)
    assert stored(map) == [101, 102, 103]


def test_a_block_computed_twice_is_held_until_both_are_gone() -> None:
    map = with_prompt()
    map.stored("r", "ab", None, 10)
    map.stored(None, "ab", None, 10)
    map.take()
    map.removed("ab")
    assert not map.take()
    map.removed("b")
    assert list(map.take().removed) == [101]


def test_a_chain_without_a_beginning_says_nothing() -> None:
    map = with_prompt()
    map.stored("r", "cd", "b", 10)
    assert not map.take()


def test_what_is_let_go_and_stored_again_before_it_is_told_is_stored() -> None:
    map = with_prompt()
    map.stored("r", "ab", None, 10)
    map.take()
    map.removed("ab")
    map.expect("s", PROMPT)
    map.stored("s", "ab", None, 10)
    change = map.take()
    assert (list(change.stored), list(change.removed)) == ([101], [])


def test_when_events_were_missed_all_is_void() -> None:
    map = with_prompt()
    map.stored("r", "abcd", None, 10)
    map.cleared()
    assert json.loads(map.take().line()) == {"cleared": True, "left": {"r": 30}}
    assert map.all().stored == {}


def test_prompts_that_never_come_are_forgotten() -> None:
    map = with_prompt()
    for number in range(REQUESTS_MAX):
        map.expect(str(number), PROMPT)
    map.stored("r", "ab", None, 10)
    assert not map.take()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("prompt"), st.integers(0, 5), st.integers(1, 8), st.floats(0.5, 9), st.integers(1, 90)),
            st.tuples(st.just("stored"), st.integers(0, 5), st.integers(0, 8), st.integers(0, 8)),
            st.tuples(st.just("removed"), st.integers(0, 16)),
        ),
        max_size=60,
    )
)
def test_whatever_comes_what_was_told_is_what_is_held_and_nothing_outlives_its_blocks(steps: list[tuple[int]]) -> None:
    map, told = CacheMap(), dict[int, None]()
    for kind, *how in steps:
        match kind, how:
            case "prompt", [request, blocks, share, tokens]:
                map.expect(str(request), Prompt(tuple(range(100, 100 + blocks)), share, tokens))
            case "stored", [request, first, count]:
                map.stored(str(request), range(first, first + count), first - 1 if first else None, 10)
            case _:
                map.removed(how)
        change = map.take()
        assert change.stored.keys().isdisjoint(change.removed)
        told = {block: None for block in [*told, *change.stored] if block not in change.removed}
        assert told.keys() == map.all().stored.keys()
    map.removed([number for number in range(20) for _ in range(len(steps))])
    assert map.all().stored == {}
