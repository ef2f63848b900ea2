"""What a decision sees: nodes, quotas, waiting and running workloads, and the changes between two looks.

A state holds facts only. A decision becomes a fact when it has been recorded, and comes back as a change.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import TypeAlias, TypeVar, assert_never

from kit.units import MILLI_PER_GPU, GpuMilli
from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler.sharing import Member, Quota, QuotaKey, Seat
from scheduler.vocabulary import NodeId, Placement, Shape, Spread, WaitReason, WorkloadId
from scheduler.windows import Window


@dataclass(frozen=True, slots=True)
class Stock:
    """What a node has that lets work begin sooner: files by their names there, models on its disk and in its memory."""

    files: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    warm: frozenset[str] = frozenset()


NOTHING = Stock()


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
    holds: Stock = NOTHING

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
    shape: Shape = field(init=False, repr=False, compare=False)  # what each worker needs
    need: int = field(init=False, repr=False, compare=False)  # thousandths of the whole gang, as quota counts them

    def __post_init__(self) -> None:
        shape = Shape.of(self.gpu_milli, self.cpu_milli, self.memory_mib)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "need", self.workers * shape.counted_milli)

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
    index: object = field(default=None, compare=False, repr=False)
    """What `index.py` has worked out of exactly these facts, where somebody has."""


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
    quota: Quota | None  # None: it has none any more


@dataclass(frozen=True, slots=True)
class SeatSet:
    member: Member
    seat: Seat | None  # None: it stands in no tree any more


@dataclass(frozen=True, slots=True)
class LatelySet:
    firm_id: FirmId
    pool: PoolName
    milli: int | None


@dataclass(frozen=True, slots=True)
class WindowsSet:
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class RatesSet:
    rates: Mapping[PoolName, int]


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
Change: TypeAlias = (
    NodeSeen | NodeGone | Queued | Placed | Over | QuotaSet | SeatSet | LatelySet | WindowsSet | RatesSet
)


def apply(state: State, changes: Iterable[Change]) -> State:
    """The facts after `changes`, in their order; `state` itself stays as it is, and what did not change is shared."""
    facts = _Facts(state)
    for change in changes:
        match change:
            case NodeSeen(node):
                facts.nodes[node.id] = node
            case NodeGone(node_id):
                facts.nodes.pop(node_id, None)
            case Queued(queued):
                facts.leave(queued.id)
                facts.waiting[queued.id] = queued
            case Placed(placed):
                facts.leave(placed.id)
                facts.running[placed.id] = placed
            case Over(workload_id):
                facts.leave(workload_id)
            case QuotaSet(firm_id, pool, quota):
                _set(facts.quotas, (firm_id, pool), quota)
            case SeatSet(member, seat):
                _set(facts.tree, member, seat)
            case LatelySet(firm_id, pool, milli):
                _set(facts.lately, (firm_id, pool), milli)
            case WindowsSet(kept):
                facts.windows = kept
            case RatesSet(valid):
                facts.rates = valid
            case _:
                assert_never(change)
    return facts.state()


def _set(of: dict[_Key, _Value], key: _Key, value: _Value | None) -> None:
    if value is None:
        of.pop(key, None)
    else:
        of[key] = value


class _Facts:
    """The facts of a state, each kind of them copied when it is first changed."""

    def __init__(self, before: State) -> None:
        self._before, self.windows, self.rates = before, before.windows, before.rates

    @cached_property
    def nodes(self) -> dict[NodeId, Node]:
        return dict(self._before.nodes)

    @cached_property
    def waiting(self) -> dict[WorkloadId, Waiting]:
        return dict(self._before.waiting)

    @cached_property
    def running(self) -> dict[WorkloadId, Running]:
        return dict(self._before.running)

    @cached_property
    def quotas(self) -> dict[QuotaKey, Quota]:
        return dict(self._before.quotas)

    @cached_property
    def tree(self) -> dict[Member, Seat]:
        return dict(self._before.tree)

    @cached_property
    def lately(self) -> dict[QuotaKey, int]:
        return dict(self._before.lately)

    def leave(self, id: WorkloadId) -> None:
        """It neither waits nor runs any more."""
        if id in (self.waiting if "waiting" in self.__dict__ else self._before.waiting):
            del self.waiting[id]
        if id in (self.running if "running" in self.__dict__ else self._before.running):
            del self.running[id]

    def state(self) -> State:
        changed = {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
        return replace(self._before, index=None, **changed)


def changes_between(before: State, after: State) -> list[Change]:
    """Changes that lead from `before` to `after`, so that a loaded snapshot can be fed to an incremental decision."""
    changes: list[Change] = [NodeGone(id) for id in before.nodes if id not in after.nodes]
    changes += [NodeSeen(node) for id, node in after.nodes.items() if before.nodes.get(id) != node]
    known = {**before.waiting, **before.running}
    changes += [Over(id) for id in known if id not in after.waiting and id not in after.running]
    changes += [Queued(w) for id, w in after.waiting.items() if before.waiting.get(id) != w or id in before.running]
    changes += [Placed(r) for id, r in after.running.items() if before.running.get(id) != r or id in before.waiting]
    return [*changes, *terms_between(before, after)]


def terms_between(before: State, after: State) -> list[Change]:
    """The part of `changes_between` that is neither nodes nor work: quotas, tree, history, kept times."""
    changes: list[Change] = [QuotaSet(*key, value) for key, value in _differing(before.quotas, after.quotas)]
    changes += [SeatSet(member, seat) for member, seat in _differing(before.tree, after.tree)]
    changes += [LatelySet(*key, milli) for key, milli in _differing(before.lately, after.lately)]
    if before.windows != after.windows:
        changes.append(WindowsSet(after.windows))
    if before.rates != after.rates:
        changes.append(RatesSet(after.rates))
    return changes


def _differing(before: Mapping[_Key, _Value], after: Mapping[_Key, _Value]) -> Iterable[tuple[_Key, _Value | None]]:
    """What is another one afterwards; None: it is gone."""
    yield from ((key, None) for key in before if key not in after)
    yield from ((key, value) for key, value in after.items() if before.get(key) != value)
