"""Who holds which prefix."""

from serving.prefix_index import PrefixIndex, prompt_blocks


def test_a_match_ends_at_the_first_gap() -> None:
    index = PrefixIndex(capacity=10)
    index.stored("rep_a", [1, 2, 4])
    assert index.matched([1, 2, 3, 4]) == {"rep_a": 2}


def test_a_replica_that_holds_nothing_of_a_prompt_is_left_out() -> None:
    index = PrefixIndex(capacity=10)
    index.sent("rep_a", [1, 2])
    index.sent("rep_b", [7])
    assert index.matched([1, 2, 3]) == {"rep_a": 2}


def test_the_tail_of_an_old_prompt_goes_first() -> None:
    index = PrefixIndex(capacity=3)
    index.sent("rep_a", [1, 2])
    index.sent("rep_a", [8, 9])
    assert index.matched([1, 2]) == {"rep_a": 1}
    assert len(index) == 3


def test_memory_stays_within_the_capacity_of_every_replica() -> None:
    index = PrefixIndex(capacity=100)
    for prompt in range(1_000):
        index.sent("rep_a", [prompt * 10 + block for block in range(10)])
        index.stored("rep_b", range(prompt * 10, prompt * 10 + 10))
    assert len(index) == 200


def test_a_replica_that_tells_nothing_is_believed_to_hold_what_its_cache_can() -> None:
    index = PrefixIndex(capacity=100)
    index.bound("rep_a", 3)
    index.sent("rep_a", range(10))
    assert index.matched(range(10)) == {"rep_a": 3}
    index.bound("rep_a", None)
    index.sent("rep_a", range(10))
    assert index.matched(range(10)) == {"rep_a": 10}


def test_what_the_engine_let_go_no_longer_matches() -> None:
    index = PrefixIndex(capacity=10)
    index.stored("rep_a", [1, 2, 3])
    index.removed("rep_a", [2])
    index.removed("rep_unknown", [2])
    assert index.matched([1, 2, 3]) == {"rep_a": 1}


def test_a_replica_that_is_gone_is_forgotten() -> None:
    index = PrefixIndex(capacity=10)
    index.sent("rep_a", [1])
    index.forget("rep_a")
    assert index.matched([1]) == {}
    assert len(index) == 0


def test_prompts_share_blocks_up_to_where_they_differ() -> None:
    common = b"x" * 2_048
    one = prompt_blocks(b"firm", common + b"a" * 1_024)
    other = prompt_blocks(b"firm", common + b"b" * 1_024)
    assert one[:2] == other[:2]
    assert one[2] != other[2]


def test_two_firms_share_no_block_of_the_same_prompt() -> None:
    prompt = b"x" * 4_096
    assert set(prompt_blocks(b"firm_a", prompt)).isdisjoint(prompt_blocks(b"firm_b", prompt))


def test_a_block_that_is_not_full_does_not_count() -> None:
    assert prompt_blocks(b"firm", b"x" * 1_023) == []
