"""Whether a cycle can still change anything now: start work that waits, or stop borrowed work for it.

Most of a cycle gives places in the future to work that waits, so that it can be told when it starts and nobody who
comes later delays it. Once nothing more can start or be stopped for, that is only of use to whoever asks to be told.
Within a cycle room and quota only shrink, so what cannot start now cannot later in it; a reclaim alone gives some back.
"""

from scheduler.lines import Kind
from scheduler.ordering import Order
from scheduler.preemption import Age, Standings
from scheduler.snapshot import Waiting
from scheduler.timeline import Timeline
from scheduler.usage import InUse


class Prospects:
    """What is left to hope for in a cycle; the best case of each kind of work stands for all of it."""

    def __init__(self, order: Order, timeline: Timeline, in_use: InUse, standings: Standings, age: Age) -> None:
        self._order, self._timeline, self._in_use = order, timeline, in_use
        self._standings, self._age = standings, age
        self._hopeless: set[Kind] = set()  # what cannot start any more
        self._hope: Kind | None = None  # one that may, or may have others stopped

    def any(self) -> bool:
        """Whether some of what has not had its turn might start now, or have others stopped for it."""
        if self._hope is None or not (self._order.is_open(self._hope) and self._may_act(self._hope)):
            self._hope = next((kind for kind in self._order.open() if self._may_act(kind)), None)
        return self._hope is not None

    def reclaimed(self) -> None:
        """Work was told to stop: what it will have given back may let others begin before."""
        self._hopeless.clear()

    def _may_act(self, kind: Kind) -> bool:
        best = self._order.best_case(kind)
        if kind not in self._hopeless:
            if self._may_start(best):
                return True
            self._hopeless.add(kind)
        return any(
            self._standings.is_promised(best, pool) and any(self._standings.victims(best, pool, self._age))
            for pool in best.pools
        )

    def _may_start(self, best: Waiting) -> bool:
        return any(
            self._in_use.quota_left((best.firm_id, pool), best.qos) >= best.need
            and self._timeline.may_start(pool, best)
            for pool in best.pools
        )
