"""Routers side by side, each asked once a request.

All but Heliu's see the exact state of the replicas, which no router outside of them can.
"""

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from benchmarks.routing import replica_model
from benchmarks.routing.replica_model import Answered, Event, Removed, Replica, Stored
from benchmarks.routing.trace import BLOCK_TOKENS, Request
from serving import routing
from serving.gateway.cache_events import Telling
from serving.node.cache_map import CacheMap, Prompt
from serving.prefix_index import PrefixIndex

Choose: TypeAlias = Callable[[Request, Sequence[Replica]], Replica]


class Router(Protocol):
    """Chooses, and hears what replicas tell."""

    @property
    def choose(self) -> Choose: ...

    def hear(self, replica: str, events: Sequence[Event]) -> None: ...


THRESHOLD_ABSOLUTE, THRESHOLD_RELATIVE, MATCH_MIN = 64, 1.5, 0.3


class Seeing:
    """A router that needs to be told nothing."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose

    def hear(self, replica: str, events: Sequence[Event]) -> None:
        pass


def round_robin() -> Choose:
    """One after the other."""
    turn = -1

    def choose(_request: Request, replicas: Sequence[Replica]) -> Replica:
        nonlocal turn
        turn += 1
        return replicas[turn % len(replicas)]

    return choose


def least_tokens(_request: Request, replicas: Sequence[Replica]) -> Replica:
    """The fewest prompt tokens waiting."""
    return min(replicas, key=lambda replica: (replica.queued_tokens, replica.requests))


def power_of_two() -> Choose:
    """The less loaded of two drawn at random."""
    rng = random.Random(0)
    return lambda _request, replicas: min(rng.sample(list(replicas), 2), key=lambda replica: replica.requests)


def threshold() -> Choose:
    """Shortest queue when out of balance, else the best match above 0.3, else the smallest tree (SGLang's rule)."""
    trees: dict[str, set[int]] = {}

    def matched(tree: set[int], request: Request) -> int:
        count = 0
        for block in request.blocks:
            if block not in tree:
                break
            count += 1
        return count

    def choose(request: Request, replicas: Sequence[Replica]) -> Replica:
        loads = [replica.requests for replica in replicas]
        for replica in replicas:
            trees.setdefault(replica.id, set())
        if max(loads) - min(loads) > THRESHOLD_ABSOLUTE and max(loads) > THRESHOLD_RELATIVE * min(loads):
            chosen = min(replicas, key=lambda replica: replica.requests)
        else:
            chosen = max(replicas, key=lambda replica: matched(trees[replica.id], request))
            if matched(trees[chosen.id], request) / len(request.blocks) <= MATCH_MIN:
                chosen = min(replicas, key=lambda replica: len(trees[replica.id]))
        trees[chosen.id].update(request.blocks)
        return chosen

    return choose


def unit_free(request: Request, replicas: Sequence[Replica]) -> Replica:
    """Matched share of the prompt minus the load's distance from the mean, in means."""
    mean = sum(replica.requests for replica in replicas) / len(replicas)
    return max(
        replicas,
        key=lambda replica: (
            replica.matched_blocks(request.blocks) * BLOCK_TOKENS / request.prompt_tokens
            - (replica.requests - mean) / max(1.0, mean)
        ),
    )


def least_predicted_ttft(request: Request, replicas: Sequence[Replica]) -> Replica:
    """The fewest tokens to prefill before this request's first: those queued and its own uncached ones."""
    return min(replicas, key=lambda replica: replica.queued_tokens + replica.uncached_tokens(request))


class Heliu:
    """The gateway's router as it ships: all it knows of a replica is what it sent there and what the replica tells.

    `events`: the engines tell of their caches, and what they tell goes through the code of replica and gateway
    (`serving/node/cache_map.py`, `serving/gateway/cache_events.py`). No first token is seen then, as if every answer
    were a plain one. Without events first tokens are seen, and the index knows how many blocks a cache has.
    """

    def __init__(self, blocks: int, *, events: bool) -> None:
        self._index = PrefixIndex(capacity=1 << 20)
        self._events = events
        self._bound = None if events else blocks
        self._targets: dict[str, routing.Target] = {}
        self._replicas: dict[str, tuple[CacheMap, Telling]] = {}
        self._sent = 0
        self._names: dict[int, str] = {}  # request → its name

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        for replica in replicas:
            self._target(replica.id).running = replica.requests
        matched = {id: count * BLOCK_TOKENS for id, count in self._index.matched(request.blocks).items()}
        ask = routing.Ask(prompt_tokens=request.prompt_tokens, matched=matched)
        target = routing.route(self._targets.values(), ask, now_ms=0, coin=0)
        assert isinstance(target, routing.Target), "a replica without bounds always takes a request"
        name = self._names[id(request)] = str(self._sent)
        self._sent += 1
        self._index.sent(target.id, request.blocks)
        target.prefills.begin(name, max(0, request.prompt_tokens - matched.get(target.id, 0)))
        tokens = request.prompt_tokens
        self._replicas[target.id][0].expect(name, Prompt(request.blocks, tokens / BLOCK_TOKENS, tokens))
        return next(replica for replica in replicas if replica.id == target.id)

    def hear(self, replica: str, events: Sequence[Event]) -> None:
        cache, telling = self._replicas[replica]
        prefills = self._targets[replica].prefills
        for event in events:
            match event:
                case Stored():
                    cache.stored(self._name(event.sequence), event.blocks, event.before, BLOCK_TOKENS)
                case Removed():
                    cache.removed([event.block])
                case Answered():
                    if event.whole or not self._events:
                        prefills.done(self._name(event.sequence))
        if self._events:
            telling.feed(cache.take().line())

    def _name(self, sequence: replica_model.Sequence) -> str:
        return self._names[id(sequence.request)]

    def _target(self, id: str) -> routing.Target:
        if id not in self._targets:
            target = self._targets[id] = routing.Target(id, frozenset(), capacity=1 << 30)
            self._replicas[id] = CacheMap(), Telling(id, self._index, target.prefills)
            self._index.bound(id, self._bound)
        return self._targets[id]


def oracle(request: Request, replicas: Sequence[Replica]) -> Replica:
    """The gateway's rule, told by nobody: it looks into the replicas' caches and queues at the instant of choosing."""
    targets = [
        routing.Target(r.id, frozenset(), 1 << 30, running=r.requests, prefills=routing.Prefills(r.queued_tokens))
        for r in replicas
    ]
    matched = {replica.id: replica.matched_blocks(request.blocks) * BLOCK_TOKENS for replica in replicas}
    ask = routing.Ask(prompt_tokens=request.prompt_tokens, matched=matched)
    target = routing.route(targets, ask, now_ms=0, coin=0)
    assert isinstance(target, routing.Target), "a replica without bounds always takes a request"
    return next(replica for replica in replicas if replica.id == target.id)


ROUTERS: dict[str, Callable[[int], Router]] = {
    "round robin": lambda _: Seeing(round_robin()),
    "least tokens": lambda _: Seeing(least_tokens),
    "power of two": lambda _: Seeing(power_of_two()),
    "threshold": lambda _: Seeing(threshold()),
    "unit-free": lambda _: Seeing(unit_free),
    "least predicted TTFT": lambda _: Seeing(least_predicted_ttft),
    "oracle": lambda _: Seeing(oracle),
    "heliu, no events": lambda blocks: Heliu(blocks, events=False),
    "heliu": lambda blocks: Heliu(blocks, events=True),
}
"""Name → a router for replicas with caches of so many blocks."""
