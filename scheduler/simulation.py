"""The platform's own decisions in virtual time: what would have happened to this work with these nodes and quotas.

Events (arrivals, ends, work that has gone after its grace) change the state; after each moment at which something
happened the cycle that runs in production decides (`cycle.decide`, with its checks of S1, S3 and S4). Work that is
stopped for others loses what it has done and waits again. Nothing here is random: the same scenario gives the same run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from heapq import heappop, heappush

from quotas.vocabulary import FirmId
from scheduler.cycle import Policy, decide
from scheduler.sharing import Member, Quota, QuotaKey, Seat
from scheduler.snapshot import Change, LatelySet, Node, Over, Placed, Queued, Running, State, Waiting, apply
from scheduler.usage import Lately
from scheduler.vocabulary import Decision, NodeId, Preempt, Start, Wait, WaitReason, WorkloadId


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


@dataclass(frozen=True, slots=True)
class Life:
    """What became of one piece of work; None: it did not come to that."""

    arrival: Arrival
    started_at: datetime | None = None  # the last time
    ended_at: datetime | None = None
    cycles: int = 0  # how many looks at the queue it took to start the first time
    evictions: int = 0
    lost_milli_seconds: int = 0

    @property
    def firm_id(self) -> FirmId:
        return self.arrival.workload.firm_id

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
    def __init__(self, scenario: Scenario, policy: Policy, pace: timedelta) -> None:
        self._policy, self._pace = policy, pace
        self._run = Run(scenario)
        self._state = State(nodes=scenario.nodes, quotas=scenario.quotas, tree=scenario.tree)
        self._lately = Lately(scenario.half_life_seconds)
        self._events: list[tuple[datetime, str, WorkloadId, int]] = []  # when, what, to whom, in which try
        self._tries: dict[WorkloadId, int] = {}
        for arrival in scenario.arrivals:
            work = arrival.workload
            self._run.lives[work.id] = Life(arrival)
            heappush(self._events, (work.submitted_at, "arrives", work.id, 0))

    def play(self) -> Run:
        """Events until there are no more."""
        earliest = None
        while self._events:
            now = self._events[0][0] if earliest is None else max(earliest, self._events[0][0])
            changes: list[Change] = []
            while self._events and self._events[0][0] <= now:
                at, what, id, tried = heappop(self._events)
                changes += self._happens(at, what, id, tried)
            if changes:
                self._decide(changes, now)
            earliest = now + self._pace
        return self._run

    def _happens(self, at: datetime, what: str, id: WorkloadId, tried: int) -> list[Change]:
        life, running = self._run.lives[id], self._state.running.get(id)
        if what == "arrives":
            return [Queued(life.arrival.workload)]
        if what == "looks":
            return self._history(at)
        if running is None or self._tries[id] != tried:
            return []
        begun = running.since or at
        if what == "ends" and not running.is_stopping:
            self._lately.add((running.firm_id, running.placement.pool), running.need, at - begun, now=at)
            self._run.lives[id] = replace(life, ended_at=at)
            return [Over(id)]
        if what == "gone":
            lost = running.need * round((at - begun).total_seconds())
            evictions = life.evictions + 1
            lost += life.lost_milli_seconds
            self._run.lives[id] = replace(life, started_at=None, evictions=evictions, lost_milli_seconds=lost)
            return [Queued(life.arrival.workload)]
        return []

    def _history(self, now: datetime) -> list[Change]:
        lately = self._lately.held(self._state.running.values(), now=now)
        return [LatelySet(*key, milli) for key, milli in lately.items()]

    def _decide(self, changes: list[Change], now: datetime) -> None:
        self._state = apply(self._state, changes)
        for id in self._state.waiting:
            if id not in self._tries:
                life = self._run.lives[id]
                self._run.lives[id] = replace(life, cycles=life.cycles + 1)
        self._state, decisions = decide(self._state, self._history(now), self._policy, now=now)
        self._state = apply(self._state, [change for d in decisions for change in self._follow(d, now)])
        if any(isinstance(d, Wait) and d.reason is WaitReason.RECLAIM for d in decisions):
            waiting = next(iter(self._state.waiting))  # borrowed work grows old enough to be stopped without an event
            heappush(self._events, (now + timedelta(seconds=self._policy.minimum_seconds), "looks", waiting, 0))
        used = sum(work.need for work in self._state.running.values())
        self._run.moments.append(Moment(now, used, len(self._state.waiting)))

    def _follow(self, decision: Decision, now: datetime) -> list[Change]:
        """What a decision leads to in a world in which everything works."""
        id = decision.workload_id
        life = self._run.lives[id]
        match decision:
            case Start(_, placement):
                work = self._state.waiting[id]
                self._tries[id] = self._tries.get(id, 0) + 1
                self._run.lives[id] = replace(life, started_at=now)
                heappush(self._events, (now + timedelta(seconds=life.arrival.seconds), "ends", id, self._tries[id]))
                expected = None if work.seconds is None else now + timedelta(seconds=work.seconds)
                return [Placed(Running(id, work.firm_id, placement, expected, qos=work.qos, since=now))]
            case Preempt():
                gone = now + timedelta(seconds=max(1, self._policy.grace_seconds))
                heappush(self._events, (gone, "gone", id, self._tries[id]))
                return [Placed(replace(self._state.running[id], is_stopping=True, ends_at=gone))]
            case _:
                return []
