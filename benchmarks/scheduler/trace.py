"""Nodes and tasks of the openb trace's format (Alibaba GPU-v2023), and arrivals drawn from them."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.units import MILLI_PER_GPU
from scheduler.rooms import Ints
from scheduler.traces import NODE_COLUMNS, TASK_COLUMNS, rows
from scheduler.vocabulary import Shape


@dataclass(frozen=True, slots=True)
class Task:
    """One task: its shape and the GPU models it accepts (empty: any)."""

    shape: Shape
    models: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Fleet:
    """N nodes, empty: CPU [N], memory [N], thousandths of each GPU [N, G] (0 where a node has fewer), model [N]."""

    cpu_milli: Ints
    memory_mib: Ints
    gpu_milli: Ints
    models: tuple[str, ...]

    @property
    def capacity(self) -> int:
        """GPU thousandths of all nodes."""
        return int(self.gpu_milli.sum())


def read_fleet(path: Path) -> Fleet:
    """Nodes of a CSV file. Raises InvalidInput that names the line."""
    nodes = list(rows(path, NODE_COLUMNS))
    counts = [node.count("gpu") for node in nodes]
    gpus = np.zeros((len(nodes), max(counts, default=0)), dtype=np.int64)
    for index, count in enumerate(counts):
        gpus[index, :count] = MILLI_PER_GPU
    return Fleet(
        np.array([node.count("cpu_milli") for node in nodes]),
        np.array([node.count("memory_mib") for node in nodes]),
        gpus,
        tuple(node.text("model") for node in nodes),
    )


def read_tasks(path: Path) -> list[Task]:
    """Tasks of a CSV file. Raises InvalidInput that names the line."""
    tasks: list[Task] = []
    for task in rows(path, TASK_COLUMNS):
        gpus = task.count("num_gpu")
        milli = task.count("gpu_milli") if gpus else 0
        shape = Shape(task.count("cpu_milli"), task.count("memory_mib"), gpus, milli)
        tasks.append(Task(shape, frozenset(task.text("gpu_spec").split("|")) - {""}))
    return tasks


def mix_of(tasks: list[Task]) -> Counter[Shape]:
    """How often each shape occurs."""
    return Counter(task.shape for task in tasks)


def arrivals(tasks: list[Task], capacity: int, *, load: float, rng: np.random.Generator) -> list[Task]:
    """All tasks in random order, then uniform draws with replacement until the next would pass `load` × capacity.

    The protocol of FGD (Weng et al., ATC'23), figure 9a.
    """
    sequence = [tasks[index] for index in rng.permutation(len(tasks))]
    demand = sum(task.shape.demand for task in sequence)
    while True:
        task = tasks[rng.integers(len(tasks))]
        demand += task.shape.demand
        if demand > load * capacity:
            return sequence
        sequence.append(task)
