"""The mix of what was asked for lately, and the prices that it makes: worked out now and then, outside the cycle."""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.clock import Clock
from kit.db import Database
from scheduler.cycle import Policy
from scheduler.packing import PLENTY, Beside, prices_of
from scheduler.placement import Policy as Packing
from scheduler.placement import Scoring
from scheduler.scoring import by_bid_prices
from scheduler.snapshot import Node
from scheduler.vocabulary import NodeState, Shape

LATELY = timedelta(days=7)
SHAPES_AT_MOST = 200  # the most frequent ones; a programme over more of them costs much and changes little


@dataclass(slots=True)
class Mix:
    """What is known of recent work. Until it is looked at, and while nothing was asked for, places go by best fit."""

    _counts: Counter[Shape] = field(default_factory=Counter[Shape])
    _beside: Beside = PLENTY
    _packing: Packing | None = None

    def applied(self, policy: Policy) -> Policy:
        """The policy, scoring by the prices of the mix."""
        if self._packing is None:
            return policy
        return replace(policy, scoring=Scoring(self._packing, weights=policy.scoring.weights))

    async def look(self, db: Database, clock: Clock) -> None:
        """Count what was asked for lately; other counts and other nodes make other prices."""
        async with db.transaction() as tx:
            counts, beside = await recent_shapes(tx, now=clock.now()), await beside_gpus(tx)
        if (counts, beside) != (self._counts, self._beside) and any(shape.gpus for shape in counts):
            prices = await asyncio.to_thread(prices_of, counts, beside)
            self._counts, self._beside, self._packing = counts, beside, by_bid_prices(prices)


def priced(policy: Policy, mix: Mapping[Shape, int], nodes: Collection[Node]) -> Policy:
    """The policy as production has it once this mix was asked for; best fit where nobody asked for accelerators."""
    counts = Counter(dict(Counter(mix).most_common(SHAPES_AT_MOST)))
    if not any(shape.gpus for shape in counts):
        return policy
    beside = Beside.of(
        cpu_milli=sum(node.cpu_milli for node in nodes),
        memory_mib=sum(node.memory_mib for node in nodes),
        gpu_milli=sum(node.gpu_milli for node in nodes),
    )
    return replace(policy, scoring=Scoring(by_bid_prices(prices_of(counts, beside)), weights=policy.scoring.weights))


async def recent_shapes(tx: AsyncSession, *, now: datetime) -> Counter[Shape]:
    """How many workers of each shape were asked for in the last week."""
    rows = await tx.execute(
        text("""
            SELECT gpu_milli, cpu_milli, memory_mib, sum(workers) AS workers FROM scheduler.workload
            WHERE submitted_at > :since GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3 LIMIT :most"""),
        {"since": now - LATELY, "most": SHAPES_AT_MOST},
    )
    return Counter({Shape.of(row.gpu_milli, row.cpu_milli, row.memory_mib): row.workers for row in rows})


async def beside_gpus(tx: AsyncSession) -> Beside:
    """What the nodes that are up have beside their accelerators."""
    rows = await tx.execute(
        text("""
            SELECT coalesce(sum(cpu_milli), 0) AS cpu, coalesce(sum(memory_mib), 0) AS memory,
                coalesce(sum(gpu_milli), 0) AS gpu FROM scheduler.node WHERE state = :up"""),
        {"up": NodeState.READY},
    )
    there = rows.one()
    return Beside.of(cpu_milli=int(there.cpu), memory_mib=int(there.memory), gpu_milli=int(there.gpu))
