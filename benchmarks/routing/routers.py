"""Routers side by side. Each is asked once a request; all see the same exact state of the replicas."""

import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

from benchmarks.routing.replica_model import Replica
from benchmarks.routing.trace import BLOCK_TOKENS, Request
from serving import routing
from serving.prefix_index import PrefixIndex

Router: TypeAlias = Callable[[Request, Sequence[Replica]], Replica]

THRESHOLD_ABSOLUTE, THRESHOLD_RELATIVE, MATCH_MIN = 64, 1.5, 0.3


def round_robin(_blocks: int) -> Router:
    """One after the other."""
    turn = -1

    def choose(_request: Request, replicas: Sequence[Replica]) -> Replica:
        nonlocal turn
        turn += 1
        return replicas[turn % len(replicas)]

    return choose


def least_tokens(_blocks: int) -> Router:
    """The fewest prompt tokens waiting."""
    return lambda _request, replicas: min(replicas, key=lambda replica: (replica.queued_tokens, replica.requests))


def power_of_two(_blocks: int) -> Router:
    """The less loaded of two drawn at random."""
    rng = random.Random(0)
    return lambda _request, replicas: min(rng.sample(list(replicas), 2), key=lambda replica: replica.requests)


def threshold(_blocks: int) -> Router:
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


def unit_free(_blocks: int) -> Router:
    """Matched share of the prompt minus the load's distance from the mean, in means."""

    def choose(request: Request, replicas: Sequence[Replica]) -> Replica:
        mean = sum(replica.requests for replica in replicas) / len(replicas)
        return max(
            replicas,
            key=lambda replica: (
                replica.matched_blocks(request.blocks) * BLOCK_TOKENS / request.prompt_tokens
                - (replica.requests - mean) / max(1.0, mean)
            ),
        )

    return choose


def least_predicted_ttft(_blocks: int) -> Router:
    """The fewest tokens to prefill before this request's first: those queued and its own uncached ones."""
    return lambda request, replicas: min(
        replicas,
        key=lambda replica: replica.queued_tokens + replica.uncached_tokens(request),
    )


def heliu_events(_blocks: int) -> Router:
    """The gateway's router, its index fed by the engine's cache events: what it believes is what is there."""

    def choose(request: Request, replicas: Sequence[Replica]) -> Replica:
        matched = {replica.id: replica.matched_blocks(request.blocks) for replica in replicas}
        return _through_router(request, replicas, matched)

    return choose


def heliu_shadow(blocks: int) -> Router:
    """The gateway's router without cache events: its index believes what was sent."""
    index = PrefixIndex(capacity=blocks)

    def choose(request: Request, replicas: Sequence[Replica]) -> Replica:
        chosen = _through_router(request, replicas, index.matched(request.blocks))
        index.sent(chosen.id, request.blocks)
        return chosen

    return choose


ROUTERS: dict[str, Callable[[int], Router]] = {
    "round robin": round_robin,
    "least tokens": least_tokens,
    "power of two": power_of_two,
    "threshold": threshold,
    "unit-free": unit_free,
    "least predicted TTFT": least_predicted_ttft,
    "heliu (shadow index)": heliu_shadow,
    "heliu (cache events)": heliu_events,
}


def _through_router(request: Request, replicas: Sequence[Replica], matched_blocks: dict[str, int]) -> Replica:
    """Ask `serving.routing`, the code the gateway runs."""
    targets = [
        routing.Target(
            r.id,
            frozenset(),
            capacity=1 << 30,
            running=r.requests,
            prefills=routing.Prefills(r.queued_tokens),
        )
        for r in replicas
    ]
    matched = {id: count * BLOCK_TOKENS for id, count in matched_blocks.items()}
    ask = routing.Ask(prompt_tokens=request.prompt_tokens, matched=matched)
    target = routing.route(targets, ask, now_ms=0, coin=0)
    assert isinstance(target, routing.Target), "a replica without bounds always takes a request"
    return next(replica for replica in replicas if replica.id == target.id)
