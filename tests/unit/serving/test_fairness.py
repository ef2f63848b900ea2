"""No firm starves another, and the queue is bounded."""

from collections import Counter

from serving.fairness import FairQueue, QueueReason


def queue() -> FairQueue[str]:
    return FairQueue(waiting_max=100, per_firm_max=50)


def drain(waiting: FairQueue[str], count: int) -> list[str]:
    taken = [waiting.pop(lambda _: True) for _ in range(count)]
    return [ticket for ticket in taken if ticket is not None]


def test_a_firm_with_many_requests_does_not_starve_one_with_few() -> None:
    waiting = queue()
    for n in range(40):
        waiting.push("big", f"big{n}", deadline_ms=100, tokens=10)
    for n in range(4):
        waiting.push("small", f"small{n}", deadline_ms=100, tokens=10)
    first = Counter(ticket.rstrip("0123456789") for ticket in drain(waiting, 8))
    assert first == {"big": 4, "small": 4}


def test_firms_share_tokens_not_requests() -> None:
    waiting = queue()
    for n in range(40):
        waiting.push("long", f"long{n}", deadline_ms=100, tokens=30)
        waiting.push("short", f"short{n}", deadline_ms=100, tokens=10)
    first = Counter(ticket.rstrip("0123456789") for ticket in drain(waiting, 40))
    assert first == {"long": 10, "short": 30}


def test_idleness_earns_no_credit() -> None:
    waiting = queue()
    for n in range(40):
        waiting.push("busy", f"busy{n}", deadline_ms=100, tokens=10)
    drain(waiting, 20)
    for n in range(20):
        waiting.push("back", f"back{n}", deadline_ms=100, tokens=10)
    first = Counter(ticket.rstrip("0123456789") for ticket in drain(waiting, 10))
    assert first == {"busy": 5, "back": 5}


def test_within_a_firm_the_oldest_goes_first_that_is_ready() -> None:
    waiting = queue()
    for n in range(3):
        waiting.push("firm", str(n), deadline_ms=100, tokens=1)
    assert waiting.pop(lambda ticket: ticket != "0") == "1"
    assert drain(waiting, 5) == ["0", "2"]
    assert len(waiting) == 0


def test_the_queue_is_bounded_for_all_and_for_each() -> None:
    waiting: FairQueue[str] = FairQueue(waiting_max=3, per_firm_max=2)
    reasons = [waiting.push(firm, firm, deadline_ms=1, tokens=1) for firm in ("a", "a", "a", "b", "c")]
    assert reasons == [None, None, QueueReason.FIRM_FULL, None, QueueReason.FULL]


def test_who_waited_too_long_or_left_is_taken_out() -> None:
    waiting = queue()
    for n, firm in enumerate(("a", "b", "a")):
        waiting.push(firm, f"{firm}{n}", deadline_ms=n, tokens=1)
    assert waiting.expire(1) == ["a0", "b1"]
    assert waiting.remove("nobody") is False
    assert len(waiting) == 1


def test_counters_are_bounded() -> None:
    waiting: FairQueue[str] = FairQueue(waiting_max=10, per_firm_max=10, counters_max=5)
    for n in range(20):
        waiting.charge(f"firm{n}", 1)
    assert len(waiting.counters) == 5
