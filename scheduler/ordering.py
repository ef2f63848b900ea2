"""Who comes first. Inside a firm its owner decides, between firms the city; ids break ties, never the order of rows.

Inside a firm: class (reserved, standard, interruptible), priority, the least time left before a deadline, age. A
priority says nothing to other firms, so no user can push another firm back.

Between firms, first all work within nominal quota: the firm that would have the smallest part of its quota in use goes
first, so one that submits thousands of jobs and one that submits a single one take turns. Then what has to borrow, by
weighted dominant share above nominal (Ghodsi et al., NSDI'11; Kueue's fair sharing) at each cohort from the top of the
tree down. A share counts what is held above nominal now, with the work before it in line (so a burst counts at once),
and what was held above nominal lately, with a half-life.

`Order` goes through the line while a cycle gives out places; `in_order` says the whole line as it stands, as if all of
it got a place.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import TypeAlias

from quotas.vocabulary import FirmId, PoolName
from scheduler.index import Index, indexed
from scheduler.lines import Kind, Lines, Rank, duration, is_held
from scheduler.preemption import Standings
from scheduler.sharing import Member, QuotaKey
from scheduler.snapshot import State, Waiting


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


def in_order(state: State) -> list[Turn]:
    """Waiting workloads, the one to be considered first in front, as if each got its place."""
    seen, index = indexed(state)
    order = Order(seen, index, Standings(index.sharing, index.held), strictly=True)
    turns: list[Turn] = []
    for turns_of in (order.promised(lambda _: False), order.borrowing()):
        for turn in turns_of:
            order.place(turn.workload, turn.pool, later=True)
            turns.append(turn)
    return turns


class Order:
    """The line of everybody, one turn after the other, as work before gets its place or does not.

    A firm's work is taken kind by kind: what is closed for a kind is closed for all of it that takes as long or
    longer, and is not looked at one by one. Only what gets a place counts in the shares of those behind it. `strictly`:
    promised is only what the quota covers beside everything before it.
    """

    def __init__(
        self, state: State, index: Index, standings: Standings, *, now: datetime | None = None, strictly: bool = False
    ) -> None:
        self._index, self._standings, self._now = index, standings, now
        self._shares = _Shares(state, index)
        self._lines: dict[FirmId, _FirmLine] = {}
        self._later: dict[QuotaKey, int] = {}
        self._closed: dict[Kind, float] = {}
        by_firm: dict[FirmId, list[Kind]] = {}
        for kind in index.lines.by_kind:
            by_firm.setdefault(kind.firm_id, []).append(kind)
        for firm, kinds in sorted(by_firm.items()):
            self._lines[firm] = _FirmLine(kinds, index.lines, self._closed, self._sleeps)
            self._lines[firm].is_behind = strictly

    def promised(self, fits: Callable[[Waiting], bool]) -> Iterator[Turn]:
        """What its firm's quota promises, the firm first that would use the smallest part of its quota.

        Behind work of its own firm that borrows and `fits` now it waits, unless the quota covers all before it too.
        """
        heap: list[tuple[float, datetime, str, FirmId]] = []
        for firm in self._lines:
            self._push_promised(heap, firm, fits)
        heapify(heap)
        while heap:
            *key, firm = heappop(heap)
            turn = self._promised_turn(firm, fits)
            if turn is None:
                continue
            now = turn.share, turn.workload.submitted_at, turn.workload.id
            if now != tuple(key) and heap and (*now, firm) > heap[0]:
                heappush(heap, (*now, firm))
                continue
            self._lines[firm].advance()
            yield turn
            self._push_promised(heap, firm, fits)

    def borrowing(self) -> Iterator[Turn]:
        """The rest: tree by tree, and in each the firm with the smallest share at each cohort on its way.

        A share only grows, so a key in a heap is at worst too small and is looked at again when it comes up.
        """
        trees: dict[Member, list[_Entry]] = {}
        for firm, line in self._lines.items():
            line.take_back()
            head = line.head()
            if head:
                trees.setdefault(self._index.sharing.root(firm), []).append((*self._shares.key(head), firm))
        tops: list[tuple[float, datetime, str, Member]] = []
        for root, heap in trees.items():
            heapify(heap)
            tops.append(self._top(root, heap))
        heapify(tops)
        while tops:
            root = heappop(tops)[-1]
            heap = trees[root]
            turn = self._next(heap)
            if turn:
                yield turn
                self._push(heap, turn.workload.firm_id)
            if heap:
                heappush(tops, self._top(root, heap))

    def place(self, workload: Waiting, pool: PoolName, *, later: bool) -> None:
        """It gets a place and counts for those behind it; `later`: the standings do not say so."""
        key = workload.firm_id, pool
        self._shares.count(*key, workload.need)
        if later:
            self._later[key] = self._later.get(key, 0) + workload.need

    def close(self, kind: Kind, seconds: float) -> None:
        """No work of a kind that takes so long or longer gets a turn any more."""
        self._closed[kind] = min(seconds, self._closed.get(kind, seconds))

    def open(self) -> Iterator[Kind]:
        """Kinds of which some may still get a turn."""
        return (kind for line in self._lines.values() for kind in line.open())

    def is_open(self, kind: Kind) -> bool:
        """Whether some of a kind may still get a turn."""
        return kind in self._lines[kind.firm_id].open()

    def best_case(self, kind: Kind) -> Waiting:
        """What of a kind has not had its turn, such that it starts wherever any of it does."""
        best = self._lines[kind.firm_id].shortest(kind)
        return best if best.workers_min is None else best.of(best.workers_least)

    def _sleeps(self, workload: Waiting) -> bool:
        return self._now is not None and is_held(workload, now=self._now)

    def _push_promised(
        self, heap: list[tuple[float, datetime, str, FirmId]], firm: FirmId, fits: Callable[[Waiting], bool]
    ) -> None:
        turn = self._promised_turn(firm, fits)
        if turn:
            heappush(heap, (turn.share, turn.workload.submitted_at, turn.workload.id, firm))

    def _promised_turn(self, firm: FirmId, fits: Callable[[Waiting], bool]) -> Turn | None:
        """The first of a firm's work that is promised; what does not count as promised is laid aside for later."""
        line = self._lines[firm]
        while (workload := line.head()) is not None:
            pool = next((pool for pool in workload.pools if self._is_promised(workload, pool, line)), None)
            if pool is not None:
                share = self._shares.part(workload, pool)
                return Turn(workload, pool, Standing.PROMISED, share)
            kind = line.lay_aside()
            if not line.is_behind and any(self._may_be_promised(other) for other in line.kinds() if other != kind):
                line.is_behind = fits(workload)
        return None

    def _is_promised(self, workload: Waiting, pool: PoolName, line: "_FirmLine") -> bool:
        room = self._standings.room_left((workload.firm_id, pool), workload.qos)
        if line.is_behind:
            room -= self._later.get((workload.firm_id, pool), 0)
        return workload.need <= room

    def _may_be_promised(self, kind: Kind) -> bool:
        need = kind.workers * kind.shape.counted_milli
        return any(need <= self._standings.room_left((kind.firm_id, pool), kind.qos) for pool in kind.pools)

    def _next(self, heap: "list[_Entry]") -> Turn | None:
        while heap:
            shares, *_, firm = heappop(heap)
            head = self._lines[firm].head()
            if head is None:
                continue
            key = self._shares.key(head)
            if key[0] > shares and heap and (*key, firm) > heap[0]:
                heappush(heap, (*key, firm))
                continue
            self._lines[firm].advance()
            return Turn(head, head.pools[0], Standing.BORROWS, key[0][-1])
        return None

    def _push(self, heap: "list[_Entry]", firm: FirmId) -> None:
        head = self._lines[firm].head()
        if head:
            heappush(heap, (*self._shares.key(head), firm))

    def _top(self, root: Member, heap: "list[_Entry]") -> tuple[float, datetime, str, Member]:
        """Trees lend nothing to each other: first comes the one that has borrowed less of what it lends."""
        _, submitted, id, _ = heap[0]
        return self._shares.of_tree(root), submitted, id, root


_Entry: TypeAlias = tuple[tuple[float, ...], datetime, str, FirmId]


class _FirmLine:
    """A firm's kinds by the rank of their first open work; those laid aside come back for borrowing."""

    def __init__(
        self,
        kinds: Iterable[Kind],
        lines: Lines,
        closed: Mapping[Kind, float],
        sleeps: Callable[[Waiting], bool],
    ) -> None:
        self.is_behind = False  # work of the firm that borrows comes before what follows
        self._by_kind, self._closed, self._sleeps = lines.by_kind, closed, sleeps
        self._shortest = lines.shortest
        self._at = dict.fromkeys(kinds, 0)
        self._heap = [(lines.by_kind[kind][0][0], kind) for kind in self._at]
        heapify(self._heap)
        self._aside: list[tuple[Rank, Kind]] = []

    def head(self) -> Waiting | None:
        """The first work that is open; None when there is none any more."""
        while self._heap:
            _, kind = self._heap[0]
            closed = self._closed.get(kind)
            if closed == 0:
                heappop(self._heap)
                continue
            workload = self._by_kind[kind][self._at[kind]][1]
            if (closed is None or duration(workload) < closed) and not self._sleeps(workload):
                return workload
            self.advance()
        return None

    def kinds(self) -> Iterable[Kind]:
        """Those that are still in line."""
        return (kind for _, kind in self._heap)

    def open(self) -> list[Kind]:
        """Those of which some may still get a turn, laid aside or not."""
        kinds = (kind for _, kind in (*self._heap, *self._aside))
        return [kind for kind in kinds if self._closed.get(kind) != 0]

    def shortest(self, kind: Kind) -> Waiting:
        """Of what is still in line of a kind the work that takes least time."""
        return self._shortest(kind, since=self._at[kind])[1]

    def advance(self) -> None:
        """The head has had its turn."""
        _, kind = heappop(self._heap)
        line, at = self._by_kind[kind], self._at[kind] + 1
        self._at[kind] = at
        if at < len(line):
            heappush(self._heap, (line[at][0], kind))

    def lay_aside(self) -> Kind:
        """The head's kind has to wait until borrowing begins."""
        entry = heappop(self._heap)
        self._aside.append(entry)
        return entry[1]

    def take_back(self) -> None:
        """What was laid aside is in line again."""
        for entry in self._aside:
            heappush(self._heap, entry)
        self._aside = []


class _Shares:
    """What firms and their cohorts hold above nominal of what their trees lend, growing as places are given out."""

    def __init__(self, state: State, index: Index) -> None:
        self._sharing = index.sharing
        self._used: dict[tuple[Member, PoolName], int] = {}
        self._nominal: dict[tuple[Member, PoolName], int] = {}
        self._lately: dict[tuple[Member, PoolName], int] = {}
        for (firm, pool), holding in index.held.items():
            self.count(firm, pool, holding.used)
        for (firm, pool), quota in state.quotas.items():
            for member in self._sharing.path(firm):
                self._nominal[member, pool] = self._nominal.get((member, pool), 0) + quota.nominal
        for (firm, pool), milli in state.lately.items():
            above = max(0, milli - self._sharing.quota((firm, pool)).nominal)
            for member in self._sharing.path(firm):
                self._lately[member, pool] = self._lately.get((member, pool), 0) + above
        self._pools = sorted({pool for _, pool in (*self._used, *self._nominal, *self._lately)})
        firms = {kind.firm_id for kind in index.lines.by_kind}
        self._depth = max((len(self._sharing.path(firm)) for firm in firms), default=0)

    def part(self, workload: Waiting, pool: PoolName) -> float:
        """The part of its firm's quota in use with it and what came before."""
        used = self._used.get((workload.firm_id, pool), 0) + workload.need
        return used / max(1, self._sharing.quota((workload.firm_id, pool)).nominal)

    def key(self, head: Waiting) -> tuple[tuple[float, ...], datetime, str]:
        """Shares below the top, where there is somebody to compare with; the top's would count the job's size alone."""
        path = self._sharing.path(head.firm_id)
        pool, need = head.pools[0], head.need
        shares = [self._share(path[0], member, pool, need) for member in path[1:] or path]
        shares += [shares[-1]] * (self._depth - len(shares))
        return tuple(shares), head.submitted_at, head.id

    def of_tree(self, root: Member) -> float:
        """Of what a tree lends, the part that is held above nominal, in the pool where that is largest."""
        return self._share(root, root, None, 0)

    def count(self, firm: FirmId, pool: PoolName, amount: int) -> None:
        """So much more is held, or has its place."""
        for member in self._sharing.path(firm):
            self._used[member, pool] = self._used.get((member, pool), 0) + amount

    def _share(self, root: Member, member: Member, pool: PoolName | None, more: int) -> float:
        """Of what its tree lends, the part that the member holds above nominal, in the pool where that is largest."""
        largest = 0.0
        for of in self._pools:
            used = self._used.get((member, of), 0) + (more if of == pool else 0)
            above = max(0, used - self._nominal.get((member, of), 0)) + self._lately.get((member, of), 0)
            if above:
                largest = max(largest, above / max(1, self._sharing.lent(root, of)))
        return largest / self._sharing.weight(member)
