"""The mix of what was asked for lately, and the prices that it makes: worked out now and then, outside the cycle."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.clock import Clock
from kit.db import Database
from scheduler.cycle import Policy
from scheduler.packing import prices_of
from scheduler.placement import Policy as Packing
from scheduler.placement import Scoring
from scheduler.scoring import by_bid_prices
from scheduler.vocabulary import Shape

LATELY = timedelta(days=7)
SHAPES_AT_MOST = 200  # the most frequent ones; a programme over more of them costs much and changes little


@dataclass(slots=True)
class Mix:
    """What is known of recent work. Until it is looked at, and while nothing was asked for, places go by best fit."""

    _counts: Counter[Shape] = field(default_factory=Counter[Shape])
    _packing: Packing | None = None

    def applied(self, policy: Policy) -> Policy:
        """The policy, scoring by the prices of the mix."""
        if self._packing is None:
            return policy
        return replace(policy, scoring=Scoring(self._packing, weights=policy.scoring.weights))

    async def look(self, db: Database, clock: Clock) -> None:
        """Count what was asked for lately; other counts make other prices."""
        async with db.transaction() as tx:
            counts = await recent_shapes(tx, now=clock.now())
        if counts != self._counts and any(shape.gpus for shape in counts):
            prices = await asyncio.to_thread(prices_of, counts)
            self._counts, self._packing = counts, by_bid_prices(prices)


def priced(policy: Policy, mix: Mapping[Shape, int]) -> Policy:
    """The policy as production has it once this mix was asked for; best fit where nobody asked for accelerators."""
    counts = Counter(dict(Counter(mix).most_common(SHAPES_AT_MOST)))
    if not any(shape.gpus for shape in counts):
        return policy
    return replace(policy, scoring=Scoring(by_bid_prices(prices_of(counts)), weights=policy.scoring.weights))


async def recent_shapes(tx: AsyncSession, *, now: datetime) -> Counter[Shape]:
    """How many workers of each shape were asked for in the last week."""
    rows = await tx.execute(
        text("""
            SELECT gpu_milli, cpu_milli, memory_mib, sum(workers) AS workers FROM scheduler.workload
            WHERE submitted_at > :since GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3 LIMIT :most"""),
        {"since": now - LATELY, "most": SHAPES_AT_MOST},
    )
    return Counter({Shape.of(row.gpu_milli, row.cpu_milli, row.memory_mib): row.workers for row in rows})
