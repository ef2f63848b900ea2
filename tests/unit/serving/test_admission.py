"""Reserves are upper bounds, and a lease never holds more than it has."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission import (
    FREE,
    Hold,
    Lease,
    Rate,
    Shape,
    TopUp,
    cost,
    hold,
    printed_tools_bytes_max,
    prompt_tokens_max,
    reserve,
    settle,
)

RATE = Rate(input=1_000_000, cached_input=250_000, output=2_000_000)
NOW = 1_000_000


def lease(left: int = 100) -> Lease:
    return Lease("lse_1", "firm_1", left, NOW + 10_000)


@pytest.mark.parametrize(
    ("shape", "tokens", "micro_yuan"),
    [
        (Shape(body_bytes=100, output_tokens_max=10), 366, 356 + 20),
        (Shape(body_bytes=10_000, output_tokens_max=10), 2048, 2038 + 20),  # the context bounds prompt and output
        (Shape(body_bytes=100), 2048, 1 + 2 * 2047 + 1),  # no max_tokens: all of the context may be output
        (Shape(body_bytes=100, output_tokens_max=10, choices=3), 386, 356 + 60),
        (Shape(body_bytes=100, output_tokens_max=0), 356, 356),  # an embedding
    ],
)
def test_a_request_reserves_the_most_it_can_cost(shape: Shape, tokens: int, micro_yuan: int) -> None:
    found = reserve(shape, RATE, 2048)
    assert abs(found.tokens - tokens) <= 1
    assert abs(found.micro_yuan - micro_yuan) <= 1


def test_how_many_tokens_an_image_makes_is_bounded_by_the_context_alone() -> None:
    assert prompt_tokens_max(Shape(1_000, images=1), 100_000) == 100_000


@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=20), st.integers(0, 3_000))
def test_a_query_is_counted_once_for_every_document_it_is_scored_against(documents: list[int], query: int) -> None:
    prompts = len(documents) + 1
    shape = Shape(query + sum(documents), prompts=prompts, shared_bytes=query)
    most = prompt_tokens_max(shape, 2048)
    assert most >= sum(min(2048, query + document) for document in documents)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=25,
)


@given(st.lists(JSON, min_size=1, max_size=4), st.booleans(), st.sampled_from([None, 1, 2, 4]))
def test_no_template_prints_tools_wider_than_is_reserved_for_them(
    tools: list[object], ascii_only: bool, indent: int | None
) -> None:
    sent = json.dumps(tools, separators=(",", ":"), ensure_ascii=ascii_only).encode()
    assert len(json.dumps(tools, ensure_ascii=ascii_only, indent=indent).encode()) <= printed_tools_bytes_max(sent)
    assert prompt_tokens_max(Shape(len(sent), tools_bytes=printed_tools_bytes_max(sent)), 10**9) > 2 * len(sent)


def test_brackets_inside_strings_do_not_hide_how_deep_tools_nest() -> None:
    deep: object = "]" * 50
    for _ in range(50):
        deep = ['}]\\"', deep]
    sent = json.dumps([deep]).encode()
    assert printed_tools_bytes_max(sent) >= len(json.dumps([deep], indent=4))


def test_a_charge_is_rounded_up_and_cached_tokens_cost_their_own_rate() -> None:
    assert cost(RATE, input=10, cached_input=4, output=3) == 6 + 1 + 6
    assert cost(Rate(1, 1, 1), input=1, cached_input=0, output=0) == 1
    assert cost(FREE, input=10**9, cached_input=0, output=10**9) == 0


@given(
    st.integers(1, 5_000), st.integers(0, 4_000) | st.none(), st.integers(1, 5), st.integers(1, 4),
    st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7), st.data(),
)  # fmt: skip
def test_no_usage_that_fits_the_context_costs_more_than_was_reserved(
    body: int, output: int | None, prompts: int, choices: int, r_in: int, r_cached: int, r_out: int, data: st.DataObject
) -> None:
    context = 2048
    shape = Shape(body, prompts=prompts, choices=choices, output_tokens_max=output)
    rate = Rate(r_in, min(r_in, r_cached), r_out)
    found = reserve(shape, rate, context)
    left = prompt_tokens_max(shape, context)
    used_in = used_out = 0
    for _ in range(prompts):
        prompt = data.draw(st.integers(0, min(left, context)))
        left -= prompt
        used_in += prompt
        used_out += choices * data.draw(st.integers(0, min(context if output is None else output, context - prompt)))
    cached = data.draw(st.integers(0, used_in))
    assert used_in + used_out <= found.tokens
    assert cost(rate, input=used_in, cached_input=cached, output=used_out) <= found.micro_yuan


def test_a_hold_comes_from_the_lease_and_what_was_not_used_goes_back() -> None:
    purse = lease(100)
    held = hold(purse, 60, now_ms=NOW)
    assert isinstance(held, Hold)
    assert hold(purse, 60, now_ms=NOW) == TopUp(20)
    settle(held, 10)
    assert (purse.left, purse.free, purse.held, purse.owed, purse.bound) == (90, 90, 0, 10, 10)


def test_a_lease_near_its_end_takes_no_hold() -> None:
    assert hold(lease(), 1, now_ms=NOW + 9_000, margin_ms=2_000) == TopUp(1)
    assert hold(None, 1, now_ms=NOW) == TopUp(1)


def test_what_costs_nothing_needs_no_lease() -> None:
    assert hold(None, 0, now_ms=NOW) == Hold(None, 0)


def test_a_hold_resolves_once() -> None:
    purse = lease(100)
    held = hold(purse, 60, now_ms=NOW)
    assert isinstance(held, Hold)
    settle(held, 60)
    settle(held, 60)
    assert purse.left == 40
