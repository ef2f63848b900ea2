"""Requests through a router over modelled replicas, in virtual time."""

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass

from benchmarks.routing.replica_model import Event, Replica, Sequence
from benchmarks.routing.routers import Router
from benchmarks.routing.trace import BLOCK_TOKENS, Request

REPLICAS = 8
EVENT_SECONDS = 0.02
"""What events take from the end of an engine's step to the router."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Share of prompt tokens served from a cache, and time to first token at its quantiles, in seconds."""

    hit_rate: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float


def simulate(requests: list[Request], router: Router, *, blocks: int) -> Outcome:
    """Replay `requests` against 8 replicas of `blocks` cache blocks each."""
    replicas = [Replica(f"rep_{number}", blocks) for number in range(REPLICAS)]
    sequences = [Sequence(number, request, request.prompt_tokens) for number, request in enumerate(requests)]
    events: list[tuple[float, int, int]] = [(sequence.request.at, 0, sequence.number) for sequence in sequences]
    heapq.heapify(events)
    told: deque[tuple[float, str, list[Event]]] = deque()
    while events:
        now, kind, number = heapq.heappop(events)
        while told and told[0][0] <= now:
            _, name, said = told.popleft()
            router.hear(name, said)
        if kind == 0:
            replica = router.choose(sequences[number].request, replicas)
            replica.send(sequences[number])
            if replica.is_busy:
                continue
        else:
            replica = replicas[number]
            replica.end_step(now)
            if replica.events:
                told.append((now + EVENT_SECONDS, replica.id, replica.events))
                replica.events = []
        if (ends := replica.begin_step(now)) is not None:
            heapq.heappush(events, (ends, 1, replicas.index(replica)))
    waits = sorted(sequence.first_token_at - sequence.request.at for sequence in sequences)
    return Outcome(
        sum(sequence.hit_tokens for sequence in sequences) / sum(request.prompt_tokens for request in requests),
        *(waits[min(len(waits) - 1, int(share * len(waits)))] for share in (0.5, 0.9, 0.99)),
    )


def pooled_hit_rate(requests: list[Request], *, blocks: int) -> float:
    """Hit rate of one cache as large as all replicas' together: what no router over separate caches can pass."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for request in requests:
        matched = 0
        while matched < len(request.blocks) and request.blocks[matched] in cache:
            matched += 1
        hits += min(matched * BLOCK_TOKENS, request.prompt_tokens - 1)
        for block in reversed(request.blocks):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > blocks * REPLICAS:
            cache.popitem(last=False)
    return hits / sum(request.prompt_tokens for request in requests)
