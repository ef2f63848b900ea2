"""Who goes next when every replica of a model is full: virtual token counters per firm.

VTC, Sheng et al., "Fairness in Serving Large Language Models", OSDI'24, algorithm 2: each firm's counter grows by the
weighted tokens it is served; the waiting firm with the smallest counter goes first; a firm that comes back from idle
is lifted to the smallest counter among those waiting, so idleness earns no credit.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueReason(StrEnum):
    """Why a request was not kept waiting."""

    FULL = "queue_full"
    FIRM_FULL = "firm_queue_full"


@dataclass(slots=True)
class _Waiting(Generic[T]):
    ticket: T
    deadline_ms: int
    tokens: int


@dataclass(slots=True)
class FairQueue(Generic[T]):
    """Requests that wait for one model, per firm, bounded in number and in time."""

    waiting_max: int
    per_firm_max: int
    counters: OrderedDict[str, int] = field(default_factory=OrderedDict)
    counters_max: int = 10_000
    _queues: dict[str, deque[_Waiting[T]]] = field(default_factory=dict)
    _size: int = 0

    def __len__(self) -> int:
        return self._size

    def push(self, firm: str, ticket: T, *, deadline_ms: int, tokens: int) -> QueueReason | None:
        """Let `ticket` wait; None when it was taken. `tokens` is what it is expected to cost its firm."""
        if self._size >= self.waiting_max:
            return QueueReason.FULL
        queue = self._queues.get(firm)
        if queue is None:
            floor = min((self.counters.get(other, 0) for other in self._queues), default=None)
            if floor is not None:
                self.counters[firm] = max(self.counters.get(firm, 0), floor)
            queue = self._queues[firm] = deque()
        elif len(queue) >= self.per_firm_max:
            return QueueReason.FIRM_FULL
        queue.append(_Waiting(ticket, deadline_ms, tokens))
        self._size += 1
        return None

    def pop(self, ready: Callable[[T], bool]) -> T | None:
        """The next ticket that is `ready`: the oldest such of the firm served least; its tokens are charged."""
        by_service = sorted(
            (self.counters.get(name, 0), queue[0].deadline_ms, name) for name, queue in self._queues.items()
        )
        for _, _, firm in by_service:
            queue = self._queues[firm]
            for place, waiting in enumerate(queue):
                if ready(waiting.ticket):
                    del queue[place]
                    self._size -= 1
                    if not queue:
                        del self._queues[firm]
                    self.charge(firm, waiting.tokens)
                    return waiting.ticket
        return None

    def charge(self, firm: str, tokens: int) -> None:
        """Count tokens served to `firm`; negative gives back what was expected and not used."""
        self.counters[firm] = max(0, self.counters.get(firm, 0) + tokens)
        self.counters.move_to_end(firm)
        while len(self.counters) > self.counters_max:
            self.counters.popitem(last=False)

    def expire(self, now_ms: int) -> list[T]:
        """Take out every ticket whose deadline has passed."""
        return self._remove(lambda waiting: waiting.deadline_ms <= now_ms)

    def remove(self, ticket: T) -> bool:
        """Take one ticket out (its client left); whether it was there."""
        return bool(self._remove(lambda waiting: waiting.ticket is ticket))

    def _remove(self, gone: "Callable[[_Waiting[T]], bool]") -> list[T]:
        removed: list[T] = []
        for firm in list(self._queues):
            kept: deque[_Waiting[T]] = deque()
            for waiting in self._queues[firm]:
                if gone(waiting):
                    removed.append(waiting.ticket)
                else:
                    kept.append(waiting)
            if kept:
                self._queues[firm] = kept
            else:
                del self._queues[firm]
        self._size -= len(removed)
        return removed
