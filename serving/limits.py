"""Rate limits of a key, a firm, or a firm at a model: requests and tokens per minute, and requests at once.

Windows are whole minutes of UTC, counted in integers, so 1,000 requests per minute are 1,000 in every clock minute.
What several gateways share each works at within what it was granted (`Share`, `Places`).
"""

from dataclasses import dataclass
from enum import StrEnum

WINDOW_MS = 60_000


class LimitReason(StrEnum):
    """Which limit said no."""

    REQUESTS = "requests_per_minute"
    TOKENS = "tokens_per_minute"
    CONCURRENCY = "concurrent_requests"
    TOO_LARGE = "request_exceeds_tokens_per_minute"


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be done; None means no limit of that kind."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    at_once: int | None = None  # over all gateways
    at_once_here: int | None = None  # a gateway's own protection


@dataclass(frozen=True, slots=True)
class Limited:
    """A refusal: which limit, how much it allows, and when asking again may succeed."""

    reason: LimitReason
    limit: int
    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class Short:
    """This gateway has used its share of what several gateways share; more may be granted."""

    requests: int
    tokens: int
    places: int = 0


@dataclass(slots=True)
class Share:
    """What this gateway was granted of one key's window `minute`."""

    minute: int
    requests: int = 0
    tokens: int = 0
    others: tuple[int, int] = (0, 0)
    """Requests and tokens that other gateways had when it was granted."""


@dataclass(slots=True)
class Meter:
    """What was used: in the current window, and running now."""

    minute: int = 0
    requests: int = 0
    tokens: int = 0
    running: int = 0


def take(
    limits: Limits, meter: Meter, *, tokens: int, now_ms: int, share: Share | None = None, places: int | None = None
) -> Limited | Short | None:
    """Count one request reserving `tokens`, or say why not; a refusal changes nothing. None means admitted.

    `places`: how many of the requests at once were granted here.
    """
    minute = now_ms // WINDOW_MS
    if meter.minute != minute:
        meter.minute, meter.requests, meter.tokens = minute, 0, 0
    requests, used, running = meter.requests + 1, meter.tokens + tokens, meter.running + 1
    if not (
        (limits.requests_per_minute is None or requests <= limits.requests_per_minute)
        and (limits.tokens_per_minute is None or used <= limits.tokens_per_minute)
        and (limits.at_once is None or running <= limits.at_once)
        and (limits.at_once_here is None or running <= limits.at_once_here)
    ):
        return _refusal(limits, meter, tokens, now_ms)
    if share is not None and not (share.minute == minute and requests <= share.requests and used <= share.tokens):
        short = _short(limits, meter, tokens, share, minute)
        if short is not None:
            return short
    if places is not None and limits.at_once is not None and running > places:
        return Short(0, 0, running - places)
    meter.requests, meter.tokens, meter.running = requests, used, running
    return None


def _short(limits: Limits, meter: Meter, tokens: int, share: Share, minute: int) -> Short | None:
    granted = share if share.minute == minute else Share(minute)
    requests = 0 if limits.requests_per_minute is None else meter.requests + 1 - granted.requests
    missing = 0 if limits.tokens_per_minute is None else meter.tokens + tokens - granted.tokens
    return Short(max(0, requests), max(0, missing)) if requests > 0 or missing > 0 else None


def give_back(meter: Meter, *, minute: int, reserved: int, used: int) -> None:
    """One request is over: free its place, and what it reserved and did not use of the window it began in."""
    assert meter.running > 0, "a request ends once"
    meter.running -= 1
    if meter.minute == minute:
        meter.tokens = max(0, meter.tokens - reserved + used)


def undo(meter: Meter, *, minute: int, reserved: int) -> None:
    """It did not happen: another limit said no to the same request."""
    meter.running -= 1
    if meter.minute == minute:
        meter.requests -= 1
        meter.tokens -= reserved


def remaining(
    limits: Limits, meter: Meter, *, now_ms: int, others: tuple[int, int] = (0, 0)
) -> tuple[int | None, int | None, int]:
    """(requests left, tokens left, milliseconds until the window ends); None where there is no limit.

    `others`: requests and tokens of this window that other gateways have.
    """
    fresh = meter.minute != now_ms // WINDOW_MS
    requests, tokens = (0, 0) if fresh else (meter.requests, meter.tokens)
    requests, tokens = requests + others[0], tokens + others[1]
    return (
        None if limits.requests_per_minute is None else max(0, limits.requests_per_minute - requests),
        None if limits.tokens_per_minute is None else max(0, limits.tokens_per_minute - tokens),
        WINDOW_MS - now_ms % WINDOW_MS,
    )


def _refusal(limits: Limits, meter: Meter, tokens: int, now_ms: int) -> Limited | None:
    for at_once in (limits.at_once, limits.at_once_here):
        if at_once is not None and meter.running >= at_once:
            return Limited(LimitReason.CONCURRENCY, at_once, 1_000)
    requests_max, tokens_max = limits.requests_per_minute, limits.tokens_per_minute
    if requests_max is not None and meter.requests >= requests_max:
        return Limited(LimitReason.REQUESTS, requests_max, WINDOW_MS - now_ms % WINDOW_MS)
    if tokens_max is not None and meter.tokens + tokens > tokens_max:
        reason = LimitReason.TOO_LARGE if tokens > tokens_max else LimitReason.TOKENS
        return Limited(reason, tokens_max, WINDOW_MS - now_ms % WINDOW_MS)
    return None
