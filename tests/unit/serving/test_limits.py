"""Windows are exact, refusals change nothing."""

from hypothesis import given
from hypothesis import strategies as st

from serving.limits import WINDOW_MS, Limited, LimitReason, Limits, Meter, Share, Short, give_back, remaining, take

NOON = 1_000 * WINDOW_MS


def test_a_thousand_requests_per_minute_are_a_thousand_in_every_minute() -> None:
    limits, meter = Limits(requests_per_minute=1_000), Meter()
    for minute in range(3):
        taken = 0
        for n in range(1_500):
            now_ms = NOON + minute * WINDOW_MS + n * WINDOW_MS // 1_500
            if take(limits, meter, tokens=0, now_ms=now_ms) is None:
                taken += 1
                give_back(meter, minute=now_ms // WINDOW_MS, reserved=0, used=0)
        assert taken == 1_000


def test_a_refusal_says_when_the_window_ends() -> None:
    limits, meter = Limits(requests_per_minute=1), Meter()
    assert take(limits, meter, tokens=0, now_ms=NOON + 1) is None
    refused = take(limits, meter, tokens=0, now_ms=NOON + 20_000)
    assert refused == Limited(LimitReason.REQUESTS, 1, 40_000)
    assert take(limits, meter, tokens=0, now_ms=NOON + WINDOW_MS) is None


def test_tokens_are_reserved_and_given_back_when_they_were_not_used() -> None:
    limits, meter = Limits(tokens_per_minute=100), Meter()
    assert take(limits, meter, tokens=80, now_ms=NOON) is None
    assert isinstance(take(limits, meter, tokens=80, now_ms=NOON), Limited)
    give_back(meter, minute=NOON // WINDOW_MS, reserved=80, used=10)
    assert take(limits, meter, tokens=80, now_ms=NOON) is None
    assert meter.tokens == 90


def test_a_request_that_never_fits_is_told_apart() -> None:
    refused = take(Limits(tokens_per_minute=100), Meter(), tokens=101, now_ms=NOON)
    assert isinstance(refused, Limited)
    assert refused.reason is LimitReason.TOO_LARGE


def test_concurrency_frees_a_place_when_a_request_ends() -> None:
    limits, meter = Limits(at_once=2), Meter()
    assert [take(limits, meter, tokens=0, now_ms=NOON) for _ in range(2)] == [None, None]
    refused = take(limits, meter, tokens=0, now_ms=NOON)
    assert isinstance(refused, Limited)
    assert refused.reason is LimitReason.CONCURRENCY
    give_back(meter, minute=NOON // WINDOW_MS, reserved=0, used=0)
    assert take(limits, meter, tokens=0, now_ms=NOON) is None


def test_tokens_given_back_in_a_later_window_do_not_widen_it() -> None:
    limits, meter = Limits(tokens_per_minute=100), Meter()
    assert take(limits, meter, tokens=100, now_ms=NOON) is None
    assert take(limits, meter, tokens=60, now_ms=NOON + WINDOW_MS) is None
    give_back(meter, minute=NOON // WINDOW_MS, reserved=100, used=0)
    assert meter.tokens == 60


def test_a_share_of_a_window_is_not_exceeded_and_says_how_much_is_missing() -> None:
    limits, meter = Limits(requests_per_minute=100, tokens_per_minute=1_000), Meter()
    share = Share(NOON // WINDOW_MS, requests=1, tokens=50)
    assert take(limits, meter, tokens=50, now_ms=NOON, share=share) is None
    assert take(limits, meter, tokens=20, now_ms=NOON, share=share) == Short(requests=1, tokens=20)
    assert meter.requests == 1


def test_what_remains_is_that_of_the_current_window() -> None:
    limits, meter = Limits(requests_per_minute=3, tokens_per_minute=None), Meter()
    take(limits, meter, tokens=0, now_ms=NOON)
    assert remaining(limits, meter, now_ms=NOON + 15_000) == (2, None, 45_000)
    assert remaining(limits, meter, now_ms=NOON + WINDOW_MS) == (3, None, WINDOW_MS)


@given(
    st.lists(st.tuples(st.integers(0, 3 * WINDOW_MS), st.integers(0, 50), st.booleans()), max_size=60),
    st.integers(1, 20),
    st.integers(1, 200),
    st.integers(1, 5),
)
def test_no_window_ever_holds_more_than_its_limits(
    steps: list[tuple[int, int, bool]], requests: int, tokens: int, concurrency: int
) -> None:
    limits, meter = Limits(requests, tokens, concurrency), Meter()
    admitted: dict[int, list[int]] = {}
    running: list[tuple[int, int]] = []
    for offset, wanted, ends in sorted(steps):
        now_ms = NOON + offset
        if ends and running:
            minute, reserved = running.pop()
            give_back(meter, minute=minute, reserved=reserved, used=reserved)
        elif take(limits, meter, tokens=wanted, now_ms=now_ms) is None:
            admitted.setdefault(now_ms // WINDOW_MS, []).append(wanted)
            running.append((now_ms // WINDOW_MS, wanted))
        assert len(running) <= concurrency
    for window in admitted.values():
        assert len(window) <= requests
        assert sum(window) <= tokens
