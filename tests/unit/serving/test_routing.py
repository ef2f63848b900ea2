"""Filter, score, pick; and the breaker that leaves a silent replica alone."""

import pytest

from serving.routing import (
    BUSY_MS,
    BUSY_OVER_MS,
    FAILURES_TO_OPEN,
    OPEN_FIRST_MS,
    Ask,
    Breaker,
    NoRoute,
    Prefills,
    Target,
    route,
)


def target(id: str = "a", **changes: object) -> Target:
    made = Target(id, frozenset(), 8)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def broken(now_ms: int = 0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(now_ms)
    return breaker


@pytest.mark.parametrize(
    ("targets", "ask", "why"),
    [
        ([], Ask(), NoRoute.NO_REPLICA),
        ([target()], Ask(avoid=frozenset({"a"})), NoRoute.NO_REPLICA),
        ([target()], Ask(adapter="adp_1"), NoRoute.NO_ADAPTER),
        ([target(breaker=broken())], Ask(), NoRoute.UNHEALTHY),
        ([target(running=8)], Ask(), NoRoute.FULL),
    ],
)
def test_the_last_filter_that_left_nobody_is_the_reason(targets: list[Target], ask: Ask, why: NoRoute) -> None:
    assert route(targets, ask, now_ms=0, coin=0) is why


@pytest.mark.parametrize(
    ("other", "ask"),
    [
        (target("b", prefills=Prefills(500)), Ask(prompt_tokens=100)),
        (target("b", running=1), Ask(prompt_tokens=100)),
        (target("b", others_running=1), Ask(prompt_tokens=100)),
        (target("b", others_waiting=1), Ask(prompt_tokens=100)),
        (target("b", filled=0.9), Ask(prompt_tokens=100)),
        (target("b"), Ask(prompt_tokens=100, matched={"a": 50})),
    ],
)
def test_the_replica_with_less_to_do_first_takes_the_request(other: Target, ask: Ask) -> None:
    for coin in (0, 1):
        for order in ([target("a"), other], [other, target("a")]):
            found = route(order, ask, now_ms=0, coin=coin)
            assert isinstance(found, Target) and found.id == "a"


def test_a_long_prefix_is_worth_waiting_for_but_not_behind_a_long_queue() -> None:
    ask = Ask(prompt_tokens=1_000, matched={"a": 900})
    short = route([target("a", others_waiting=1), target("b")], ask, now_ms=0, coin=0)
    long = route([target("a", others_waiting=3), target("b")], ask, now_ms=0, coin=0)
    assert isinstance(short, Target) and short.id == "a"
    assert isinstance(long, Target) and long.id == "b"


def test_an_open_breaker_lets_one_trial_through_when_its_time_is_over() -> None:
    breaker = broken(now_ms=1_000)
    assert not breaker.allows(1_000 + OPEN_FIRST_MS - 1)
    assert breaker.allows(1_000 + OPEN_FIRST_MS)
    breaker.begin("req_1", 1_000 + OPEN_FIRST_MS)
    assert not breaker.allows(1_000 + OPEN_FIRST_MS)
    breaker.failed(3_000)
    assert not breaker.allows(3_000 + 2 * OPEN_FIRST_MS - 1), "each failed trial doubles the pause"
    breaker.succeeded()
    assert breaker.allows(3_001)


def test_a_trial_that_says_nothing_makes_room_for_another() -> None:
    breaker = broken()
    breaker.begin("req_2", OPEN_FIRST_MS)
    breaker.left("req_1")
    assert not breaker.allows(OPEN_FIRST_MS), "it was not the trial that left"
    breaker.left("req_2")
    assert breaker.allows(OPEN_FIRST_MS)


def test_a_busy_replica_gets_one_request_for_each_answer_or_after_each_pause_until_it_is_busy_no_more() -> None:
    one, now_ms = target(running=2), 10_000
    one.breaker.busy(now_ms)
    assert route([one], Ask(), now_ms=now_ms + BUSY_MS - 1, coin=0) is NoRoute.FULL
    now_ms += BUSY_MS
    assert route([one], Ask(), now_ms=now_ms, coin=0) is one
    one.breaker.begin("req_1", now_ms)
    assert route([one], Ask(), now_ms=now_ms + BUSY_MS - 1, coin=0) is NoRoute.FULL, "one, and it may be refused"
    one.breaker.succeeded()
    assert route([one], Ask(), now_ms=now_ms, coin=0) is one, "it has answered one: there is room for another"
    one.breaker.begin("req_2", now_ms)
    assert not one.has_room(now_ms)
    now_ms = 10_000 + BUSY_OVER_MS + 1
    one.breaker.begin("req_3", now_ms)
    assert one.has_room(now_ms)
    one.breaker.succeeded()
    assert one.breaker.calm


def test_what_shows_that_one_prompt_is_computed_shows_it_of_all_before() -> None:
    prefills = Prefills()
    for request, tokens in (("a", 100), ("b", 20), ("c", 3)):
        prefills.begin(request, tokens)
    prefills.done("another gateway's")
    assert prefills.tokens == 123
    prefills.done("b")
    assert prefills.tokens == 3
    prefills.done("a")
    assert prefills.tokens == 3


def test_a_prompt_half_computed_counts_half() -> None:
    prefills = Prefills()
    for request, tokens in (("a", 100), ("b", 200), ("c", 3)):
        prefills.begin(request, tokens)
    prefills.left("b", 90)
    assert prefills.tokens == 93
    prefills.done("b")
    assert prefills.tokens == 3


def test_a_request_that_is_given_up_says_nothing_of_those_before_it() -> None:
    prefills = Prefills()
    prefills.begin("a", 100)
    prefills.begin("b", 20)
    prefills.drop("b")
    prefills.drop("b")
    assert prefills.tokens == 100
