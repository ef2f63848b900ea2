"""What the routes of jobs, files and nodes take and give."""

import hashlib
from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

from kit.patterns import Pattern
from kit.web import Body, View
from quotas.api import Pool
from quotas.vocabulary import QoS
from scheduler.node.protocol import plain_name
from scheduler.vocabulary import PRIORITY_MAX, PRIORITY_MIN, WORKERS_MAX, AfterRule, JobState, Spread, WaitReason

SECONDS_MAX = 31 * 86_400
MICRO_YUAN_MAX = 2**53
BYTES_MAX = 2**53
INPUTS_MAX = 100
GPUS_MAX = 64
CPUS_MAX, MEMORY_MIB_MAX = 1024, 1 << 24


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters are not allowed")
    return text


def _sensible(instant: datetime) -> datetime:
    if not 2000 <= instant.year < 3000:
        raise ValueError("a deadline is between the years 2000 and 3000")
    return instant


Line = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
Topology = Annotated[
    str,
    StringConstraints(max_length=40),
    Pattern(r"^[a-z][a-z0-9-]*$", "a topology label is a-z, 0-9 and '-', with a letter first", "rack"),
]
Id = Annotated[str, StringConstraints(max_length=64)]
FileName = Annotated[str, StringConstraints(max_length=512), AfterValidator(plain_name)]
Sha256 = Annotated[
    str,
    Pattern(r"^[0-9a-f]{64}$", "a SHA-256 is 64 of 0-9 and a-f", hashlib.sha256().hexdigest()),
]
FirmQuery = Annotated[str | None, Query(alias="firm_id", max_length=64, description="default: your own firm")]
Limit = Annotated[int, Query(ge=1, le=200)]
Before = Annotated[str | None, Query(max_length=64, description="continue an earlier page: its last id")]
Deadline = Annotated[
    AwareDatetime,
    AfterValidator(_sensible),
    Field(description="of your own jobs of one priority the one with the least time left goes first"),
]
Wait = Annotated[int, Query(alias="wait_seconds", ge=0, le=30, description="wait this long for something new")]


class InputIn(Body):
    name: FileName
    source_id: Id = Field(description="a complete upload (up_…) or an artifact (art_…)")


class QuoteIn(Body):
    firm_id: Id | None = None
    project_id: Id | None = None
    recipe: Line
    params: dict[str, Any] = {}
    inputs: Annotated[list[InputIn], Field(max_length=INPUTS_MAX)] = []
    pools: Annotated[
        list[Pool | Annotated[list[Pool], Field(min_length=1, max_length=10)]],
        Field(min_length=1, max_length=10, description="the first is liked best; those of an inner list equally"),
    ]
    workers: Annotated[int, Field(ge=1, le=WORKERS_MAX)] = 1
    workers_min: Annotated[
        int | None, Field(ge=1, le=WORKERS_MAX, description="start with what fits, from these up to `workers`")
    ] = None
    gpus: Annotated[
        float, Field(ge=0, le=GPUS_MAX, description="per worker: whole accelerators, a share of one below 1, or none")
    ] = 1
    cpus: Annotated[float, Field(ge=0, le=CPUS_MAX, description="per worker, kept for it; 0: what others leave")] = 0
    memory_mib: Annotated[int, Field(ge=0, le=MEMORY_MIB_MAX, description="per worker, kept for it")] = 0
    spread: Spread = Spread.SAME_CENTRE
    topology: Topology | None = Field(default=None, description="all workers on nodes alike in this, such as rack")
    qos: QoS = QoS.STANDARD
    priority: Annotated[int, Field(ge=PRIORITY_MIN, le=PRIORITY_MAX)] = 0
    max_runtime_seconds: Annotated[int, Field(ge=1, le=SECONDS_MAX)] | None = None
    deadline: Deadline | None = None
    name: Line | None = Field(default=None, description="default: the recipe's name; durations are learned by it")
    expected_seconds: Annotated[
        int | None, Field(ge=1, le=SECONDS_MAX, description="how long it will run, if you know; default: learned")
    ] = None


class WorkIn(QuoteIn):
    cap_micro_yuan: Annotated[
        int | None, Field(ge=1, le=MICRO_YUAN_MAX, description="it is stopped when it has spent this much")
    ] = None
    retries: Annotated[int, Field(ge=0, le=10, description="how often it is tried again after an error of its own")] = 0


class AfterIn(Body):
    id: Id = Field(description="a job (job_…) or an array (arr_…) of the same firm")
    rule: AfterRule = Field(default=AfterRule.OK, description="how it has to end; else this job is cancelled")


class AfterListIn(Body):
    after: Annotated[list[AfterIn], Field(min_length=1, max_length=32)]


class JobIn(WorkIn):
    after: Annotated[list[AfterIn], Field(max_length=32, description="run when these have ended")] = []
    quote_id: Id | None = Field(default=None, description="its maximum caps the charge")


class PriorityIn(Body):
    priority: Annotated[int, Field(ge=PRIORITY_MIN, le=PRIORITY_MAX)]


class OfferOut(View):
    pool: str
    tariff_id: str
    min_micro_yuan: int
    max_micro_yuan: int
    voucher_pays_min_micro_yuan: int
    voucher_pays_max_micro_yuan: int
    cash_min_micro_yuan: int
    cash_max_micro_yuan: int
    voucher_ids: list[str]
    explanation: list[str]
    affordable: bool


class QuoteOut(View):
    id: str
    project_id: str
    min_micro_yuan: int
    max_micro_yuan: int
    voucher_pays_max_micro_yuan: int
    cash_max_micro_yuan: int
    affordable: bool
    offers: list[OfferOut]
    expected_start: datetime | None
    expected_finish: datetime | None
    estimated: bool
    wait_reason: WaitReason | None
    wait_detail: str
    seconds_min: int
    expected_seconds: int
    max_runtime_seconds: int
    basis: str
    expires_at: datetime


class AttemptOut(View):
    id: str
    state: str
    pool: str
    nodes: list[str]
    devices: list[list[int]]
    placed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    cause: str | None
    message: str | None
    exit_code: int | None
    ran_ms: int | None
    kept_ms: int
    stop_message: str | None = Field(description="why it was told to stop, if it was")


class JobOut(View):
    id: str
    name: str
    firm_id: str
    project_id: str
    array_id: str | None
    array_index: int | None
    recipe: str | None
    params: dict[str, Any]
    pools: list[str]
    pool_ranks: list[int] | None = Field(description="pools of one rank are liked equally; null: in order")
    workers: int
    workers_min: int | None
    workers_max: int | None
    gpu_milli: int
    cpu_milli: int
    memory_mib: int
    spread: str
    topology: str | None
    need_milli: int
    qos: str
    priority: int
    state: JobState
    stopping: bool
    pausing: bool
    wait_reason: WaitReason | None
    wait_detail: str | None
    expected_start: datetime | None
    expected_finish: datetime | None
    estimated: bool
    progress: dict[str, Any] | None
    expected_seconds: int | None
    duration_basis: str | None
    max_runtime_seconds: int | None
    deadline: datetime | None
    retries: int
    quote_id: str | None
    cap_micro_yuan: int | None
    charged_micro_yuan: int
    lost_gpu_ms: int
    cause: str | None
    message: str | None
    submitted_by: str
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class CheckpointOut(View):
    step: int
    gpu_ms: int
    sha256: str
    size_bytes: int
    created_at: datetime


class AwaitedOut(View):
    id: str
    rule: AfterRule
    succeeded: bool | None


class JobDetailOut(JobOut):
    after: list[AwaitedOut]
    checkpoint: CheckpointOut | None
    attempts: list[AttemptOut]
    artifacts: list["ArtifactOut"]


class LogLineOut(View):
    cursor: str
    at: datetime
    text: str


class LogOut(View):
    lines: list[LogLineOut]
    cursor: str
    over: bool


class EventOut(View):
    cursor: str
    at: datetime
    topic: str
    body: dict[str, Any]


class EventsOut(View):
    events: list[EventOut]
    cursor: str
    over: bool


class UploadIn(Body):
    firm_id: Id | None = None
    project_id: Id | None = None
    name: FileName
    size_bytes: Annotated[int, Field(ge=0, le=BYTES_MAX)]
    sha256: Sha256


class UploadOut(View):
    id: str
    firm_id: str
    project_id: str
    name: str
    size_bytes: int
    received_bytes: int
    sha256: str
    state: str
    created_at: datetime
    expires_at: datetime


class ArtifactOut(View):
    id: str
    firm_id: str
    project_id: str
    workload_id: str
    name: str
    kind: str
    sha256: str
    size_bytes: int
    meta: dict[str, Any]
    created_at: datetime


class LinkOut(View):
    url: str
    expires_at: datetime


class NodeOut(View):
    id: str
    pool: str
    address: str
    resource: str
    devices_variable: str | None
    gpu_milli: int
    placed_milli: int
    cpu_milli: int
    placed_cpu_milli: int
    memory_mib: int
    placed_memory_mib: int
    topology: dict[str, str]
    state: str
    cordon_reason: str | None
    draining: bool
    last_seen_at: datetime


class PoolOut(View):
    name: str
    centre: str
    accelerator: str
    nodes: int
    gpu_milli: int
    placed_milli: int
    quota_milli: int | None
    used_milli: int


class CordonIn(Body):
    reason: Line
    drain: bool = False
    finish_by: AwareDatetime | None = Field(
        default=None, description="with drain: what will end by then runs on; without: everything is moved now"
    )
