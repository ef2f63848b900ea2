"""The platform's own decisions in virtual time: what would have happened to this work with these nodes and quotas.

Events (arrivals, ends, work that has gone after its grace) change the state; after each moment at which something
happened the cycle that runs in production decides (`cycle.decide`, with its checks of S1, S3 and S4). Work that is
stopped for others loses what it has done and waits again. Nothing here is random: the same scenario gives the same run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from heapq import heappop, heappush

from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.cycle import Policy, decide
from scheduler.index import follow, indexed
from scheduler.sharing import Member, Quota, QuotaKey, Seat
from scheduler.snapshot import Change, LatelySet, Node, Over, Placed, Queued, Running, State, Waiting
from scheduler.usage import Lately
from scheduler.vocabulary import Decision, NodeId, Preempt, Reject, Shape, Start, Wait, WaitReason, WorkloadId


@dataclass(frozen=True, slots=True)
class Arrival:
    """Work that is submitted at its `submitted_at` and really runs for `seconds`, whatever was expected."""

    workload: Waiting
    seconds: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a simulation starts from."""

    nodes: Mapping[NodeId, Node]
    quotas: Mapping[QuotaKey, Quota]
    tree: Mapping[Member, Seat]
    arrivals: Sequence[Arrival]
    half_life_seconds: int = 86_400
    rates: Mapping[tuple[PoolName, QoS], int] = field(default_factory=dict[tuple[PoolName, QoS], int])
    """Micro-yuan for an accelerator-hour; what is not there is free."""

    @property
    def mix(self) -> Counter[Shape]:
        """How many workers of each shape are asked for."""
        mix: Counter[Shape] = Counter()
        for arrival in self.arrivals:
            mix[arrival.workload.shape] += arrival.workload.workers
        return mix


@dataclass(frozen=True, slots=True)
class Life:
    """What became of one piece of work; None: it did not come to that."""

    arrival: Arrival
    started_at: datetime | None = None  # the last time
    pool: PoolName | None = None  # there
    ended_at: datetime | None = None
    evictions: int = 0
    lost_milli_seconds: int = 0

    @property
    def firm_id(self) -> FirmId:
        return self.arrival.workload.firm_id

    @property
    def milli_seconds(self) -> int:
        """Thousandths of an accelerator × seconds that counted in the end; 0 as long as it has not ended."""
        return self.arrival.workload.need * self.arrival.seconds if self.ended_at else 0

    @property
    def waited(self) -> float | None:
        """Seconds between submission and end in which it did not do what counted in the end."""
        if self.ended_at is None:
            return None
        return (self.ended_at - self.arrival.workload.submitted_at).total_seconds() - self.arrival.seconds

    @property
    def slowdown(self) -> float | None:
        """How many times longer it took than alone; work under ten seconds counts as ten (bounded slowdown)."""
        if self.waited is None:
            return None
        return max(1.0, (self.waited + self.arrival.seconds) / max(10, self.arrival.seconds))


@dataclass(frozen=True, slots=True)
class Moment:
    """How things stood after a decision."""

    at: datetime
    used_milli: int
    waiting: int


@dataclass(slots=True)
class Run:
    """A simulation and what came of it."""

    scenario: Scenario
    lives: dict[WorkloadId, Life] = field(default_factory=dict[WorkloadId, Life])
    moments: list[Moment] = field(default_factory=list[Moment])

    @property
    def capacity_milli(self) -> int:
        return sum(node.gpu_milli for node in self.scenario.nodes.values())


def simulate(scenario: Scenario, policy: Policy, *, pace_seconds: int = 1) -> Run:
    """Play the scenario to its end; at most one decision every `pace_seconds`."""
    return _Simulation(scenario, policy, timedelta(seconds=pace_seconds)).play()


class _Simulation:
    """Follows decisions as the world would; the state that the cycle keeps learns of it in the next one."""

    def __init__(self, scenario: Scenario, policy: Policy, pace: timedelta) -> None:
        self._policy, self._pace = policy, pace
        self._run = Run(scenario)
        self._state = State(nodes=scenario.nodes, quotas=scenario.quotas, tree=scenario.tree)
        self._changes: list[Change] = []  # since the last decision
        self._waiting: dict[WorkloadId, Waiting] = {}
        self._running: dict[WorkloadId, Running] = {}
        self._used_milli = 0
        self._lately = Lately(scenario.half_life_seconds)
        self._looks: set[datetime] = set()  # when somebody looks although nothing happens
        self._events: list[tuple[datetime, str, WorkloadId, int]] = []  # when, what, to whom, in which try
        self._tries: dict[WorkloadId, int] = {}
        for arrival in scenario.arrivals:
            work = arrival.workload
            self._run.lives[work.id] = Life(arrival)
            heappush(self._events, (work.submitted_at, "arrives", work.id, 0))

    def play(self) -> Run:
        """Events until there are no more. Where nothing waits there is nothing to decide."""
        earliest = None
        while self._events:
            now = self._events[0][0] if earliest is None else max(earliest, self._events[0][0])
            happened = False
            while self._events and self._events[0][0] <= now:
                happened |= self._happens(*heappop(self._events))
            if happened and self._waiting:
                self._decide(now)
            if happened:
                self._run.moments.append(Moment(now, self._used_milli, len(self._waiting)))
            earliest = now + self._pace
        return self._run

    def _happens(self, at: datetime, what: str, id: WorkloadId, tried: int) -> bool:
        """Whether anything did: work that was stopped does not end any more."""
        if what == "looks":
            return True
        life, running = self._run.lives[id], self._running.get(id)
        if what == "arrives":
            self._queue(life.arrival.workload)
            return True
        if running is None or self._tries[id] != tried or (what == "ends" and running.is_stopping):
            return False
        seconds = at - (running.since or at)
        del self._running[id]
        self._used_milli -= running.need
        if what == "ends":
            self._lately.add((running.firm_id, running.placement.pool), running.need, seconds, now=at)
            self._run.lives[id] = replace(life, ended_at=at)
            self._changes.append(Over(id))
        else:
            lost = life.lost_milli_seconds + running.need * round(seconds.total_seconds())
            self._run.lives[id] = replace(life, started_at=None, evictions=life.evictions + 1, lost_milli_seconds=lost)
            self._queue(life.arrival.workload)
        return True

    def _queue(self, work: Waiting) -> None:
        self._waiting[work.id] = work
        self._changes.append(Queued(work))

    def _history(self, now: datetime) -> list[Change]:
        self._state, index = indexed(self._state)
        lately, known = self._lately.held(index.held, now=now), self._state.lately
        return [LatelySet(*key, milli) for key, milli in lately.items() if known.get(key, 0) != milli]

    def _decide(self, now: datetime) -> None:
        self._state = follow(self._state, self._changes)
        self._state, decisions = decide(self._state, self._history(now), self._policy, now=now)
        self._changes = [change for decision in decisions.made for change in self._follow(decision, now)]
        waits = [d.reason for d in decisions.made if isinstance(d, Wait)]
        if WaitReason.RECLAIM in (*waits, *(kind.reason for kind in decisions.kinds)):
            self._look_again(now)

    def _look_again(self, now: datetime) -> None:
        """When the next borrowed work is old enough to be stopped, which no event tells."""
        minimum = timedelta(seconds=self._policy.minimum_seconds)
        ripe = (work.since + minimum for work in self._running.values() if work.since)
        at = min((moment for moment in ripe if moment > now), default=None)
        if at is not None and at not in self._looks:
            self._looks.add(at)
            heappush(self._events, (at, "looks", WorkloadId(""), 0))

    def _follow(self, decision: Decision, now: datetime) -> list[Change]:
        """What a decision leads to in a world in which everything works."""
        id = decision.workload_id
        match decision:
            case Start(_, placement):
                work, life = self._waiting.pop(id), self._run.lives[id]
                self._tries[id] = self._tries.get(id, 0) + 1
                self._run.lives[id] = replace(life, started_at=now, pool=placement.pool)
                heappush(self._events, (now + timedelta(seconds=life.arrival.seconds), "ends", id, self._tries[id]))
                expected = None if work.seconds is None else now + timedelta(seconds=work.seconds)
                return [self._place(Running(id, work.firm_id, placement, expected, qos=work.qos, since=now))]
            case Preempt():
                gone = now + timedelta(seconds=max(1, self._policy.grace_seconds))
                heappush(self._events, (gone, "gone", id, self._tries[id]))
                self._used_milli -= self._running[id].need
                return [self._place(replace(self._running[id], is_stopping=True, ends_at=gone))]
            case Reject():
                del self._waiting[id]
                return [Over(id)]
            case Wait():
                return []

    def _place(self, running: Running) -> Change:
        self._running[running.id] = running
        self._used_milli += running.need
        return Placed(running)
