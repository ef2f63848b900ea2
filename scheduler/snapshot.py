"""What a decision sees: nodes, quotas, waiting and running workloads, and the changes between two looks.

A state holds facts only. A decision becomes a fact when it has been recorded, and comes back as a change.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeAlias, assert_never

from kit.units import MILLI_PER_GPU, GpuMilli
from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.sharing import NO_QUOTA, Member, Quota, QuotaKey, Seat
from scheduler.vocabulary import NodeId, Placement, Shape, Spread, WaitReason, WorkloadId
from scheduler.windows import Window


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a node has that lets work begin sooner: files by their names there, models on its disk and in its memory."""

    files: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    warm: frozenset[str] = frozenset()


NOTHING = Holdings()


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a pool: so many accelerators of 1000 thousandths each, CPU and memory.

    Only an open node takes new work; a draining one also gives up what it runs. `topology` says where it stands:
    name → value, such as rack → r7.
    """

    id: NodeId
    pool: PoolName
    gpu_milli: GpuMilli
    is_open: bool = True
    is_draining: bool = False
    cpu_milli: int = 0
    memory_mib: int = 0
    topology: Mapping[str, str] = field(default_factory=dict[str, str])
    holds: Holdings = NOTHING

    @property
    def devices(self) -> int:
        """How many accelerators it has; their indexes count from 0."""
        return self.gpu_milli // MILLI_PER_GPU


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued workload: a gang of equal workers, all or none, in one of `pools` (first is liked best)."""

    id: WorkloadId
    firm_id: FirmId
    pools: tuple[PoolName, ...]
    workers: int
    gpu_milli: GpuMilli  # per worker: a share of one accelerator (under 1000), or whole ones; 0: none
    priority: int
    submitted_at: datetime
    seconds: int | None  # expected duration; None: until it is stopped
    held: WaitReason | None = None  # backoff, no_money, no_price: not looked at before held_until
    held_until: datetime | None = None
    qos: QoS = QoS.STANDARD
    deadline: datetime | None = None  # when its owner wants it to be over
    cpu_milli: int = 0  # per worker
    memory_mib: int = 0  # per worker
    spread: Spread = Spread.SAME_CENTRE
    topology: str | None = None  # all workers on nodes with one value of this label
    workers_min: int | None = None  # elastic: it may start with fewer workers, down to these
    checkpoints: bool = False  # it keeps what it has done: it may be stopped for a window and go on elsewhere
    model: str | None = None  # the base model it reads
    files: tuple[tuple[str, int], ...] = ()  # what else it reads: the names nodes keep it under, and bytes
    ranks: tuple[int, ...] = ()  # of its pools, rising; those of one rank are liked equally. None: all differ

    @property
    def shape(self) -> Shape:
        """What each worker needs."""
        return Shape.of(self.gpu_milli, self.cpu_milli, self.memory_mib)

    @property
    def tiers(self) -> tuple[tuple[PoolName, ...], ...]:
        """Its pools by how they are liked."""
        if not self.ranks:
            return tuple((pool,) for pool in self.pools)
        ranked = list(zip(self.ranks, self.pools, strict=True))
        return tuple(tuple(pool for of, pool in ranked if of == rank) for rank in sorted(set(self.ranks)))

    @property
    def workers_least(self) -> int:
        """The fewest workers it may start with."""
        return self.workers if self.workers_min is None else self.workers_min

    def of(self, workers: int) -> "Waiting":
        """The same work with so many workers, no more and no fewer."""
        return replace(self, workers=workers, workers_min=None)

    @property
    def need(self) -> int:
        """Accelerator thousandths of the whole gang, as quota counts them."""
        return self.workers * self.shape.counted_milli


@dataclass(frozen=True, slots=True)
class Running:
    """A placed workload, from placement until its attempt is over."""

    id: WorkloadId
    firm_id: FirmId
    placement: Placement
    ends_at: datetime | None  # expected; None: until it is stopped
    is_stopping: bool = False
    qos: QoS = QoS.STANDARD
    since: datetime | None = None  # None: it has not begun
    saved_at: datetime | None = None  # what it did before is in a checkpoint; what it does after would be lost

    @property
    def need(self) -> int:
        """Accelerator thousandths of the whole gang, as quota counts them."""
        return self.placement.need


@dataclass(frozen=True, slots=True)
class State:
    """Everything a decision may depend on. A workload is in `waiting` or in `running`, never in both.

    `lately` is what each firm held of each pool on average, in thousandths, the more recent the more it weighs.
    `rates` is what an accelerator of each pool costs now, in micro-yuan an hour.
    """

    nodes: Mapping[NodeId, Node] = field(default_factory=dict[NodeId, Node])
    waiting: Mapping[WorkloadId, Waiting] = field(default_factory=dict[WorkloadId, Waiting])
    running: Mapping[WorkloadId, Running] = field(default_factory=dict[WorkloadId, Running])
    quotas: Mapping[QuotaKey, Quota] = field(default_factory=dict[QuotaKey, Quota])
    tree: Mapping[Member, Seat] = field(default_factory=dict[Member, Seat])
    lately: Mapping[QuotaKey, int] = field(default_factory=dict[QuotaKey, int])
    windows: tuple[Window, ...] = ()
    rates: Mapping[PoolName, int] = field(default_factory=dict[PoolName, int])

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
    quota: Quota


@dataclass(frozen=True, slots=True)
class SeatSet:
    member: Member
    seat: Seat | None  # None: it stands in no tree any more


@dataclass(frozen=True, slots=True)
class LatelySet:
    firm_id: FirmId
    pool: PoolName
    milli: int


@dataclass(frozen=True, slots=True)
class WindowsSet:
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class RatesSet:
    rates: Mapping[PoolName, int]


Change: TypeAlias = (
    NodeSeen | NodeGone | Queued | Placed | Over | QuotaSet | SeatSet | LatelySet | WindowsSet | RatesSet
)


def apply(state: State, changes: Iterable[Change]) -> State:
    """The state after `changes`, in their order; `state` itself stays as it is."""
    nodes, waiting, running = dict(state.nodes), dict(state.waiting), dict(state.running)
    quotas, tree, lately, windows = dict(state.quotas), dict(state.tree), dict(state.lately), state.windows
    rates = state.rates
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
                quotas[firm_id, pool] = quota
            case SeatSet(member, seat):
                tree.pop(member, None)
                if seat is not None:
                    tree[member] = seat
            case LatelySet(firm_id, pool, milli):
                lately[firm_id, pool] = milli
            case WindowsSet(kept):
                windows = kept
            case RatesSet(valid):
                rates = valid
            case _:
                assert_never(change)
    return State(nodes, waiting, running, quotas, tree, lately, windows, rates)


def changes_between(before: State, after: State) -> list[Change]:
    """Changes that lead from `before` to `after`, so that a loaded snapshot can be fed to an incremental decision."""
    changes: list[Change] = [NodeGone(id) for id in before.nodes if id not in after.nodes]
    changes += [NodeSeen(node) for id, node in after.nodes.items() if before.nodes.get(id) != node]
    known = {**before.waiting, **before.running}
    changes += [Over(id) for id in known if id not in after.waiting and id not in after.running]
    changes += [Queued(w) for id, w in after.waiting.items() if before.waiting.get(id) != w or id in before.running]
    changes += [Placed(r) for id, r in after.running.items() if before.running.get(id) != r or id in before.waiting]
    quotas = dict.fromkeys(before.quotas, NO_QUOTA) | dict(after.quotas)
    changes += [QuotaSet(*key, value) for key, value in quotas.items() if before.quotas.get(key) != value]
    changes += [SeatSet(member, None) for member in before.tree if member not in after.tree]
    changes += [SeatSet(member, seat) for member, seat in after.tree.items() if before.tree.get(member) != seat]
    lately = dict.fromkeys(before.lately, 0) | dict(after.lately)
    changes += [LatelySet(*key, milli) for key, milli in lately.items() if before.lately.get(key) != milli]
    if before.windows != after.windows:
        changes.append(WindowsSet(after.windows))
    if before.rates != after.rates:
        changes.append(RatesSet(after.rates))
    return changes
