"""Which replica takes a request: filter → score → pick, over what the gateway itself knows at this instant.

A replica that does not answer three requests in a row is left alone for a while (circuit breaker); a full one, or one
that says it has too much to do, gets nothing until it has room.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

FAILURES_TO_OPEN = 3
OPEN_FIRST_MS = 1_000
OPEN_MAX_MS = 30_000
BUSY_MS = 250
BUSY_OVER_MS = 2_000
"""A replica that has not said for so long that it has too much to do is as any other again."""
MISS_WEIGHT = 3
"""An uncached token delays its own request and those that queue behind it, and evicts what others would have hit:
it weighs as much as this many tokens already queued (benchmarks/routing chose it; 2 to 8 do nearly as well)."""


class NoRoute(StrEnum):
    """Why no replica can take a request now."""

    NO_REPLICA = "no_replica"  # none is ready: it may be starting
    NO_ADAPTER = "no_adapter"  # replicas are ready, but none has the adapter yet
    UNHEALTHY = "unhealthy"  # those that could are broken at the moment
    FULL = "full"  # those that could run as much as they batch at once, or say so


@dataclass(slots=True)
class Breaker:
    """Counts failures in a row; after a few it opens for a time that doubles, then lets single trials through.

    A replica that says it has too much to do has not failed. It gets a request whenever it has answered one, else one
    after each pause, until it has stopped saying so.
    """

    failures: int = 0
    open_until_ms: int = 0
    trial: str = ""  # the request that tries a broken replica
    calm: bool = True  # nothing has been wrong since it answered last
    busy_until_ms: int = 0
    said_busy_ms: int = 0  # when it last had too much to do; 0: long ago

    def allows(self, now_ms: int) -> bool:
        """Whether it counts as healthy: a request may go there now, if there is room for it."""
        if self.failures < FAILURES_TO_OPEN:
            return True
        return now_ms >= self.open_until_ms and not self.trial

    def begin(self, request: str, now_ms: int) -> None:
        """A request goes to a replica that is not calm: others wait for what comes of it."""
        if self.failures >= FAILURES_TO_OPEN:
            self.trial = request
        if now_ms - self.said_busy_ms > BUSY_OVER_MS:
            self.said_busy_ms = 0
        self.busy_until_ms = now_ms + BUSY_MS if self.said_busy_ms else 0

    def succeeded(self) -> None:
        """It answered."""
        if not self.calm:
            self.failures, self.open_until_ms, self.trial, self.busy_until_ms = 0, 0, "", 0
            self.calm = not self.said_busy_ms

    def busy(self, now_ms: int) -> None:
        """It answered that it has too much to do."""
        self.succeeded()
        self.calm = False
        self.said_busy_ms, self.busy_until_ms = now_ms, now_ms + BUSY_MS

    def failed(self, now_ms: int) -> None:
        """It did not answer, or broke off."""
        self.failures += 1
        self.trial, self.calm = "", False
        if self.failures >= FAILURES_TO_OPEN:
            doublings = min(self.failures - FAILURES_TO_OPEN, 10)
            self.open_until_ms = now_ms + min(OPEN_MAX_MS, OPEN_FIRST_MS << doublings)

    def left(self, request: str) -> None:
        """A request is no longer there; if it was the trial and said nothing about the replica, another may try."""
        if self.trial == request:
            self.trial = ""


@dataclass(slots=True)
class Prefills:
    """Prompts sent to a replica and not yet computed there, in order: an engine computes them first come first served.

    So whatever shows that one is done (the engine says so, or its first token comes) says it of all before it.
    """

    tokens: int = 0
    _waiting: OrderedDict[str, int] = field(default_factory=OrderedDict[str, int])

    def begin(self, request: str, uncached_tokens: int) -> None:
        """A prompt went there."""
        self._waiting[request] = uncached_tokens
        self.tokens += uncached_tokens

    def done(self, request: str) -> None:
        """The prompt is computed."""
        self.left(request, 0)

    def left(self, request: str, tokens: int) -> None:
        """So much of the prompt is still to be computed; unknown requests (another gateway's) say nothing."""
        if request not in self._waiting:
            return
        first = ""
        while first != request:
            first, before = self._waiting.popitem(last=False)
            self.tokens -= before
        if tokens:
            self._waiting[request] = tokens
            self._waiting.move_to_end(request, last=False)
            self.tokens += tokens

    def drop(self, request: str) -> None:
        """The request is over, perhaps before its turn came: of the others this says nothing."""
        self.tokens -= self._waiting.pop(request, 0)


@dataclass(slots=True)
class Target:
    """One ready replica as the router sees it. `prefills`: uncached prompt tokens sent, not yet computed.

    The `others_…` are requests of other gateways, as the engine's own metrics told a moment ago.
    """

    id: str
    adapters: frozenset[str]
    capacity: int  # requests it may have at once: those it batches and a few that wait in the engine
    running: int = 0
    prefills: Prefills = field(default_factory=Prefills)
    breaker: Breaker = field(default_factory=Breaker)
    others_running: int = 0
    others_waiting: int = 0
    filled: float = 0.0  # share of its KV cache in use

    def has_room(self, now_ms: int) -> bool:
        """Whether it takes another request now, if it is healthy."""
        return self.running < self.capacity and now_ms >= self.breaker.busy_until_ms


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request needs: an adapter, and how many of its prompt's tokens each replica is believed to hold."""

    adapter: str | None = None
    prompt_tokens: int = 0
    matched: dict[str, int] | None = None
    avoid: frozenset[str] = frozenset()  # replicas that already failed this request


def candidates(targets: Iterable[Target], ask: Ask, *, now_ms: int) -> list[Target] | NoRoute:
    """The replicas that could take the request now, or the last filter that left none."""
    ready = [target for target in targets if target.id not in ask.avoid]
    if not ready:
        return NoRoute.NO_REPLICA
    loaded = [target for target in ready if ask.adapter is None or ask.adapter in target.adapters]
    if not loaded:
        return NoRoute.NO_ADAPTER
    healthy = [target for target in loaded if target.breaker.allows(now_ms)]
    if not healthy:
        return NoRoute.UNHEALTHY
    free = [target for target in healthy if target.has_room(now_ms)]
    return free or NoRoute.FULL


def score(target: Target, ask: Ask) -> tuple[int, int, float]:
    """Smaller is better: uncached tokens queued there, its own uncached ones at their weight; then requests running.

    What other gateways have waiting there is taken to be as long as this prompt. A fuller cache decides among equals.
    """
    matched = 0 if ask.matched is None else ask.matched.get(target.id, 0)
    queued = target.prefills.tokens + target.others_waiting * ask.prompt_tokens
    uncached = max(0, ask.prompt_tokens - matched)
    return queued + MISS_WEIGHT * uncached, target.running + target.others_running, target.filled


def pick(free: Sequence[Target], ask: Ask, *, coin: int) -> Target:
    """The best-scored target; `coin` (any integer) chooses among equals."""
    if len(free) == 1:
        return free[0]
    best = min(score(target, ask) for target in free)
    equal = [target for target in free if score(target, ask) == best]
    return equal[coin % len(equal)]


def route(targets: Iterable[Target], ask: Ask, *, now_ms: int, coin: int) -> Target | NoRoute:
    """Filter, score, pick."""
    found = candidates(targets, ask, now_ms=now_ms)
    return found if isinstance(found, NoRoute) else pick(found, ask, coin=coin)
