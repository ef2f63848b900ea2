"""Why everybody else waits and about when they start: worked out beside the cycle, as often as it costs little.

What a cycle decided about single workloads is told at once. The rest waits with its kind; to say it for each costs as
much as there is that waits, so of a long queue it is said every few seconds, in a thread, and told bit by bit.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from scheduler.decisions import Decisions, others
from scheduler.snapshot import State
from scheduler.vocabulary import Wait

FEW = 1000  # that wait: it is said in every cycle
EVERY = timedelta(seconds=5)


@dataclass(slots=True)
class Notices:
    """What was last said of those without a decision of their own."""

    _waits: Sequence[Wait] = field(default_factory=list[Wait])
    _next: datetime | None = None

    async def due(self, state: State, decisions: Decisions, *, now: datetime) -> list[Wait]:
        """Waits of those without a decision of their own, some seconds old where many wait."""
        if len(state.waiting) <= FEW:
            return list(others(state, decisions, now=now))
        if self._next is None or now >= self._next:
            self._waits = await asyncio.to_thread(lambda: list(others(state, decisions, now=now)))
            self._next = now + EVERY
        made = {decision.workload_id for decision in decisions.made}
        return [wait for wait in self._waits if wait.workload_id in state.waiting and wait.workload_id not in made]
