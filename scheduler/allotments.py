"""The quota of one tree in one pool over time: what each firm uses, and what is left of what they lend together.

What runs only gives back, so it is two sorted lists a firm. Use rises at the starts of what is planned and nowhere
else: the least that is left over a time is what is left at its beginning or at one of those starts.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.bookings import Horizon
from scheduler.sharing import Quota, Sharing
from scheduler.stretches import FOREVER
from scheduler.usage import Ends, Holding


@dataclass(slots=True)
class Course:
    """A firm's use over time: what comes back at the ends of what runs (`late` ones then), and what is planned."""

    ends: Ends
    late: datetime
    planned: list[tuple[datetime, datetime, int]] = field(default_factory=list[tuple[datetime, datetime, int]])
    _known: dict[datetime, int] = field(default_factory=dict[datetime, int])

    def at(self, moment: datetime) -> int:
        """What is in use at an instant."""
        used = self._known.get(moment)
        if used is None:
            used = self.ends.given[-1]
            if moment >= self.late:
                used -= self.ends.given[bisect_right(self.ends.at, moment)]
            used += sum(amount for start, end, amount in self.planned if start <= moment < end)
            self._known[moment] = used
        return used

    def plan(self, start: datetime, end: datetime, amount: int) -> None:
        """So much more in `[start, end)`; less where running work will be stopped."""
        self.planned.append((start, end, amount))
        for moment in self._known:
            if start <= moment < end:
                self._known[moment] += amount


class Allotment:
    """Mutable, made anew for one decision and gone with it. `ends`: those of the whole tree in order, late ones too."""

    def __init__(
        self,
        sharing: Sharing,
        pool: PoolName,
        lent: int,
        held: Mapping[FirmId, Holding],
        ends: Sequence[datetime],
        horizon: Horizon,
    ) -> None:
        self._sharing, self._pool, self._lent = sharing, pool, lent
        self._now, self._late = horizon.now, horizon.late
        self._used = {firm: Course(holding.ends, horizon.late) for firm, holding in held.items()}
        self._reserved = {firm: Course(holding.reserved_ends, horizon.late) for firm, holding in held.items()}
        first = bisect_right(ends, horizon.late)
        self._ends = [*([horizon.late] if first else []), *ends[first:]]
        self._rises: list[datetime] = []  # when something planned starts
        self._lendable: dict[datetime, int] = {}  # as looked up so far
        for firm, holding in held.items():
            for work in holding.stopping:
                self.change(firm, work.qos, horizon.now, horizon.end_of(work), work.need)

    def change(self, firm: FirmId, qos: QoS, start: datetime, end: datetime, amount: int) -> None:
        """Plan (or, with a negative amount, stop) so much of a firm's use in `[start, end)`."""
        if start >= end:
            return
        quota, course = self._quota(firm), self._used.setdefault(firm, Course(_NONE, self._late))
        for moment in self._lendable:
            if start <= moment < end:
                used = course.at(moment)
                self._lendable[moment] += quota.shared(used) - quota.shared(used + amount)
        course.plan(start, end, amount)
        if qos is QoS.RESERVED:
            self._reserved.setdefault(firm, Course(_NONE, self._late)).plan(start, end, amount)
        if amount > 0 and start > self._now:
            insort(self._rises, start)
        insort(self._ends, end if amount > 0 else start)

    def holds(self, firm: FirmId, qos: QoS, need: int, start: datetime, end: datetime) -> bool:
        """Whether the firm may use so much more throughout `[start, end)`: promised, borrowed and lent together.

        Reserved work has the nominal quota and no more: what cannot be taken back is never borrowed.
        """
        quota = self._quota(firm)
        if self._left_at(firm, qos, quota, start) < need:
            return False
        return self._short(firm, qos, need, quota, start, end) is None

    def earliest(self, firm: FirmId, qos: QoS, need: int, seconds: int | None, not_before: datetime) -> datetime | None:
        """The first instant from which on the firm may use so much more for its time; None when no end brings it."""
        quota, time = self._quota(firm), None if seconds is None else timedelta(seconds=seconds)
        start, at = not_before, self._possible(firm, qos, need, not_before)
        if self._left_at(firm, qos, quota, start) < need:
            if at >= len(self._ends):
                return None
            start, at = self._ends[at], at + 1
        while start < FOREVER:
            short = self._short(firm, qos, need, quota, start, FOREVER if time is None else start + time)
            if short is None:
                return start
            at = max(at, bisect_right(self._ends, short))  # whatever begins before that lasts until then
            if at >= len(self._ends):
                return None
            start, at = self._ends[at], at + 1
        return None

    def moments(self, firm: FirmId, qos: QoS, need: int, after: datetime) -> Iterable[datetime]:
        """An instant and the ends after it, those left out at which what is needed cannot be there yet."""
        return [after, *self._ends[self._possible(firm, qos, need, after) :]]

    def _possible(self, firm: FirmId, qos: QoS, need: int, after: datetime) -> int:
        """The first of the ends after an instant at which it might be there, were nothing planned to start."""
        first = bisect_right(self._ends, after)
        if self._rises:
            return first
        low, high, quota = first, len(self._ends), self._quota(firm)
        while low < high:
            middle = (low + high) // 2
            if self._left_at(firm, qos, quota, self._ends[middle]) >= need:
                high = middle
            else:
                low = middle + 1
        return low

    def _short(
        self, firm: FirmId, qos: QoS, need: int, quota: Quota, start: datetime, end: datetime
    ) -> datetime | None:
        """The last instant of `[start, end)` at which it is not there; None: it always is."""
        for i in range(bisect_left(self._rises, end) - 1, bisect_right(self._rises, start) - 1, -1):
            if self._left_at(firm, qos, quota, self._rises[i]) < need:
                return self._rises[i]
        return start if self._left_at(firm, qos, quota, start) < need else None

    def _left_at(self, firm: FirmId, qos: QoS, quota: Quota, moment: datetime) -> int:
        used = self._used[firm].at(moment) if firm in self._used else 0
        left = min(quota.ceiling - used, max(0, quota.kept - used) + self._lendable_at(moment))
        if qos is QoS.RESERVED:
            reserved = self._reserved[firm].at(moment) if firm in self._reserved else 0
            left = min(left, quota.nominal - reserved)
        return left

    def _lendable_at(self, moment: datetime) -> int:
        if moment not in self._lendable:
            taken = sum(self._quota(firm).shared(course.at(moment)) for firm, course in self._used.items())
            self._lendable[moment] = self._lent - taken
        return self._lendable[moment]

    def _quota(self, firm: FirmId) -> Quota:
        return self._sharing.quota((firm, self._pool))


_NONE = Ends()
