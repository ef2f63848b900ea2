"""Nodes and tasks of the openb trace's format (Alibaba GPU-v2023), and arrivals drawn from them."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.errors import InvalidInput
from kit.units import MILLI_PER_GPU
from scheduler.rooms import Ints
from scheduler.vocabulary import Shape

NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
POD_COLUMNS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec")


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
    """Nodes of a CSV file. Raises InvalidInput when columns are missing."""
    rows = _rows(path, NODE_COLUMNS)
    counts = [int(row["gpu"]) for row in rows]
    gpus = np.zeros((len(rows), max(counts, default=0)), dtype=np.int64)
    for index, count in enumerate(counts):
        gpus[index, :count] = MILLI_PER_GPU
    return Fleet(
        np.array([int(row["cpu_milli"]) for row in rows]),
        np.array([int(row["memory_mib"]) for row in rows]),
        gpus,
        tuple(row["model"] for row in rows),
    )


def read_tasks(path: Path) -> list[Task]:
    """Tasks of a CSV file. Raises InvalidInput when columns are missing."""
    tasks: list[Task] = []
    for row in _rows(path, POD_COLUMNS):
        gpus = int(row["num_gpu"])
        shape = Shape(
            int(row["cpu_milli"]),
            int(row["memory_mib"]),
            gpus,
            int(row["gpu_milli"]) if gpus else 0,
        )
        tasks.append(Task(shape, frozenset(row["gpu_spec"].split("|")) - {""}))
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


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise InvalidInput(
                f"{path} has no column {', '.join(missing)}",
                hint="see benchmarks/README.md, traces",
            )
        return list(reader)
