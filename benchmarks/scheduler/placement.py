"""Placement under pressure: what share of the fleet's GPUs is allocated when arrivals reach 130 % of it.

Protocol of FGD (Weng et al., ATC'23), figure 9a: arrivals only, every task is placed if any node fits.
"""

from dataclasses import dataclass, field
from time import process_time

import numpy as np

from benchmarks.scheduler.policies import POLICIES, UNREPEATABLE
from benchmarks.scheduler.trace import Fleet, Task, arrivals, mix_of
from kit.units import MILLI_PER_GPU
from scheduler.placement import Policy, best_on_each, slots
from scheduler.rooms import Ints, Rooms

LOAD = 1.30
NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Outcome:
    """Mean allocated share of the GPUs over the arrivals whose sum rounds to 130 %, and processor seconds it took."""

    allocated: float
    seconds: float


@dataclass(slots=True)
class Scores:
    """What a policy last thought of every node for one kind of task: score [N], GPU [N], as of event `seen`."""

    score: Ints
    gpu: Ints
    seen: int = -1


@dataclass(slots=True)
class Cluster:
    """The nodes in the seed's fixed random order; `changed[n]` is the event that last touched node n."""

    rooms: Rooms
    models: tuple[str, ...]
    changed: Ints
    keeps_scores: bool
    scores: dict[Task, Scores] = field(default_factory=dict)

    @classmethod
    def of(cls, fleet: Fleet, order: Ints, *, keeps_scores: bool) -> "Cluster":
        """A fresh copy of the fleet, reordered."""
        rooms = Rooms(fleet.cpu_milli[order], fleet.memory_mib[order], fleet.gpu_milli[order])
        models = tuple(fleet.models[n] for n in order)
        return cls(rooms, models, np.zeros(len(order), dtype=np.int64), keeps_scores)

    def place(self, task: Task, policy: Policy, event: int) -> bool:
        """Put the task on the node the policy likes best; False when it fits nowhere."""
        scores = self._scored(task, policy, event)
        node = int(np.argmax(scores.score))
        if scores.score[node] == NEVER:
            return False
        shape, rooms = task.shape, self.rooms
        rooms.cpu_milli[node] -= shape.cpu_milli
        rooms.memory_mib[node] -= shape.memory_mib
        if shape.is_share:
            rooms.gpu_milli[node, scores.gpu[node]] -= shape.gpu_milli
        elif shape.gpus:
            rooms.gpu_milli[
                node,
                np.flatnonzero(rooms.gpu_milli[node] == MILLI_PER_GPU)[: shape.gpus],
            ] = 0
        assert rooms.gpu_milli[node].min() >= 0, "a placement cannot mint GPUs"
        self.changed[node] = event
        return True

    def _scored(self, task: Task, policy: Policy, event: int) -> Scores:
        """Scores of every node for this task; only nodes that changed since the last look are scored again."""
        scores = self.scores.get(task)
        if scores is None:
            size = len(self.changed)
            scores = self.scores[task] = Scores(np.full(size, NEVER), np.full(size, -1))
        known = self.keeps_scores and scores.seen >= 0
        stale = np.flatnonzero(self.changed >= scores.seen) if known else np.arange(len(self.changed))
        scores.seen = event
        scores.score[stale] = NEVER
        nodes = stale[self._fits(task, stale)]
        if len(nodes):
            scores.score[nodes], scores.gpu[nodes] = best_on_each(self.rooms, nodes, task.shape, policy)
        return scores

    def _fits(self, task: Task, nodes: Ints) -> np.ndarray:
        rooms = Rooms(self.rooms.cpu_milli[nodes], self.rooms.memory_mib[nodes], self.rooms.gpu_milli[nodes])
        fits = slots(rooms, task.shape) > 0
        if task.models:
            fits &= np.array([self.models[node] in task.models for node in nodes], dtype=bool)
        return fits


def run(fleet: Fleet, tasks: list[Task], policy: str, seed: int) -> Outcome:
    """One seed: arrivals up to 130 % of the fleet's GPUs."""
    rng = np.random.default_rng(seed)
    sequence = arrivals(tasks, fleet.capacity, load=LOAD, rng=rng)
    cluster = Cluster.of(
        fleet,
        rng.permutation(len(fleet.models)),
        keeps_scores=policy not in UNREPEATABLE,
    )
    started = process_time()
    scorer = POLICIES[policy](fleet, mix_of(tasks), rng)
    arrived = allocated = 0
    shares: list[float] = []
    for event, task in enumerate(sequence):
        arrived += task.shape.demand
        if cluster.place(task, scorer, event):
            allocated += task.shape.demand
        if round(100 * arrived / fleet.capacity) == round(100 * LOAD):
            shares.append(allocated / fleet.capacity)
    return Outcome(100 * float(np.mean(shares)), process_time() - started)
