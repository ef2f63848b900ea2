"""The words of scheduling: workloads, attempts, placements, decisions and their reasons. No library but our words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, NewType, TypeAlias

from kit.units import MILLI_PER_GPU, GpuMilli
from quotas.vocabulary import FirmId, PoolName, ProjectId, QoS

WorkloadId = NewType("WorkloadId", str)  # "job_…" or "rep_…"
AttemptId = NewType("AttemptId", str)  # "att_…"; also Ray's submission id
NodeId = NewType("NodeId", str)  # Ray's node id, hexadecimal
ArtifactId = NewType("ArtifactId", str)  # "art_…"
UploadId = NewType("UploadId", str)  # "up_…"
QuoteId = NewType("QuoteId", str)  # "quo_…"

JOBS_CHANNEL = "heliu_jobs"  # PostgreSQL NOTIFY; the payload is a workload id or "*"

PRIORITY_MIN, PRIORITY_MAX = -1000, 1000
WORKERS_MAX = 256

CPU_MILLI_PER_GPU, MEMORY_MIB_PER_GPU = 32_000, 256 << 10
"""CPU and memory that come with an accelerator; whoever takes more keeps that much of accelerators from others."""


class WorkloadKind(StrEnum):
    JOB = "job"  # ends by itself
    REPLICA = "replica"  # a model server: runs again after every end, until it is stopped


class JobState(StrEnum):
    """Where a workload stands; a replica uses the same states, and `cancelled` is how it ends."""

    BLOCKED = "blocked"  # waits for other jobs to end; not looked at before
    QUEUED = "queued"  # waits, with a reason
    STARTING = "starting"  # placed; the node prepares (free of charge)
    RUNNING = "running"  # its program runs; the paid clock ticks
    PAUSED = "paused"  # its owner laid it aside; it holds nothing and waits for nobody
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_J = JobState
JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    _J.BLOCKED: frozenset({_J.QUEUED, _J.PAUSED, _J.CANCELLED}),
    _J.QUEUED: frozenset(
        {_J.BLOCKED, _J.STARTING, _J.PAUSED, _J.FAILED, _J.CANCELLED}
    ),  # failed: rejected by a decision
    _J.STARTING: frozenset({_J.QUEUED, _J.RUNNING, _J.PAUSED, _J.SUCCEEDED, _J.FAILED, _J.CANCELLED}),
    _J.RUNNING: frozenset({_J.QUEUED, _J.PAUSED, _J.SUCCEEDED, _J.FAILED, _J.CANCELLED}),
    _J.PAUSED: frozenset({_J.BLOCKED, _J.QUEUED, _J.CANCELLED}),
    _J.SUCCEEDED: frozenset(),
    _J.FAILED: frozenset(),
    _J.CANCELLED: frozenset(),
}
JOB_OVER = frozenset({_J.SUCCEEDED, _J.FAILED, _J.CANCELLED})


class AttemptState(StrEnum):
    """Where one try stands. Only a claimed attempt can have had an effect on a node."""

    PLACED = "placed"  # recorded with its hold and placement; the runtime may or may not know it
    CLAIMED = "claimed"  # its runner fetched the plan and holds the lease
    RUNNING = "running"  # its program has started
    ENDED = "ended"


_A = AttemptState
ATTEMPT_TRANSITIONS: Mapping[AttemptState, frozenset[AttemptState]] = {
    _A.PLACED: frozenset({_A.CLAIMED, _A.ENDED}),
    _A.CLAIMED: frozenset({_A.RUNNING, _A.ENDED}),
    _A.RUNNING: frozenset({_A.ENDED}),
    _A.ENDED: frozenset(),
}


class EndCause(StrEnum):
    """Why an attempt is over; it decides who pays and whether another one follows."""

    DONE = "done"
    PROGRAM_ERROR = "program_error"  # the firm's program, data or parameters
    TIME_LIMIT = "time_limit"  # ran its maximum
    SETUP = "setup"  # the node could not prepare it
    NODE_LOST = "node_lost"  # the runtime lost it before it ran
    LEASE_LOST = "lease_lost"  # its runner fell silent
    EVICTED = "evicted"  # preempted or drained
    UNPAID = "unpaid"  # its money ran out while it ran
    CANCELLED = "cancelled"  # its owner said stop
    PAUSED = "paused"  # its owner laid it aside
    SPENDING_CAP = "spending_cap"  # it has spent what its owner allowed
    PLATFORM = "platform"  # something of ours broke while it ran

    @property
    def is_free(self) -> bool:
        """Whether the platform bears this attempt: nothing is charged for it."""
        return self in _FREE


_E = EndCause
_FREE = frozenset({_E.SETUP, _E.NODE_LOST, _E.LEASE_LOST, _E.EVICTED, _E.PLATFORM})


class WaitReason(StrEnum):
    """The rule that holds a waiting workload."""

    NEW = "new"
    NO_QUOTA = "no_quota"
    NOT_LENT = "not_lent"
    RECLAIM = "reclaim"
    NO_ROOM = "no_room"
    NO_NODE = "no_node"
    BEHIND = "behind"
    NO_MONEY = "no_money"
    NO_PRICE = "no_price"
    BACKOFF = "backoff"
    AFTER = "after"
    WINDOW = "window"

    @property
    def sentence(self) -> str:
        """What it means, for people."""
        return _SENTENCES[self]


_SENTENCES: Mapping[WaitReason, str] = {
    WaitReason.NEW: "It is new in the line and is looked at in the next cycle.",
    WaitReason.NO_QUOTA: "The firm's quota in this pool is taken by its own running work.",
    WaitReason.NOT_LENT: "It would have to borrow, and the firms of its cohort have nothing left to lend.",
    WaitReason.RECLAIM: "Others work on what its firm has lent; it is given back.",
    WaitReason.NO_ROOM: "The pool's nodes are busy: there is no room for all of its workers at once.",
    WaitReason.NO_NODE: "No node that is up and open for work could ever hold it in the pools it accepts.",
    WaitReason.BEHIND: "It would fit now, but starting it would delay work that comes before it.",
    WaitReason.NO_MONEY: "The firm's balance and vouchers do not cover its maximum price.",
    WaitReason.NO_PRICE: "The pool has no published price at this quality of service.",
    WaitReason.BACKOFF: "Its last attempt ended early; it is tried again after a pause.",
    WaitReason.AFTER: "It is to run after other work, which is not over.",
    WaitReason.WINDOW: "It would run into a time for which the nodes that could take it are kept.",
}


class StopRule(StrEnum):
    """The rule by which a decision stops running work, to queue it again."""

    RECLAIM = "reclaim"  # what it borrowed goes back
    YIELD = "yield"  # its own firm's work of a better class needs the room
    DRAIN = "drain"
    WINDOW = "window"


class AfterRule(StrEnum):
    """How the work that a job waits for has to end; ended otherwise, the job is cancelled."""

    OK = "ok"  # with success
    ANY = "any"  # in whatever way
    FAILED = "failed"  # without success: for what cleans up


class RejectReason(StrEnum):
    """Why a workload can never run as it is."""

    UNKNOWN_POOL = "unknown_pool"
    TOO_LARGE = "too_large"
    NO_QUOTA = "no_quota"


class NodeState(StrEnum):
    READY = "ready"
    LOST = "lost"  # its cluster no longer lists it as alive


class Spread(StrEnum):
    """How the workers of a gang lie to each other."""

    SAME_CENTRE = "same_centre"  # always so: a gang lies in one pool, a pool in one centre
    SAME_NODE = "same_node"
    APART = "apart"  # each worker on a node of its own


@dataclass(frozen=True, slots=True)
class Shape:
    """What one worker needs. `gpu_milli` is per accelerator: a share (one, under 1000) or whole ones (1000 each)."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    gpu_milli: int
    counted_milli: GpuMilli = field(init=False, repr=False, compare=False)
    """Thousandths that quota, money and usage count: its accelerators, or what its CPU or memory keeps from others.

    Exactly `demand` as long as it takes no more CPU and memory than come with its accelerators.
    """

    def __post_init__(self) -> None:
        by_cpu = -(-self.cpu_milli * MILLI_PER_GPU // CPU_MILLI_PER_GPU)
        by_memory = -(-self.memory_mib * MILLI_PER_GPU // MEMORY_MIB_PER_GPU)
        object.__setattr__(self, "counted_milli", GpuMilli(max(self.demand, by_cpu, by_memory)))

    @classmethod
    def of(cls, gpu_milli: int, cpu_milli: int = 0, memory_mib: int = 0) -> "Shape":
        """From thousandths in all: under 1000 a share of one accelerator, from there on whole ones."""
        return _shape_of(gpu_milli, cpu_milli, memory_mib)

    @property
    def is_share(self) -> bool:
        """Whether it takes a part of one accelerator."""
        return self.gpus == 1 and self.gpu_milli < MILLI_PER_GPU

    @property
    def demand(self) -> int:
        """Accelerator thousandths in all."""
        return self.gpus * self.gpu_milli


@lru_cache(maxsize=4096)
def _shape_of(gpu_milli: int, cpu_milli: int, memory_mib: int) -> Shape:
    """There are few, and they are compared again and again."""
    if gpu_milli < MILLI_PER_GPU:
        return Shape(cpu_milli, memory_mib, int(gpu_milli > 0), gpu_milli)
    return Shape(cpu_milli, memory_mib, gpu_milli // MILLI_PER_GPU, MILLI_PER_GPU)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the node of the first worker scored, in thousandths of an accelerator, and the next best one, if any."""

    score: int
    second: NodeId | None = None
    second_score: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """A node's score in its parts: `total` and `packing` in thousandths of an accelerator, the others in [0, 1]."""

    node: NodeId
    total: int
    packing: int
    model: float
    data: float


@dataclass(frozen=True, slots=True)
class Told:
    """Why work starts where it does: its first node's score, the next best one's, and how its pool's price counts.

    `tariff` is None where no other pool is liked as much.
    """

    best: Score
    second: Score | None
    tariff: float | None


@dataclass(frozen=True, slots=True)
class Placement:
    """Which node each worker of a gang gets, and which of its accelerators, in worker order; a node may come twice."""

    pool: PoolName
    nodes: tuple[NodeId, ...]
    gpu_milli: GpuMilli  # per worker
    devices: tuple[tuple[int, ...], ...] = ()  # per worker: indexes of accelerators, one for a share
    cpu_milli: int = 0  # per worker
    memory_mib: int = 0  # per worker
    choice: Choice | None = field(default=None, compare=False)  # known while it is being decided
    shape: Shape = field(init=False, repr=False, compare=False)  # what each worker has
    need: int = field(init=False, repr=False, compare=False)  # thousandths of the whole gang, as quota counts them

    def __post_init__(self) -> None:
        shape = Shape.of(self.gpu_milli, self.cpu_milli, self.memory_mib)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "need", len(self.nodes) * shape.counted_milli)


@dataclass(frozen=True, slots=True)
class Start:
    """Admit it and run it there, now."""

    workload_id: WorkloadId
    placement: Placement
    told: Told | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Preempt:
    """Stop this running work with a grace period and queue it again. `by` is who needs its room."""

    workload_id: WorkloadId
    why: StopRule
    by: WorkloadId | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """It waits. `eta` is when it is expected to start, None when nothing known will let it start."""

    workload_id: WorkloadId
    reason: WaitReason
    detail: str
    eta: datetime | None
    estimated: bool = False  # beyond the timeline's reservations: a guess, not a plan


@dataclass(frozen=True, slots=True)
class Reject:
    """It can never run as it is."""

    workload_id: WorkloadId
    reason: RejectReason
    detail: str


Decision: TypeAlias = Start | Preempt | Wait | Reject


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What serving asks for: a program that runs until it is stopped. Asking twice with one `key` is one replica."""

    key: str  # unique in the firm; serving's replica id
    name: str
    firm_id: FirmId
    project_id: ProjectId
    pools: tuple[PoolName, ...]
    gpu_milli: GpuMilli
    program: str
    params: Mapping[str, Any]
    qos: QoS
    priority: int = 0
    workers: int = 1
    model: str | None = None  # the folder of the base model that it reads


@dataclass(frozen=True, slots=True)
class WorkloadStatus:
    """Where a workload stands, for serving."""

    id: WorkloadId
    kind: WorkloadKind
    state: JobState
    attempt_id: AttemptId | None  # the live attempt
    pool: PoolName | None
    wait_reason: WaitReason | None
    wait_detail: str | None
    eta: datetime | None
    failures: int  # attempts in a row that ended early
    last_cause: EndCause | None
    last_message: str | None
    stop_requested: bool


@dataclass(frozen=True, slots=True)
class AttemptIdentity:
    """Who a runner's token belongs to, while the attempt's fence holds."""

    attempt_id: AttemptId
    workload_id: WorkloadId
    kind: WorkloadKind
    firm_id: FirmId
    project_id: ProjectId
    fence: int
    stop_requested: bool


@dataclass(frozen=True, slots=True)
class ArtifactView:
    """A file a firm's work produced or a member uploaded, stored under its hash."""

    id: ArtifactId
    firm_id: FirmId
    project_id: ProjectId
    workload_id: WorkloadId
    attempt_id: AttemptId
    name: str
    kind: str  # adapter | results | file
    sha256: str
    size_bytes: int
    meta: Mapping[str, Any]
    created_at: datetime


def may_become(now: JobState, then: JobState) -> bool:
    """Whether a workload in state `now` may next be in `then`."""
    return then in JOB_TRANSITIONS[now]


def attempt_may_become(now: AttemptState, then: AttemptState) -> bool:
    """Whether an attempt in state `now` may next be in `then`."""
    return then in ATTEMPT_TRANSITIONS[now]
