"""The limits a request is under: its key's own, its firm's, and its firm's at the model. All allow it, or none counts.

What each has used here is one `Meter`; what of a limit is this gateway's is in `Windows`.
"""

import time
from typing import NamedTuple

from quotas.vocabulary import KeyGrant
from serving.gateway.openai_errors import Refusal
from serving.gateway.windows import Windows
from serving.limits import WINDOW_MS, Limited, LimitReason, Limits, Meter, Short, undo

METERS_MAX = 100_000
_LEFT = b"x-ratelimit-limit-%b: %%d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%ds\r\n"
_REQUESTS_LEFT = _LEFT % ((b"requests",) * 3)
_TOKENS_LEFT = _LEFT % ((b"tokens",) * 3)
_BOTH_LEFT = _REQUESTS_LEFT + _TOKENS_LEFT
Subjects = tuple[tuple[str, Limits], ...]
Taken = tuple[tuple[Meter, int], ...]  # meters that counted a request, and in which minute


class Denied(NamedTuple):
    """A limit said no, and whose it is."""

    limited: Limited
    whose: str

    def refusal(self, tokens: int) -> Refusal:
        """What a client is told whose request reserves so many tokens."""
        reason, limit = self.limited.reason, f"{self.limited.limit:,}"
        match reason:
            case LimitReason.TOO_LARGE:
                why = f"{limit} tokens per minute and this request alone reserves {tokens:,}"
                return Refusal(429, reason, f"{self.whose} is {why}; lower max_tokens or send a shorter prompt")
            case LimitReason.TOKENS:
                why = f"{limit} tokens per minute, and of this one too few are left for the {tokens:,} it reserves"
            case LimitReason.REQUESTS:
                why = f"{limit} requests per minute, and so many were made in this one"
            case LimitReason.CONCURRENCY:
                why = f"{limit} requests at once, and so many are running"
        return Refusal(
            429, reason, f"{self.whose} is {why}", retry_after_seconds=-(-self.limited.retry_after_ms // 1_000)
        )


class Gate:
    """All limits of one gateway."""

    def __init__(self, windows: Windows, *, at_once_here: int | None) -> None:
        self.windows = windows
        self._here = at_once_here
        self._limits: dict[tuple[int | None, ...], Limits] = {}
        self._meters: dict[str, Meter] = {}
        self._subjects: dict[tuple[str, str], tuple[KeyGrant, Subjects]] = {}

    def subjects(self, grant: KeyGrant, model: str) -> Subjects:
        """Whose limits a request with this key at this base model is under, its key's first."""
        known = self._subjects.get((grant.key_id, model))
        if known is not None and known[0] is grant:
            return known[1]
        if len(self._subjects) >= METERS_MAX:
            self._subjects.clear()
        subjects = self._subjects_of(grant, model)
        self._subjects[grant.key_id, model] = grant, subjects
        return subjects

    def _subjects_of(self, grant: KeyGrant, model: str) -> Subjects:
        own = self._known(grant.requests_per_minute, grant.tokens_per_minute, grant.requests_at_once, self._here)
        if not grant.rates:
            return ((grant.key_id, own),)
        found = [(str(grant.key_id), own)]
        for name, rate in grant.rates:
            if name in ("", model):
                subject = f"{grant.firm_id}/{name}" if name else grant.firm_id
                limits = self._known(rate.requests_per_minute, rate.tokens_per_minute, rate.requests_at_once, None)
                found.append((subject, limits))
        return tuple(found)

    def take(self, subjects: Subjects, *, tokens: int, now_ms: int) -> Taken | Denied | None:
        """Count a request at all of them; None asks for `take_or_lease`."""
        taken: list[tuple[Meter, int]] = []
        for subject, limits in subjects:
            meter = self._meters.get(subject) or self._meter(subject)
            outcome = self.windows.take(subject, limits, meter, tokens=tokens, now_ms=now_ms)
            if outcome is None:
                taken.append((meter, meter.minute))
                continue
            _undo(taken, tokens)
            return None if isinstance(outcome, Short) else Denied(outcome, _whose(subject))
        return tuple(taken)

    async def take_or_lease(self, subjects: Subjects, *, tokens: int) -> Taken | Denied:
        """Count a request, leasing more of a limit when need be. Raises Unavailable when nobody can lease."""
        taken: list[tuple[Meter, int]] = []
        try:
            for subject, limits in subjects:
                meter = self._meter(subject)
                outcome = self.windows.take(subject, limits, meter, tokens=tokens, now_ms=time.time_ns() // 1_000_000)
                if isinstance(outcome, Short):
                    outcome = await self.windows.take_or_lease(subject, tokens=tokens)
                if outcome is not None:
                    _undo(taken, tokens)
                    return Denied(outcome, _whose(subject))
                taken.append((meter, meter.minute))
        except BaseException:
            _undo(taken, tokens)
            raise
        return tuple(taken)

    def left(self, subjects: Subjects, *, now_ms: int) -> tuple[tuple[int, int] | None, tuple[int, int] | None, int]:
        """(limit, left) of requests and of tokens where least is left, and milliseconds to the minute's end."""
        requests: tuple[int, int] | None = None
        tokens: tuple[int, int] | None = None
        ends_ms = WINDOW_MS - now_ms % WINDOW_MS
        for subject, limits in subjects:
            if limits.requests_per_minute is None and limits.tokens_per_minute is None:
                continue
            requests_left, tokens_left, _ = self.windows.left(subject, limits, now_ms=now_ms)
            if requests_left is not None and (requests is None or requests_left < requests[1]):
                requests = limits.requests_per_minute or 0, requests_left
            if tokens_left is not None and (tokens is None or tokens_left < tokens[1]):
                tokens = limits.tokens_per_minute or 0, tokens_left
        return requests, tokens, ends_ms

    def headers(self, subjects: Subjects, *, now_ms: int) -> bytes:
        """Header lines of what is left of the limits, where least is left; none where nothing is limited by minute."""
        requests, tokens, ends_ms = self.left(subjects, now_ms=now_ms)
        seconds = -(-ends_ms // 1_000)
        if requests is not None and tokens is not None:
            return _BOTH_LEFT % (*requests, seconds, *tokens, seconds)
        if requests is not None:
            return _REQUESTS_LEFT % (*requests, seconds)
        return b"" if tokens is None else _TOKENS_LEFT % (*tokens, seconds)

    def _known(self, requests: int | None, tokens: int | None, at_once: int | None, here: int | None) -> Limits:
        name = (requests, tokens, at_once, here)
        limits = self._limits.get(name)
        if limits is None:
            limits = self._limits[name] = Limits(*name)
        return limits

    def _meter(self, subject: str) -> Meter:
        meter = self._meters.get(subject)
        if meter is None:
            if len(self._meters) >= METERS_MAX:
                minute = time.time_ns() // 1_000_000 // WINDOW_MS
                self._meters = {s: m for s, m in self._meters.items() if m.running or m.minute == minute}
            meter = self._meters[subject] = Meter()
        return meter


def _undo(taken: list[tuple[Meter, int]], tokens: int) -> None:
    for meter, minute in taken:
        undo(meter, minute=minute, reserved=tokens)
    taken.clear()


def _whose(subject: str) -> str:
    if "/" in subject:
        return f"your firm's limit at {subject.partition('/')[2]}"
    return "your firm's limit" if subject.startswith("firm_") else "this key's limit"
