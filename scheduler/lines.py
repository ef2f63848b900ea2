"""What waits, in line: the work of a firm by kind, each kind in the order that its owner wants.

Work of one kind differs in place and duration only, so what keeps one of a kind from starting keeps the others behind
it too, and a decision need not look at each of them.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import inf
from typing import NamedTuple, TypeAlias

from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.preemption import CLASS
from scheduler.snapshot import Waiting
from scheduler.vocabulary import Shape, Spread

_NO_DEADLINE = datetime.max.replace(tzinfo=UTC)
Rank: TypeAlias = tuple[int, int, datetime, datetime, str]
Entry: TypeAlias = tuple[Rank, Waiting]


class Kind(NamedTuple):
    """What lets waiting work start, but its place in the line and its duration. What it reads only says where."""

    firm_id: FirmId
    pools: tuple[PoolName, ...]
    workers: int
    workers_min: int | None
    shape: Shape
    spread: Spread
    topology: str | None
    qos: QoS
    checkpoints: bool
    ranks: tuple[int, ...]


def kind_of(workload: Waiting) -> Kind:
    """The kind of waiting work."""
    return Kind(
        workload.firm_id, workload.pools, workload.workers, workload.workers_min, workload.shape, workload.spread,
        workload.topology, workload.qos, workload.checkpoints, workload.ranks,
    )  # fmt: skip


def rank(workload: Waiting) -> Rank:
    """Sort key inside a firm: what ranks lower is considered earlier."""
    latest = _NO_DEADLINE
    if workload.deadline is not None:
        latest = workload.deadline - timedelta(seconds=workload.seconds or 0)
    return CLASS[workload.qos], -workload.priority, latest, workload.submitted_at, workload.id


def duration(workload: Waiting) -> float:
    """Seconds; what nobody stops takes for ever."""
    return inf if workload.seconds is None else workload.seconds


def is_held(workload: Waiting, *, now: datetime) -> bool:
    """Whether it is not looked at yet: it backs off, or lacks money or a price."""
    return workload.held is not None and workload.held_until is not None and workload.held_until > now


class Lines:
    """Waiting work by kind, every kind in rank order. A value: `after` shares the lines that did not change."""

    def __init__(self, by_kind: Mapping[Kind, Sequence[Entry]], shortest: Mapping[Kind, Entry] | None = None) -> None:
        self.by_kind = by_kind
        self._shortest = dict(shortest or {})

    @classmethod
    def of(cls, waiting: Iterable[Waiting]) -> "Lines":
        """All of it in line."""
        by_kind: dict[Kind, list[Entry]] = {}
        for workload in waiting:
            by_kind.setdefault(kind_of(workload), []).append((rank(workload), workload))
        for line in by_kind.values():
            line.sort()
        return cls(by_kind)

    def after(self, gone: Sequence[Waiting], come: Sequence[Waiting]) -> "Lines":
        """The lines when this work has left them and that has joined."""
        if not gone and not come:
            return self
        by_kind, fresh = dict(self.by_kind), dict[Kind, list[Entry]]()

        def line(workload: Waiting) -> list[Entry]:
            kind = kind_of(workload)
            if kind not in fresh:
                by_kind[kind] = fresh[kind] = list(self.by_kind.get(kind, ()))
            return fresh[kind]

        for workload in gone:
            entries, entry = line(workload), (rank(workload),)
            del entries[bisect_left(entries, entry)]
        for workload in come:
            insort(line(workload), (rank(workload), workload))
        for kind, entries in fresh.items():
            if not entries:
                del by_kind[kind]
        return Lines(by_kind, {kind: entry for kind, entry in self._shortest.items() if kind not in fresh})

    def shortest(self, kind: Kind, *, since: int = 0) -> Entry:
        """Of a kind the work that takes least time, the last of it in line; `since`: how much of the line is past."""
        line = self.by_kind[kind]
        if kind not in self._shortest:
            self._shortest[kind] = _shortest(line)
        entry = self._shortest[kind]
        return entry if entry[0] >= line[since][0] else _shortest(line[since:])


def _shortest(line: Sequence[Entry]) -> Entry:
    return min(reversed(line), key=lambda entry: duration(entry[1]))
