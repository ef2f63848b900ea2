"""This gateway's shares of rate windows.

A window (one minute of UTC of a key, a firm, or a firm at a model) is leased from the ledger's database in slices, like
money, so that any number of gateways count to the limit together and not beyond. What a gateway does not use it returns
when another asks. While the database is away each gateway works within the share it had last.
"""

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field

from kit.errors import HeliuError, Unavailable
from quotas.vocabulary import RateAsk, RateLease
from serving.gateway.places import Places
from serving.gateway.ports import Rates
from serving.limits import WINDOW_MS, Limited, LimitReason, Limits, Meter, Share, Short, remaining, take

log = logging.getLogger(__name__)

SLICES = 8
"""A window is leased in this many parts, or more when that is not enough for a request."""
RECALL_SECONDS_MAX = 0.6
"""How long a request waits for other gateways to return what they do not use."""
REFUSED_SECONDS = 0.5
"""After a window was found used up nobody asks again for this long."""
AHEAD_MS = 10_000
"""So long before a minute ends the next one is leased for the keys in use."""
AHEAD_MAX = 1_000


@dataclass(slots=True)
class _Window:
    limits: Limits
    meter: Meter
    share: Share
    ahead: Share | None = None
    leased: float = 0.0
    """When the database was last heard (monotonic)."""
    refused: Short | None = None
    refused_minute: int = 0
    refused_until: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of the requests that need more than the share; held while others are asked to give."""
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of the calls to the database: a lease and a return at once could be heard in another order than they were done,
    and what was given back would be used as well."""

    def refuse(self, short: Short) -> None:
        """Nobody had that much."""
        self.refused, self.refused_minute = short, _minute()
        self.refused_until = time.monotonic() + REFUSED_SECONDS

    def refuses(self, short: Short) -> bool:
        """Whether as much or less was refused just now."""
        said = self.refused
        if said is None or self.refused_minute != _minute() or time.monotonic() >= self.refused_until:
            return False
        return 0 < said.requests <= short.requests or 0 < said.tokens <= short.tokens


class Windows:
    """All shares of one gateway. What has no limit that gateways share has none."""

    def __init__(self, source: Rates, places: Places, *, offline_seconds: float) -> None:
        self._source = source
        self._places = places
        self._offline = offline_seconds
        self._windows: dict[str, _Window] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, subject: str, limits: Limits, meter: Meter, *, tokens: int, now_ms: int) -> Limited | Short | None:
        """Count a request if the share allows it; a Short asks for `take_or_lease`."""
        if limits.requests_per_minute is None and limits.tokens_per_minute is None and limits.at_once is None:
            return take(limits, meter, tokens=tokens, now_ms=now_ms)
        window = self._windows.get(subject)
        if window is None or window.meter is not meter:
            window = self._windows[subject] = _Window(limits, meter, Share(0))
        window.limits = limits
        if limits.at_once is None and window.share.minute == now_ms // WINDOW_MS:
            return take(limits, meter, tokens=tokens, now_ms=now_ms, share=window.share)
        return self._take(subject, window, tokens, now_ms)

    async def take_or_lease(self, subject: str, *, tokens: int) -> Limited | None:
        """Count a request, leasing more of the window when need be. Raises Unavailable when nobody can lease."""
        window = self._windows[subject]
        came = time.monotonic()
        deadline = came + RECALL_SECONDS_MAX
        async with window.turn:
            while True:
                outcome = self._take(subject, window, tokens, _now_ms())
                if not isinstance(outcome, Short):
                    return outcome
                if outcome.places:
                    if not await self._places.have(subject, came=came):
                        return Limited(LimitReason.CONCURRENCY, window.limits.at_once or 0, 1_000)
                    continue
                if window.refuses(outcome):
                    return _used_up(window, outcome)
                await self._lease(subject, window, outcome)
                outcome = self._take(subject, window, tokens, _now_ms())
                if not isinstance(outcome, Short):
                    return outcome
                if outcome.places:
                    continue
                others = await self._source.recall_window(subject, _minute())
                if not others or time.monotonic() >= deadline:
                    # Nobody else has any, or nobody gave any: one last look.
                    await self._lease(subject, window, outcome)
                    outcome = self._take(subject, window, tokens, _now_ms())
                    if isinstance(outcome, Short) and not outcome.places:
                        window.refuse(outcome)
                        return _used_up(window, outcome)
                    if not isinstance(outcome, Short):
                        return outcome
                await asyncio.sleep(random.uniform(0.01, 0.06))

    def left(self, subject: str, limits: Limits, *, now_ms: int) -> tuple[int | None, int | None, int]:
        """(requests left, tokens left, milliseconds to the window's end), as far as this gateway knows."""
        window = self._windows.get(subject)
        if window is None:
            return remaining(limits, Meter(), now_ms=now_ms)
        share = window.share
        others = share.others if share.minute == now_ms // WINDOW_MS else (0, 0)
        return remaining(limits, window.meter, now_ms=now_ms, others=others)

    def _take(self, subject: str, window: _Window, tokens: int, now_ms: int) -> Limited | Short | None:
        minute = now_ms // WINDOW_MS
        if window.share.minute != minute and window.ahead is not None and window.ahead.minute == minute:
            window.share, window.ahead = window.ahead, None
        limits, meter = window.limits, window.meter
        places = None if limits.at_once is None else self._places.granted(subject, limits.at_once, meter)
        windowed = limits.requests_per_minute is not None or limits.tokens_per_minute is not None
        share = window.share if windowed else None
        return take(limits, meter, tokens=tokens, now_ms=now_ms, share=share, places=places)

    # --- the database ---------------------------------------------------------------------------------------------

    async def _lease(self, subject: str, window: _Window, short: Short) -> None:
        async with window.asking:
            minute = _minute()
            ask = _ask(subject, window.limits, window.meter, minute, short)
            try:
                leases = await self._source.lease_windows(minute, [ask])
            except Unavailable:
                # As much as it had when the database was last heard: what others had is theirs.
                if window.share.minute == minute or time.monotonic() - window.leased > self._offline:
                    raise
                window.share.minute = minute
                return
            for lease in leases:
                if not lease.recalled:
                    _hand_over(window, lease)
        if any(lease.recalled for lease in leases):
            await self._give_back(subject, window)

    async def _give_back(self, subject: str, window: _Window) -> None:
        """Return what is not used or reserved."""
        async with window.asking:
            minute, meter, share = _minute(), window.meter, window.share
            if share.minute != minute:
                return
            used = (meter.requests, meter.tokens) if meter.minute == minute else (0, 0)
            # Out of use before it is returned: nobody here may take it meanwhile.
            share.requests, share.tokens = min(share.requests, used[0]), min(share.tokens, used[1])
            for lease in await self._source.return_windows(minute, [RateAsk(subject, share.requests, share.tokens)]):
                _hand_over(window, lease)

    async def tend(self) -> None:
        """For ever: lease the next minute of keys in use before it begins, forget keys that are not."""
        while True:
            await asyncio.sleep(1 + random.uniform(0, 0.5))
            await self._places.tend()
            now_ms = _now_ms()
            minute = now_ms // WINDOW_MS
            for subject, window in list(self._windows.items()):
                if window.meter.minute < minute - 1 and not window.meter.running and not window.turn.locked():
                    del self._windows[subject]
            if WINDOW_MS - now_ms % WINDOW_MS > AHEAD_MS:
                continue
            wanted = [
                (subject, window)
                for subject, window in self._windows.items()
                if window.meter.minute == minute and window.share.minute == minute and window.ahead is None
            ]
            await self._lease_ahead(minute + 1, dict(wanted[:AHEAD_MAX]))

    async def _lease_ahead(self, minute: int, windows: dict[str, _Window]) -> None:
        if not windows:
            return
        asks = [_ask(key, w.limits, w.meter, minute, Short(0, 0)) for key, w in windows.items()]
        try:
            leases = await self._source.lease_windows(minute, asks)
        except (HeliuError, OSError) as error:
            log.warning("the next minute of rate windows could not be leased", extra={"why": str(error)})
            return
        for lease in leases:
            window = windows[lease.subject]
            window.ahead = _share(lease, window.limits)
            window.leased = time.monotonic()

    async def hear(self) -> None:
        """For ever: act on what other gateways recall."""
        while True:
            try:
                async for subject, minute in self._source.limit_recalls():
                    task = asyncio.get_running_loop().create_task(self._give_back_quietly(subject, minute))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            except HeliuError:
                pass  # a lease that was recalled says so when it is to grow
            await asyncio.sleep(0.5)

    async def _give_back_quietly(self, subject: str, minute: int | None) -> None:
        window = self._windows.get(subject)
        try:
            if minute is None:
                await self._places.give_back(subject)
            elif window is not None and minute == _minute():
                await self._give_back(subject, window)
        except (HeliuError, OSError) as error:
            log.warning("what was recalled of a limit could not be returned", extra={"why": str(error)})

    async def close(self) -> None:
        """The gateway ends: nothing runs any more."""
        await self._places.close()


def _ask(subject: str, limits: Limits, meter: Meter, minute: int, short: Short) -> RateAsk:
    used = (meter.requests, meter.tokens) if meter.minute == minute else (0, 0)
    return RateAsk(
        subject,
        _wanted(limits.requests_per_minute, used[0], short.requests),
        _wanted(limits.tokens_per_minute, used[1], short.tokens),
    )


def _wanted(limit: int | None, used: int, short: int) -> int:
    """What to have of a window in all: what is used, and a slice of it more or what is short."""
    return 0 if limit is None else min(limit, used + max(-(-limit // SLICES), short))


def _share(lease: RateLease, limits: Limits) -> Share:
    def others(limit: int | None, mine: int, free: int | None) -> int:
        return 0 if limit is None or free is None else max(0, limit - mine - free)

    return Share(
        lease.minute,
        lease.requests,
        lease.tokens,
        (
            others(limits.requests_per_minute, lease.requests, lease.requests_free),
            others(limits.tokens_per_minute, lease.tokens, lease.tokens_free),
        ),
    )


def _hand_over(window: _Window, lease: RateLease) -> None:
    window.share, window.leased = _share(lease, window.limits), time.monotonic()


def _used_up(window: _Window, short: Short) -> Limited:
    limits = window.limits
    until_next = WINDOW_MS - _now_ms() % WINDOW_MS
    if short.requests:
        return Limited(LimitReason.REQUESTS, limits.requests_per_minute or 0, until_next)
    return Limited(LimitReason.TOKENS, limits.tokens_per_minute or 0, until_next)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _minute() -> int:
    return _now_ms() // WINDOW_MS
