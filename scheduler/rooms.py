"""What is free on the nodes of a pool: CPU, memory, thousandths of every accelerator, and whose shares lie on it.

Arrays over the N open nodes of the pool in id order, so that no answer depends on the order of rows. An accelerator
that is shared belongs to one firm until it is wholly free again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kit.units import MILLI_PER_GPU
from quotas.vocabulary import FirmId, PoolName
from scheduler.preferences import Shelves
from scheduler.snapshot import Node, Running
from scheduler.vocabulary import NodeId, Placement, Shape

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]
NOBODY = 0


@dataclass(frozen=True, slots=True)
class Rooms:
    """What is free on each of K candidate nodes: CPU [K], memory [K], and thousandths of every GPU [K, G]."""

    cpu_milli: Ints
    memory_mib: Ints
    gpu_milli: Ints


@dataclass(frozen=True, slots=True)
class Ground:
    """The open nodes of a pool, empty. `firms` numbers firms from 1 as they are met."""

    ids: tuple[NodeId, ...]
    index: Mapping[NodeId, int]
    rooms: Rooms
    topology: tuple[Mapping[str, str], ...]
    shelves: Shelves
    firms: dict[FirmId, int] = field(default_factory=dict[FirmId, int])

    @property
    def size_milli(self) -> int:
        """Thousandths of all accelerators."""
        return int(self.rooms.gpu_milli.sum())

    def number(self, firm: FirmId) -> int:
        """The firm's number."""
        return self.firms.setdefault(firm, len(self.firms) + 1)

    def empty(self) -> "Room":
        """All of it free."""
        gpus = self.rooms.gpu_milli
        return Room(self, self.rooms.cpu_milli.copy(), self.rooms.memory_mib.copy(), gpus.copy(), np.zeros_like(gpus))

    def empty_of(self, node: int) -> "Room":
        """All of one node free: a room of that node alone, in which it comes first."""
        one = self.rooms
        gpus = one.gpu_milli[[node]]
        return Room(self, one.cpu_milli[[node]], one.memory_mib[[node]], gpus, np.zeros_like(gpus))


@dataclass(slots=True)
class Room:
    """What is free of a ground: CPU [N], memory [N], thousandths of accelerators [N, G], and their firms [N, G]."""

    ground: Ground
    cpu_milli: Ints
    memory_mib: Ints
    gpu_milli: Ints
    firm: Ints

    def copy(self) -> "Room":
        """The same, to be changed apart."""
        arrays = (self.cpu_milli, self.memory_mib, self.gpu_milli, self.firm)
        return Room(self.ground, *(array.copy() for array in arrays))

    def of(self, node: int) -> "Room":
        """What is free of one node: a room of that node alone, to be changed apart."""
        row = [node]
        return Room(self.ground, self.cpu_milli[row], self.memory_mib[row], self.gpu_milli[row], self.firm[row])

    def without(self, nodes: Iterable[NodeId]) -> "Room":
        """The same with nothing free on these nodes."""
        rest = self.copy()
        closed = [self.ground.index[node] for node in nodes]
        rest.cpu_milli[closed], rest.memory_mib[closed], rest.gpu_milli[closed] = 0, 0, 0
        return rest

    def usable(self, firm: FirmId) -> Flags:
        """Which accelerators the firm may take a share of [N, G]: those nobody shares, and its own."""
        return (self.firm == NOBODY) | (self.firm == self.ground.number(firm))

    def take(self, node: int, devices: Sequence[int], shape: Shape, firm: FirmId) -> None:
        """One worker comes to a node."""
        self._move(node, devices, shape, -1)
        if shape.gpus:
            self.firm[node, list(devices)] = self.ground.number(firm)

    def give(self, node: int, devices: Sequence[int], shape: Shape) -> None:
        """One worker leaves a node."""
        self._move(node, devices, shape, +1)
        row = self.gpu_milli[node]
        self.firm[node, row >= self.ground.rooms.gpu_milli[node]] = NOBODY

    def _move(self, node: int, devices: Sequence[int], shape: Shape, sign: int) -> None:
        assert len(devices) == shape.gpus, "a placement names every accelerator"
        self.cpu_milli[node] += sign * shape.cpu_milli
        self.memory_mib[node] += sign * shape.memory_mib
        for device in devices:
            self.gpu_milli[node, device] += sign * shape.gpu_milli


def grounds(nodes: Iterable[Node]) -> dict[PoolName, Ground]:
    """The open nodes of every pool. Arrays are as wide as its largest node; what a node has not got is never free."""
    by_pool: dict[PoolName, list[Node]] = {}
    for node in nodes:
        if node.is_open:
            by_pool.setdefault(node.pool, []).append(node)
    return {pool: ground_of(found) for pool, found in by_pool.items()}


def ground_of(nodes: Sequence[Node]) -> Ground:
    """These nodes, in id order."""
    ordered = sorted(nodes, key=lambda node: node.id)
    gpus = np.zeros((len(ordered), max((node.devices for node in ordered), default=0)), dtype=np.int64)
    for i, node in enumerate(ordered):
        gpus[i, : node.devices] = MILLI_PER_GPU
    rooms = Rooms(
        np.array([node.cpu_milli for node in ordered], dtype=np.int64),
        np.array([node.memory_mib for node in ordered], dtype=np.int64),
        gpus,
    )
    ids = tuple(node.id for node in ordered)
    topology, shelves = tuple(node.topology for node in ordered), Shelves([node.holds for node in ordered])
    return Ground(ids, {id: i for i, id in enumerate(ids)}, rooms, topology, shelves)


def workers_of(placement: Placement, ground: Ground) -> Iterable[tuple[int, tuple[int, ...]]]:
    """(node, accelerators) of each worker that lies on this ground, as far as its nodes have these accelerators."""
    width = ground.rooms.gpu_milli.shape[1]
    devices = placement.devices or ((),) * len(placement.nodes)
    for id, of in zip(placement.nodes, devices, strict=True):
        node = ground.index.get(id)
        if node is not None and all(device < width for device in of):
            yield node, of


def occupied(ground: Ground, running: Iterable[Running]) -> Room:
    """What running work leaves free."""
    room = ground.empty()
    for work in running:
        for node, devices in workers_of(work.placement, ground):
            room.take(node, devices, work.placement.shape, work.firm_id)
    return room


def largest(nodes: Sequence[Node]) -> str:
    """The most that one of these nodes has of each, in words, and where they stand."""
    if not nodes:
        return "there is no node"
    gpus, cpus = max(node.devices for node in nodes), max(node.cpu_milli for node in nodes) / 1000
    memory = max(node.memory_mib for node in nodes) / 1024
    labels = sorted({label for node in nodes for label in node.topology})
    alike = f"; they say their {', '.join(labels)}" if labels else ""
    return f"of {len(nodes)} nodes the largest has {gpus} accelerators, {cpus:g} CPUs and {memory:.1f} GiB{alike}"
