"""What a decision sees: nodes, quotas, waiting and running workloads, and the changes between two looks.

A state holds facts only. A decision becomes a fact when it has been recorded, and comes back as a change.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeAlias, assert_never

from kit.units import GpuMilli
from quotas.vocabulary import FirmId, PoolName
from scheduler.vocabulary import NodeId, Placement, WaitReason, WorkloadId


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a pool. Only an open node takes new work; a draining one also gives up what it runs."""

    id: NodeId
    pool: PoolName
    gpu_milli: GpuMilli
    is_open: bool = True
    is_draining: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued workload: a gang of equal workers, all or none, in one of `pools` (first is liked best)."""

    id: WorkloadId
    firm_id: FirmId
    pools: tuple[PoolName, ...]
    workers: int
    gpu_milli: GpuMilli  # per worker
    priority: int
    submitted_at: datetime
    seconds: int | None  # expected duration; None: until it is stopped
    held: WaitReason | None = None  # backoff, no_money, no_price: not looked at before held_until
    held_until: datetime | None = None

    @property
    def need(self) -> int:
        """Accelerator thousandths of the whole gang."""
        return self.workers * self.gpu_milli


@dataclass(frozen=True, slots=True)
class Running:
    """A placed workload, from placement until its attempt is over."""

    id: WorkloadId
    firm_id: FirmId
    placement: Placement
    ends_at: datetime | None  # expected; None: until it is stopped
    is_stopping: bool = False

    @property
    def need(self) -> int:
        """Accelerator thousandths of the whole gang."""
        return len(self.placement.nodes) * self.placement.gpu_milli


QuotaKey: TypeAlias = tuple[FirmId, PoolName]


@dataclass(frozen=True, slots=True)
class State:
    """Everything a decision may depend on. A workload is in `waiting` or in `running`, never in both."""

    nodes: Mapping[NodeId, Node] = field(default_factory=dict[NodeId, Node])
    waiting: Mapping[WorkloadId, Waiting] = field(default_factory=dict[WorkloadId, Waiting])
    running: Mapping[WorkloadId, Running] = field(default_factory=dict[WorkloadId, Running])
    nominal: Mapping[QuotaKey, GpuMilli] = field(default_factory=dict[QuotaKey, GpuMilli])

    def with_waiting(self, extra: Waiting) -> "State":
        """A copy in which `extra` waits too: for quotes and what-ifs."""
        return replace(self, waiting={**self.waiting, extra.id: extra})


@dataclass(frozen=True, slots=True)
class NodeSeen:
    node: Node


@dataclass(frozen=True, slots=True)
class NodeGone:
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Queued:
    workload: Waiting


@dataclass(frozen=True, slots=True)
class Placed:
    workload: Running


@dataclass(frozen=True, slots=True)
class Over:
    workload_id: WorkloadId


@dataclass(frozen=True, slots=True)
class QuotaSet:
    firm_id: FirmId
    pool: PoolName
    nominal: GpuMilli


Change: TypeAlias = NodeSeen | NodeGone | Queued | Placed | Over | QuotaSet


def apply(state: State, changes: Iterable[Change]) -> State:
    """The state after `changes`, in their order; `state` itself stays as it is."""
    nodes, waiting = dict(state.nodes), dict(state.waiting)
    running, nominal = dict(state.running), dict(state.nominal)
    for change in changes:
        match change:
            case NodeSeen(node):
                nodes[node.id] = node
            case NodeGone(node_id):
                nodes.pop(node_id, None)
            case Queued(queued):
                running.pop(queued.id, None)
                waiting[queued.id] = queued
            case Placed(placed):
                waiting.pop(placed.id, None)
                running[placed.id] = placed
            case Over(workload_id):
                waiting.pop(workload_id, None)
                running.pop(workload_id, None)
            case QuotaSet(firm_id, pool, quota):
                nominal[firm_id, pool] = quota
            case _:
                assert_never(change)
    return State(nodes, waiting, running, nominal)


def changes_between(before: State, after: State) -> list[Change]:
    """Changes that lead from `before` to `after`, so that a loaded snapshot can be fed to an incremental decision."""
    changes: list[Change] = [NodeGone(id) for id in before.nodes if id not in after.nodes]
    changes += [NodeSeen(node) for id, node in after.nodes.items() if before.nodes.get(id) != node]
    known = {**before.waiting, **before.running}
    changes += [Over(id) for id in known if id not in after.waiting and id not in after.running]
    changes += [Queued(w) for id, w in after.waiting.items() if before.waiting.get(id) != w or id in before.running]
    changes += [Placed(r) for id, r in after.running.items() if before.running.get(id) != r or id in before.waiting]
    quotas = {key: GpuMilli(0) for key in before.nominal} | dict(after.nominal)
    changes += [QuotaSet(*key, value) for key, value in quotas.items() if before.nominal.get(key) != value]
    return changes
