"""Where reality varies: what runs attempts on a cluster, and what says which nodes a cluster has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from scheduler.vocabulary import AttemptId, NodeId, Shape, WorkloadId


@dataclass(frozen=True, slots=True, repr=False)
class StartOrder:
    """Run this attempt's runner. It has no repr, so that the token cannot slip into a log line."""

    attempt_id: AttemptId
    workload_id: WorkloadId
    token: str
    node_id: NodeId  # of worker 0, where the runner runs
    resources: Mapping[str, float]  # what each worker takes of the cluster's own count, by the cluster's names
    workers: int

    def __repr__(self) -> str:
        return f"StartOrder({self.attempt_id} on {self.node_id})"


def cluster_resources(resource: str, shape: Shape) -> dict[str, float]:
    """What a worker takes of the cluster's own count: whole accelerators, CPU, and memory in bytes.

    Of a shared accelerator it takes nothing there: the cluster would choose one by itself, and refuse work that fits
    where its choices and ours have parted.
    """
    gpus = 0 if shape.is_share else shape.gpus
    wanted = {resource: gpus, "CPU": shape.cpu_milli / 1000, "memory": shape.memory_mib << 20}
    return {name: float(amount) for name, amount in wanted.items() if amount}


class RunnerState(StrEnum):
    """What a cluster knows of an attempt's runner."""

    UNKNOWN = "unknown"  # never heard of it, or forgotten with the head that knew it
    PENDING = "pending"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Observation:
    """Where an attempt's runner stands on the cluster; `message` is the cluster's own."""

    attempt_id: AttemptId
    state: RunnerState
    message: str = ""


class ClusterRuntime(Protocol):
    """Runs attempts. Every method may be repeated at will, and raises Unavailable when the cluster does not answer."""

    async def start(self, order: StartOrder) -> None:
        """Start the attempt's runner. An attempt that was started before is left as it is."""
        ...

    async def observe(self, attempts: Sequence[AttemptId]) -> list[Observation]:
        """One observation for each of `attempts`."""
        ...

    async def stop(self, attempt: AttemptId) -> bool:
        """End the attempt's runner. True once nothing of it runs any more, also when it was never known."""
        ...


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A live node as its cluster reports it; `labels` carry centre and accelerator."""

    id: NodeId
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]


class NodeDirectory(Protocol):
    """Knows the nodes of a cluster."""

    async def nodes(self) -> list[NodeReport]:
        """Nodes that are alive now. Raises Unavailable when the cluster does not answer."""
        ...
