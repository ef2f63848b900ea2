"""Other mixes of the same cluster, made from the same tasks: as many of them, drawn with other weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.scheduler.trace import Task


@dataclass(frozen=True, slots=True)
class Weights:
    """How much more often a kind of task is drawn than in the trace."""

    shares: float = 1  # of one GPU
    gangs: float = 1  # two GPUs and more
    cpu_only: float = 1

    def of(self, task: Task) -> float:
        """The weight of a task; one whole GPU weighs 1."""
        if task.shape.is_share:
            return self.shares
        return self.gangs if task.shape.gpus > 1 else 1.0 if task.shape.gpus else self.cpu_only


MIXES: Mapping[str, Weights] = {
    "shares_x3": Weights(shares=3),
    "gangs_x10": Weights(gangs=10),
    "cpu_x4": Weights(cpu_only=4),
}
SEED = 130


def remixed(tasks: list[Task], weights: Weights) -> list[Task]:
    """As many tasks, drawn with replacement; the same ones every time."""
    part = np.array([weights.of(task) for task in tasks])
    drawn = np.random.default_rng(SEED).choice(len(tasks), len(tasks), p=part / part.sum())
    return [tasks[index] for index in drawn]
