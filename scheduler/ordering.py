"""Who comes first. Inside a firm its owner decides, between firms the city; ids break ties, never the order of rows.

Inside a firm: class (reserved, standard, interruptible), priority, the least time left before a deadline, age. A
priority says nothing to other firms, so no user can push another firm back.

Between firms, first all work within nominal quota: the firm that would have the smallest part of its quota in use goes
first, so one that submits thousands of jobs and one that submits a single one take turns. Then what has to borrow, by
weighted dominant share above nominal (Ghodsi et al., NSDI'11; Kueue's fair sharing) at each cohort from the top of the
tree down. A share counts what is held above nominal now, with the work before it in line (so a burst counts at once),
and what was held above nominal lately, with a half-life.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import TypeAlias

from quotas.vocabulary import FirmId, PoolName
from scheduler.preemption import CLASS, Standings
from scheduler.sharing import Member, Sharing
from scheduler.snapshot import State, Waiting

_NO_DEADLINE = datetime.max.replace(tzinfo=UTC)


class Standing(StrEnum):
    """On what its place in the queue rests."""

    PROMISED = "promised"  # within its firm's nominal quota
    BORROWS = "borrows"  # above it


@dataclass(frozen=True, slots=True)
class Turn:
    """A place in the queue. `share` is the part of its quota in use (promised), or the share above it (borrows)."""

    workload: Waiting
    pool: PoolName
    standing: Standing
    share: float


def rank(workload: Waiting) -> tuple[int, int, datetime, datetime, str]:
    """Sort key inside a firm: what ranks lower is considered earlier."""
    latest = _NO_DEADLINE
    if workload.deadline is not None:
        latest = workload.deadline - timedelta(seconds=workload.seconds or 0)
    return CLASS[workload.qos], -workload.priority, latest, workload.submitted_at, workload.id


def in_order(state: State, sharing: Sharing) -> list[Turn]:
    """Waiting workloads, the one to be considered first in front."""
    promised: dict[FirmId, list[tuple[Waiting, PoolName, float]]] = {}
    borrowing: dict[FirmId, list[tuple[Waiting, PoolName]]] = {}
    by_firm: dict[FirmId, list[Waiting]] = {}
    for workload in state.waiting.values():
        by_firm.setdefault(workload.firm_id, []).append(workload)
    standings, use = Standings.of(state, sharing), _use_of(state)
    for firm, works in by_firm.items():
        inside = {pool: use.get((firm, pool), 0) for pool in {pool for work in works for pool in work.pools}}
        for work in sorted(works, key=rank):
            pool = next((p for p in work.pools if standings.is_promised(work, p)), None)
            if pool is None:
                borrowing.setdefault(firm, []).append((work, work.pools[0]))
                continue
            standings.start(work, pool)
            inside[pool] += work.need
            part = inside[pool] / max(1, sharing.quota((firm, pool)).nominal)
            promised.setdefault(firm, []).append((work, pool, part))
    return [*_take_turns(promised), *_Borrowers(state, sharing).take_turns(borrowing)]


def _use_of(state: State) -> dict[tuple[FirmId, PoolName], int]:
    use: dict[tuple[FirmId, PoolName], int] = {}
    for work in state.running.values():
        key = work.firm_id, work.placement.pool
        use[key] = use.get(key, 0) + work.need
    return use


def _take_turns(queues: Mapping[FirmId, list[tuple[Waiting, PoolName, float]]]) -> Iterable[Turn]:
    """The heads of the firms' queues, again and again the one whose firm would use the smallest part of its quota."""

    def head(firm: FirmId, at: int) -> tuple[float, datetime, str, FirmId, int]:
        work, _, part = queues[firm][at]
        return part, work.submitted_at, work.id, firm, at

    heap = [head(firm, 0) for firm in queues]
    heapify(heap)
    while heap:
        *_, firm, at = heappop(heap)
        work, pool, part = queues[firm][at]
        yield Turn(work, pool, Standing.PROMISED, part)
        if at + 1 < len(queues[firm]):
            heappush(heap, head(firm, at + 1))


_Entry: TypeAlias = tuple[tuple[float, ...], datetime, str, FirmId, int]


class _Borrowers:
    """Shares above nominal, growing as the work before in line is counted."""

    def __init__(self, state: State, sharing: Sharing) -> None:
        self._sharing = sharing
        self._used: dict[tuple[Member, PoolName], int] = {}
        self._nominal: dict[tuple[Member, PoolName], int] = {}
        self._lately: dict[tuple[Member, PoolName], int] = {}
        for (firm, pool), amount in _use_of(state).items():
            self._count(firm, pool, amount)
        for (firm, pool), quota in state.quotas.items():
            for member in sharing.path(firm):
                self._nominal[member, pool] = self._nominal.get((member, pool), 0) + quota.nominal
        for (firm, pool), milli in state.lately.items():
            above = max(0, milli - sharing.quota((firm, pool)).nominal)
            for member in sharing.path(firm):
                self._lately[member, pool] = self._lately.get((member, pool), 0) + above
        self._pools = sorted({pool for _, pool in (*self._used, *self._nominal, *self._lately)})
        self._depth = max((len(sharing.path(work.firm_id)) for work in state.waiting.values()), default=0)

    def take_turns(self, queues: Mapping[FirmId, list[tuple[Waiting, PoolName]]]) -> Iterable[Turn]:
        """Tree by tree, and in each the head of the firm with the smallest share at each cohort on its way.

        A share only grows, so a key in a heap is at worst too small and is looked at again when it comes up.
        """
        trees: dict[Member, list[_Entry]] = {}
        for firm, works in queues.items():
            trees.setdefault(self._sharing.root(firm), []).append((*self._key(firm, works[0]), firm, 0))
        for heap in trees.values():
            heapify(heap)
        tops = [self._top(root, heap) for root, heap in trees.items()]
        heapify(tops)
        while tops:
            root = heappop(tops)[-1]
            heap = trees[root]
            yield self._next(heap, queues)
            if heap:
                heappush(tops, self._top(root, heap))

    def _next(self, heap: "list[_Entry]", queues: Mapping[FirmId, list[tuple[Waiting, PoolName]]]) -> Turn:
        while True:
            shares, _, _, firm, at = heappop(heap)
            work, pool = queues[firm][at]
            key = self._key(firm, (work, pool))
            if key[0] > shares:
                heappush(heap, (*key, firm, at))
                continue
            self._count(firm, pool, work.need)
            if at + 1 < len(queues[firm]):
                heappush(heap, (*self._key(firm, queues[firm][at + 1]), firm, at + 1))
            return Turn(work, pool, Standing.BORROWS, shares[-1])

    def _top(self, root: Member, heap: "list[_Entry]") -> tuple[float, datetime, str, Member]:
        """Trees lend nothing to each other: first comes the one that has borrowed less of what it lends."""
        _, submitted, id, _, _ = heap[0]
        of = self._pools[0] if self._pools else None
        return (0.0 if of is None else self._share(root, root, of, 0)), submitted, id, root

    def _key(self, firm: FirmId, head: tuple[Waiting, PoolName]) -> tuple[tuple[float, ...], datetime, str]:
        """Shares below the top, where there is somebody to compare with; the top's would count the job's size alone."""
        work, pool = head
        path = self._sharing.path(firm)
        shares = [self._share(path[0], member, pool, work.need) for member in path[1:] or path]
        shares += [shares[-1]] * (self._depth - len(shares))
        return tuple(shares), work.submitted_at, work.id

    def _share(self, root: Member, member: Member, pool: PoolName, more: int) -> float:
        """Of what its tree lends, the part that the member holds above nominal, in the pool where that is largest."""
        largest = 0.0
        for of in self._pools:
            used = self._used.get((member, of), 0) + (more if of == pool else 0)
            above = max(0, used - self._nominal.get((member, of), 0)) + self._lately.get((member, of), 0)
            if above:
                largest = max(largest, above / max(1, self._sharing.lent(root, of)))
        return largest / self._sharing.weight(member)

    def _count(self, firm: FirmId, pool: PoolName, amount: int) -> None:
        for member in self._sharing.path(firm):
            self._used[member, pool] = self._used.get((member, pool), 0) + amount
