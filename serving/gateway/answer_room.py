"""Room for plain answers, of all requests together: they are held whole, and those without room wait at their engines.

A small answer needs none. One that grows asks for more in steps; where there is none it is parked, which means that
nothing more of it is read, and goes on in turn when others have left. When all that have room are parked the
largest goes on all the same: nobody waits for ever, and what is held beyond the bound is one answer.
"""

from typing import Protocol

FREE_BYTES = 64 << 10
"""Of each answer; what its client's connection may hold back anyway."""
STEP_BYTES = 1 << 20


class Holder(Protocol):
    def room_found(self, bytes_now: int) -> None:
        """A parked answer may go on, up to so many bytes."""
        ...


class AnswerRoom:
    """The bytes that large plain answers take until their clients have them."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._room: dict[Holder, int] = {}
        self._parked: dict[Holder, int] = {}
        self.used = 0

    @property
    def waiting(self) -> int:
        """How many answers are parked."""
        return len(self._parked)

    def extend(self, holder: Holder, bytes_now: int) -> int | None:
        """How many bytes the answer, which has come to `bytes_now`, may have; None: it is parked (see `Holder`)."""
        wanted = bytes_now + STEP_BYTES
        if not self._parked and self._fits(holder, wanted):
            return self._grant(holder, wanted)
        self._parked[holder] = wanted
        next_one = self._next()
        if next_one is None:
            return None
        granted = self._grant(next_one, self._parked.pop(next_one))
        if next_one is holder:
            return granted
        next_one.room_found(granted)
        return None

    def whole(self, holder: Holder, bytes_now: int) -> int:
        """All of the answer has come: it has as much room as it takes."""
        self._parked.pop(holder, None)
        self._grant(holder, bytes_now)
        self._go_on()
        return bytes_now

    def leave(self, holder: Holder) -> None:
        """The answer is with its client, or nobody wants it any more."""
        self._parked.pop(holder, None)
        self.used -= self._room.pop(holder, 0)
        self._go_on()

    def _go_on(self) -> None:
        while (holder := self._next()) is not None:
            holder.room_found(self._grant(holder, self._parked.pop(holder)))

    def _next(self) -> Holder | None:
        """Who may go on: the first in turn if it fits; when nobody else can leave, whoever has most room already."""
        if not self._parked:
            return None
        first = next(iter(self._parked))
        if self._fits(first, self._parked[first]):
            return first
        stuck = self._room.keys() <= self._parked.keys()
        return max(self._parked, key=lambda one: self._room.get(one, 0)) if stuck else None

    def _fits(self, holder: Holder, wanted: int) -> bool:
        return self.used - self._room.get(holder, 0) + wanted <= self._bytes_max

    def _grant(self, holder: Holder, wanted: int) -> int:
        self.used += wanted - self._room.get(holder, 0)
        self._room[holder] = wanted
        return wanted
