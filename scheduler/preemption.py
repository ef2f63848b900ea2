"""Whose work may be stopped for whose: what was borrowed goes back to who is promised it. Named rules, no loops.

**Standing.** In each pool a firm's running work fills its nominal quota by class (reserved, standard, interruptible);
in a class by id, skipping what does not fit. What fits is *promised*, the rest is *borrowed*.

**Rules.** Waiting work that would be promised may stop borrowed work: `reclaim` of another firm of its tree, `yield` of
its own firm (a lower class gives way). Promised work of another firm is never touched, nor is reserved work, which
never borrows.

**Why it cannot loop.** Write down for each firm and pool how much is promised to its reserved, standard and
interruptible work, in that order. Stopping borrowed work changes no firm's line. Starting what it was stopped for
raises its own class in its firm's line and may lower only classes after it. So each round makes the lines larger in
dictionary order, and they are bounded: while quotas stay and nothing arrives or ends, the rounds come to an end.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.sharing import QuotaKey, Sharing
from scheduler.snapshot import Running, State, Waiting
from scheduler.vocabulary import WorkloadId

CLASS = {QoS.RESERVED: 0, QoS.STANDARD: 1, QoS.INTERRUPTIBLE: 2}
RECLAIM, YIELD, DRAIN, WINDOW = "reclaim", "yield", "drain", "window"


@dataclass(frozen=True, slots=True)
class Held:
    """What one workload has of a firm's quota."""

    id: WorkloadId
    qos: QoS
    need: int


def promised(works: Iterable[Held], nominal: int) -> set[WorkloadId]:
    """Which of a firm's works in a pool its nominal quota covers."""
    inside: set[WorkloadId] = set()
    for work in sorted(works, key=lambda w: (CLASS[w.qos], w.id)):
        if work.need <= nominal:
            nominal -= work.need
            inside.add(work.id)
    return inside


def room_left(works: Iterable[Held], qos: QoS, nominal: int) -> int:
    """How much of the nominal quota no work of this class or a better one has: up to this, waiting work is promised."""
    peers = [work for work in works if CLASS[work.qos] <= CLASS[qos]]
    inside = promised(peers, nominal)
    return nominal - sum(work.need for work in peers if work.id in inside)


def lost_milli_seconds(work: Running, *, now: datetime) -> int:
    """What stopping it throws away: thousandths of an accelerator × seconds of work done so far."""
    since = work.saved_at or work.since
    return 0 if since is None else work.need * max(0, int((now - since).total_seconds()))


@dataclass(slots=True)
class Standings:
    """What each firm holds in each pool while a cycle starts and stops work; who is promised and who borrows."""

    sharing: Sharing
    running: dict[QuotaKey, dict[WorkloadId, Running]] = field(
        default_factory=dict[QuotaKey, dict[WorkloadId, Running]]
    )
    held: dict[QuotaKey, dict[WorkloadId, Held]] = field(default_factory=dict[QuotaKey, dict[WorkloadId, Held]])
    _room: dict[tuple[QuotaKey, QoS], int] = field(default_factory=dict[tuple[QuotaKey, QoS], int])

    @classmethod
    def of(cls, state: State, sharing: Sharing) -> "Standings":
        """As things are: what has been told to stop counts no more."""
        standings = cls(sharing)
        for work in state.running.values():
            if not work.is_stopping:
                key = work.firm_id, work.placement.pool
                standings.running.setdefault(key, {})[work.id] = work
                standings._put(key, Held(work.id, work.qos, work.need))
        return standings

    def is_promised(self, workload: Waiting, pool: PoolName) -> bool:
        """Whether the firm's nominal quota would cover it beside its work of the same class or a better one."""
        key = workload.firm_id, pool
        if (key, workload.qos) not in self._room:
            nominal = self.sharing.quota(key).nominal
            self._room[key, workload.qos] = room_left(self.held.get(key, {}).values(), workload.qos, nominal)
        return workload.need <= self._room[key, workload.qos]

    def start(self, workload: Waiting, pool: PoolName) -> None:
        """It starts now, or as soon as what was stopped for it is gone."""
        self._put((workload.firm_id, pool), Held(workload.id, workload.qos, workload.need))

    def stop(self, work: Running) -> None:
        """It has been told to stop."""
        key = work.firm_id, work.placement.pool
        del self.running[key][work.id]
        del self.held[key][work.id]
        self._forget(key)

    def victims(self, workload: Waiting, pool: PoolName, *, now: datetime, minimum: timedelta) -> list[Running]:
        """What may be stopped for it: interruptible work first, then what loses the fewest accelerator-seconds."""
        own, root = (workload.firm_id, pool), self.sharing.root(workload.firm_id)
        found: list[Running] = []
        for firm in self._firms_of(workload.firm_id, pool):
            key = firm, pool
            works = self.held.get(key, {})
            if key == own:
                works = {**works, workload.id: Held(workload.id, workload.qos, workload.need)}
            assert self.sharing.root(firm) == root, "only firms of one tree lend to each other"
            inside = promised(works.values(), self.sharing.quota(key).nominal)
            found += [work for id, work in self.running.get(key, {}).items() if id not in inside]
        eligible = [w for w in found if w.qos is not QoS.RESERVED and (w.since is None or now - w.since >= minimum)]
        return sorted(eligible, key=lambda w: (-CLASS[w.qos], lost_milli_seconds(w, now=now), w.id))

    def _firms_of(self, firm_id: FirmId, pool: PoolName) -> Sequence[FirmId]:
        root = self.sharing.root(firm_id)
        using = {firm for firm, of in self.running if of == pool and self.sharing.root(firm) == root}
        return sorted(using)

    def _put(self, key: QuotaKey, held: Held) -> None:
        self.held.setdefault(key, {})[held.id] = held
        self._forget(key)

    def _forget(self, key: QuotaKey) -> None:
        for qos in QoS:
            self._room.pop((key, qos), None)
