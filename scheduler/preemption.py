"""Whose work may be stopped for whose: what was borrowed goes back to who is promised it. Named rules, no loops.

**Standing.** In each pool a firm's running work fills its nominal quota by class (reserved, standard, interruptible);
in a class by id, skipping what does not fit. What fits is *promised*, the rest is *borrowed*.

**Rules.** Waiting work that would be promised may stop borrowed work: `reclaim` of another firm of its tree, `yield` of
its own firm (a lower class gives way, an equal never: a gang too wide for the quota is not stopped by the firm's next
job). Promised work of another firm is never touched, nor is reserved work, which never borrows.

**Why it cannot loop.** Write down for each firm and pool how much is promised to its reserved, standard and
interruptible work, in that order. Stopping borrowed work changes no firm's line. Starting what it was stopped for
raises its own class in its firm's line and may lower only classes after it. So each round makes the lines larger in
dictionary order, and they are bounded: while quotas stay and nothing arrives or ends, the rounds come to an end.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import merge
from operator import itemgetter
from typing import Protocol, TypeAlias

from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.sharing import Member, QuotaKey, Sharing
from scheduler.snapshot import Running, Waiting
from scheduler.vocabulary import StopRule, WorkloadId

CLASS = {QoS.RESERVED: 0, QoS.STANDARD: 1, QoS.INTERRUPTIBLE: 2}
TOLD: Mapping[StopRule, str] = {
    StopRule.RECLAIM: "it ran above its firm's own quota, and what it had borrowed goes back to who lent it",
    StopRule.YIELD: "it ran above its firm's own quota, and makes room for its firm's work of a better class",
    StopRule.DRAIN: "its node is closed and being emptied",
    StopRule.WINDOW: "its node is kept for maintenance or a reservation from now on",
}
"""What the owner of stopped work is told: of other firms no more than that they lend."""

Row: TypeAlias = tuple[int, WorkloadId, int]
"""What one workload has of a firm's quota: its class, its id, and how much."""
_Ranked: TypeAlias = tuple[tuple[int, int, WorkloadId], Running]


class Standing:
    """What one firm holds in one pool, best class first: which of it its nominal quota covers. A value."""

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self.rows = rows
        self._known: _Covered | None = None

    @classmethod
    def of(cls, works: Iterable[Running | Waiting]) -> "Standing":
        """Of this work."""
        return cls(sorted(_row(work) for work in works))

    def with_(self, work: Running | Waiting) -> "Standing":
        """With this work too."""
        rows = list(self.rows)
        insort(rows, _row(work))
        return Standing(rows)

    def without(self, work: Running | Waiting) -> "Standing":
        """Without this work."""
        rows = list(self.rows)
        del rows[bisect_left(rows, _row(work))]
        return Standing(rows)

    def promised(self, nominal: int) -> set[WorkloadId]:
        """What the nominal quota covers."""
        outside = set(self.borrowed(nominal))
        return {id for _, id, _ in self.rows if id not in outside}

    def borrowed(self, nominal: int) -> Sequence[WorkloadId]:
        """What it does not cover."""
        return self._covered(nominal).outside

    def room_left(self, qos: QoS, nominal: int) -> int:
        """How much of the nominal quota no work of this class or a better one has: so much is promised to more."""
        return self._covered(nominal).left_after[CLASS[qos]]

    def _covered(self, nominal: int) -> "_Covered":
        if self._known is None or self._known.nominal != nominal:
            left, outside, left_after = nominal, list[WorkloadId](), [nominal] * len(CLASS)
            for of, id, need in self.rows:
                if need > left:
                    outside.append(id)
                    continue
                left -= need
                if left_after[of] != left:
                    left_after[of:] = [left] * (len(CLASS) - of)
            self._known = _Covered(nominal, outside, left_after)
        return self._known


@dataclass(frozen=True, slots=True)
class _Covered:
    """What a nominal quota does not cover, and what is left of it after each class."""

    nominal: int
    outside: list[WorkloadId]
    left_after: list[int]


class Held(Protocol):
    """A firm's running work in a pool, as `usage.py` keeps it."""

    @property
    def works(self) -> Mapping[WorkloadId, Running]: ...
    @property
    def standing(self) -> Standing: ...  # of what has not been told to stop


def _row(work: Running | Waiting) -> Row:
    return CLASS[work.qos], work.id, work.need


def lost_milli_seconds(work: Running, *, now: datetime) -> int:
    """What stopping it throws away: thousandths of an accelerator × seconds of work done so far."""
    since = work.saved_at or work.since
    return 0 if since is None else work.need * max(0, int((now - since).total_seconds()))


@dataclass(frozen=True, slots=True)
class Age:
    """How old work has to be to be stopped for other work."""

    now: datetime
    minimum: timedelta

    def allows(self, work: Running) -> bool:
        """Reserved work is never stopped for others."""
        return work.qos is not QoS.RESERVED and (work.since is None or self.now - work.since >= self.minimum)


class Standings:
    """Who is promised what and who borrows, while a cycle starts and stops work. What stops counts no more."""

    def __init__(self, sharing: Sharing, held: Mapping[QuotaKey, Held]) -> None:
        self._sharing, self._held = sharing, held
        self._changed: dict[QuotaKey, Standing] = {}
        self._borrowed: dict[tuple[Member, PoolName], list[_Ranked]] = {}
        self._borrowed_by: dict[QuotaKey, list[_Ranked]] = {}
        self._using: dict[tuple[Member, PoolName], list[FirmId]] | None = None

    def is_promised(self, workload: Waiting, pool: PoolName) -> bool:
        """Whether the firm's nominal quota would cover it beside its work of the same class or a better one."""
        return workload.need <= self.room_left((workload.firm_id, pool), workload.qos)

    def room_left(self, key: QuotaKey, qos: QoS) -> int:
        """Up to this much more would be promised to work of a class."""
        return self._of(key).room_left(qos, self._sharing.quota(key).nominal)

    def start(self, workload: Waiting, pool: PoolName) -> None:
        """It starts now, or as soon as what was stopped for it is gone."""
        key = workload.firm_id, pool
        self._change(key, self._of(key).with_(workload))

    def stop(self, work: Running) -> None:
        """It has been told to stop."""
        key = work.firm_id, work.placement.pool
        self._change(key, self._of(key).without(work))

    def victims(self, workload: Waiting, pool: PoolName, age: Age) -> Iterator[Running]:
        """What may be stopped for it: interruptible work first, then what loses the fewest accelerator-seconds."""
        own, of = (workload.firm_id, pool), CLASS[workload.qos]
        ranked: Iterable[_Ranked] = (one for one in self.borrowed(own, age) if one[1].firm_id != workload.firm_id)
        rows = self._of(own).rows
        if rows and rows[-1][0] > of:  # its own lower classes give way to it, its equals do not
            lower = (one for one in self._ranked(own, self._of(own).with_(workload), age) if CLASS[one[1].qos] > of)
            ranked = merge(ranked, lower, key=itemgetter(0))
        return (work for _, work in ranked)

    def borrowed(self, key: QuotaKey, age: Age) -> list[_Ranked]:
        """All that is borrowed in a pool by the firms of this firm's tree and old enough, what goes first in front."""
        tree = self._sharing.root(key[0]), key[1]
        if tree not in self._borrowed:
            firms = self._firms().get(tree, ())
            ranked = [self._borrowed_of((firm, key[1]), age) for firm in firms]
            self._borrowed[tree] = sorted((entry for of in ranked for entry in of), key=itemgetter(0))
        return self._borrowed[tree]

    def _borrowed_of(self, key: QuotaKey, age: Age) -> list[_Ranked]:
        if key not in self._borrowed_by:
            self._borrowed_by[key] = self._ranked(key, self._of(key), age)
        return self._borrowed_by[key]

    def _ranked(self, key: QuotaKey, standing: Standing, age: Age) -> list[_Ranked]:
        """What is borrowed and runs, as far as it may be stopped."""
        if key not in self._held:
            return []
        works = self._held[key].works  # what this cycle starts does not run yet
        outside = (works[id] for id in standing.borrowed(self._sharing.quota(key).nominal) if id in works)
        ranked = [((-CLASS[w.qos], lost_milli_seconds(w, now=age.now), w.id), w) for w in outside if age.allows(w)]
        return sorted(ranked, key=itemgetter(0))

    def _firms(self) -> Mapping[tuple[Member, PoolName], list[FirmId]]:
        if self._using is None:
            self._using = {}
            for firm, pool in sorted(self._held):
                self._using.setdefault((self._sharing.root(firm), pool), []).append(firm)
        return self._using

    def _of(self, key: QuotaKey) -> Standing:
        if key in self._changed:
            return self._changed[key]
        return self._held[key].standing if key in self._held else _NOTHING

    def _change(self, key: QuotaKey, standing: Standing) -> None:
        self._changed[key] = standing
        self._borrowed_by.pop(key, None)
        self._borrowed.pop((self._sharing.root(key[0]), key[1]), None)


_NOTHING = Standing()
