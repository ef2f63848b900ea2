"""What is in use: at this instant, kept up while a cycle starts work, and lately, with a half-life."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import accumulate
from math import log

import numpy as np

from quotas.vocabulary import PoolName, QoS
from scheduler.preemption import Standing
from scheduler.rooms import Ints
from scheduler.sharing import Member, QuotaKey, Sharing
from scheduler.snapshot import Running, Waiting
from scheduler.stretches import FOREVER
from scheduler.vocabulary import WorkloadId

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_UNKNOWN = -(1 << 62)


class Ends:
    """When running work is expected to end, in order, and how much comes back by then. A value."""

    def __init__(self, rows: Sequence[tuple[datetime, int]] = ()) -> None:
        self.rows = rows

    @cached_property
    def at(self) -> list[datetime]:
        return [end for end, _ in self.rows]

    @cached_property
    def given(self) -> list[int]:
        """Back after the first i of them."""
        return [0, *accumulate(amount for _, amount in self.rows)]

    def after(self, gone: Iterable[Running], come: Iterable[Running]) -> "Ends":
        """Without this work and with that."""
        rows = list(self.rows)
        for work in gone:
            del rows[bisect_left(rows, (work.ends_at or FOREVER, work.need))]
        for work in come:
            insort(rows, (work.ends_at or FOREVER, work.need))
        return Ends(rows)


@dataclass(frozen=True)
class Holding:
    """What one firm runs in one pool. What has been told to stop still holds its room, but stands for nothing."""

    works: Mapping[WorkloadId, Running] = field(default_factory=dict[WorkloadId, Running])
    used: int = 0  # thousandths
    reserved: int = 0  # of that by reserved work
    standing: Standing = field(default_factory=Standing)
    ends: Ends = field(default_factory=Ends)  # of what has not been told to stop
    reserved_ends: Ends = field(default_factory=Ends)
    stopping: tuple[Running, ...] = ()

    def expected_milli_seconds(self, at_most: int, *, now: datetime) -> float:
        """What it will have used in all, of each work no more than so many seconds."""
        since, ends, need = self._spans
        us = (now - _EPOCH) // _MICROSECOND
        started = np.where(since == _UNKNOWN, us, since)
        spans = np.maximum(ends, us) - started
        return float((np.clip(spans, 0, at_most * 1_000_000) // 1000 * need).sum()) / 1000

    @cached_property
    def _spans(self) -> tuple[Ints, Ints, Ints]:
        """Starts and expected ends in microseconds, and thousandths of each work."""
        moments = [
            [_UNKNOWN if at is None else (at - _EPOCH) // _MICROSECOND for at in (work.since, work.ends_at)]
            for work in self.works.values()
        ]
        table = np.array(moments, dtype=np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1], np.array([work.need for work in self.works.values()], dtype=np.int64)

    def after(self, gone: Sequence[Running], come: Sequence[Running]) -> "Holding":
        """When this work has gone and that has come."""
        works = dict(self.works)
        for work in gone:
            del works[work.id]
        works |= {work.id: work for work in come}
        left, stay = [w for w in gone if not w.is_stopping], [w for w in come if not w.is_stopping]
        standing = self.standing
        for work in left:
            standing = standing.without(work)
        for work in stay:
            standing = standing.with_(work)
        return Holding(
            works,
            self.used + sum(w.need for w in come) - sum(w.need for w in gone),
            self.reserved + sum(w.need for w in _reserved(come)) - sum(w.need for w in _reserved(gone)),
            standing,
            self.ends.after(left, stay),
            self.reserved_ends.after(_reserved(left), _reserved(stay)),
            tuple(sorted((work for work in works.values() if work.is_stopping), key=lambda work: work.id)),
        )


def holdings(running: Iterable[Running]) -> dict[QuotaKey, Holding]:
    """What every firm runs in every pool."""
    by_key: dict[QuotaKey, list[Running]] = {}
    for work in running:
        by_key.setdefault((work.firm_id, work.placement.pool), []).append(work)
    return {key: _holding(works) for key, works in by_key.items()}


def _holding(works: Sequence[Running]) -> Holding:
    stay = [work for work in works if not work.is_stopping]
    return Holding(
        {work.id: work for work in works},
        sum(work.need for work in works),
        sum(work.need for work in _reserved(works)),
        Standing.of(stay),
        Ends(sorted((work.ends_at or FOREVER, work.need) for work in stay)),
        Ends(sorted((work.ends_at or FOREVER, work.need) for work in _reserved(stay))),
        tuple(sorted((work for work in works if work.is_stopping), key=lambda work: work.id)),
    )


def _reserved(works: Iterable[Running]) -> list[Running]:
    return [work for work in works if work.qos is QoS.RESERVED]


class InUse:
    """What each firm uses at this instant, while a cycle starts work; the future has no part in it."""

    def __init__(self, held: Mapping[QuotaKey, Holding], sharing: Sharing) -> None:
        self._sharing = sharing
        self.used = {key: holding.used for key, holding in held.items()}
        self._reserved = {key: holding.reserved for key, holding in held.items() if holding.reserved}
        self._shared: dict[tuple[Member, PoolName], int] = {}
        for (firm, pool), used in self.used.items():
            tree = sharing.root(firm), pool
            self._shared[tree] = self._shared.get(tree, 0) + sharing.quota((firm, pool)).shared(used)

    def start(self, workload: Waiting, pool: PoolName) -> None:
        """It is placed there."""
        key, need = (workload.firm_id, pool), workload.need
        quota, used = self._sharing.quota(key), self.used.get(key, 0)
        tree = self._sharing.root(workload.firm_id), pool
        self._shared[tree] = self._shared.get(tree, 0) + quota.shared(used + need) - quota.shared(used)
        self.used[key] = used + need
        if workload.qos is QoS.RESERVED:
            self._reserved[key] = self._reserved.get(key, 0) + need

    def lent_left(self, key: QuotaKey) -> int:
        """What the firm's tree has left to lend; negative when quotas were lowered."""
        tree = self._sharing.root(key[0]), key[1]
        return self._sharing.lent(*tree) - self._shared.get(tree, 0)

    def quota_left(self, key: QuotaKey, qos: QoS) -> int:
        """How much more the firm may use for work of this class."""
        quota, used = self._sharing.quota(key), self.used.get(key, 0)
        left = min(quota.ceiling - used, max(0, quota.kept - used) + self.lent_left(key))
        return min(left, quota.nominal - self._reserved.get(key, 0)) if qos is QoS.RESERVED else left


@dataclass(slots=True)
class Lately:
    """What firms held of pools on average, each second weighing half as much a half-life later."""

    half_life_seconds: int
    _used: dict[QuotaKey, tuple[float, datetime]] = field(default_factory=dict[QuotaKey, tuple[float, datetime]])

    def add(self, key: QuotaKey, milli: int, time: timedelta, *, now: datetime) -> None:
        """So many thousandths were held for that long, until now."""
        self.keep(key, self._weighed(key, now) + milli * time.total_seconds(), as_of=now)

    def keep(self, key: QuotaKey, milli_seconds: float, *, as_of: datetime) -> None:
        """What it all weighed at an instant."""
        self._used[key] = (milli_seconds, as_of)

    def held(self, held: Mapping[QuotaKey, Holding], *, now: datetime) -> dict[QuotaKey, int]:
        """The average in thousandths, for each firm and pool.

        What runs counts from its start on with all it is expected to use, so that a burst does not come for free.
        """
        used = {key: self._weighed(key, now) for key in self._used}
        for key, holding in held.items():
            used[key] = used.get(key, 0.0) + holding.expected_milli_seconds(self.half_life_seconds, now=now)
        return {key: round(amount * log(2) / self.half_life_seconds) for key, amount in used.items()}

    def _weighed(self, key: QuotaKey, now: datetime) -> float:
        amount, as_of = self._used.get(key, (0.0, now))
        return amount * 0.5 ** (max(0.0, (now - as_of).total_seconds()) / self.half_life_seconds)
