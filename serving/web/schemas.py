"""What the routes of serving take and give."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from kit.patterns import Pattern
from kit.web import Body, View
from quotas.api import Pool
from quotas.vocabulary import QoS
from serving.counting import Verdict
from serving.naming import SLUG_RULE
from serving.vocabulary import (
    AdapterState,
    Capability,
    DeploymentKind,
    DeploymentState,
    LoadState,
    Modality,
    ReplicaState,
)

Slug = Annotated[str, Pattern(r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$", f"it is named by {SLUG_RULE}", "qwen-7b")]
Text120 = Annotated[str, Field(min_length=1, max_length=120)]
Source = Annotated[
    str,
    Field(max_length=200),
    Pattern(
        r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$",
        "a source is a folder of the models' folder, or a model of the hub with its owner",
        "Qwen/Qwen2.5-7B-Instruct",
    ),
]
Reference = Annotated[str, Field(min_length=1, max_length=64)]
Context = Annotated[int, Field(ge=64, le=1 << 21)]
GpuNeed = Annotated[int, Field(ge=1000, le=64_000, multiple_of=1000)]
Loras = Annotated[int, Field(ge=0, le=256)]
Count = Annotated[int, Field(ge=0, le=64)]
Tokens = Annotated[int, Field(ge=0, le=2**53)]
EngineKey = Annotated[str, Field(min_length=32, max_length=200, pattern=r"^[A-Za-z0-9_.~+/=-]+$")]
InFlight = Annotated[int, Field(ge=0, le=1_000_000)]


class ModelIn(Body):
    """A base model for the catalogue."""

    name: Slug
    display_name: Text120
    owner: Text120
    licence: Text120
    filing_number: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    modality: Modality = Modality.TEXT
    context_tokens: Context
    capabilities: Annotated[list[Capability], Field(min_length=1, max_length=5)]
    source: Source
    revision: Text120
    engine_arguments: Annotated[dict[str, bool | int | float | str], Field(max_length=32)] = {}
    gpu_milli: GpuNeed = 1000
    max_loras: Loras = 0


class ModelChange(Body):
    """What to change of a base model; what is left out stays."""

    display_name: Text120 = ""
    owner: Text120 = ""
    licence: Text120 = ""
    filing_number: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    context_tokens: Context = 64
    capabilities: Annotated[list[Capability], Field(min_length=1, max_length=5)] = [Capability.CHAT]
    source: Source = ""
    revision: Text120 = ""
    engine_arguments: Annotated[dict[str, bool | int | float | str], Field(max_length=32)] = {}
    gpu_milli: GpuNeed = 1000
    max_loras: Loras = 0
    deprecated_at: datetime | None = None
    retires_at: datetime | None = None


class ModelOut(View):
    """A base model. `replicas_ready` counts those that serve the caller."""

    name: str
    display_name: str
    owner: str
    licence: str
    filing_number: str | None
    modality: Modality
    context_tokens: int
    capabilities: list[Capability]
    source: str
    revision: str
    engine_arguments: dict[str, Any]
    gpu_milli: int
    max_loras: int
    deprecated_at: datetime | None
    retires_at: datetime | None
    created_at: datetime
    replicas_ready: int = 0


class AdapterIn(Body):
    """Register the adapter of a finished fine-tune job, under another name if the first was refused."""

    job_id: Reference
    name: Slug | None = None


class AdapterOut(View):
    """An adapter. `replicas_ready` counts the replicas that have it loaded."""

    id: str
    name: str
    firm_id: str
    project_id: str
    base_model: str
    base_revision: str
    rank: int
    sha256: str
    size_bytes: int
    job_id: str
    state: AdapterState
    reason: str | None
    last_used_at: datetime | None
    created_at: datetime
    replicas_ready: int = 0


class DeploymentIn(Body):
    """A model to serve with `replicas` replicas. `shared`: the platform pays; `dedicated`: your firm does."""

    model: Slug
    kind: DeploymentKind
    pool: Pool
    replicas: Count = 1
    replicas_min: Count = 0
    replicas_max: Count | None = None
    qos: QoS = QoS.STANDARD
    project_id: Reference | None = None


class ScaleIn(Body):
    """How many replicas there should be; what is left out stays."""

    replicas: Count | None = None
    replicas_min: Count | None = None
    replicas_max: Count | None = None


class DeploymentOut(View):
    """A deployment and how far it is. `blocked_reason` says why replicas are missing, and until when."""

    id: str
    model: str
    kind: DeploymentKind
    firm_id: str
    project_id: str
    pool: str
    qos: str
    replicas_min: int
    replicas: int
    replicas_max: int
    generation: int
    state: DeploymentState
    created_at: datetime
    replicas_ready: int = 0
    blocked_reason: str | None = None
    blocked_until: datetime | None = None


class LoadOut(View):
    """Where an adapter stands on a replica."""

    adapter_id: str
    state: LoadState
    reason: str | None


class ReplicaOut(View):
    """A replica. Neither its address nor its key is ever shown."""

    id: str
    deployment_id: str
    model: str
    workload_id: str | None
    generation: int
    state: ReplicaState
    reason: str | None
    requests_running: int
    requests_waiting: int
    created_at: datetime
    changed_at: datetime
    ready_at: datetime | None
    synced_at: datetime | None
    adapters: list[LoadOut] = []


class EngineLineOut(View):
    """Tokens one engine start counted, and tokens billed for it."""

    subject: str
    model: str
    counted_prompt: int
    counted_generation: int
    warmup_prompt: int
    warmup_generation: int
    billed_prompt: int
    billed_generation: int
    difference_prompt: int
    difference_generation: int
    verdict: Verdict


class LossOut(View):
    """What one engine start computed and nobody pays; the price is the list price, null where there was none."""

    engine_start: str
    model: str
    prompt_tokens: int
    generation_tokens: int
    micro_yuan: int | None
    booked_at: datetime
    changed_at: datetime


# --- the replica host's conversation ----------------------------------------------------------------------------------


class MetricsIn(Body):
    """An engine's counters since its start, and its load now."""

    prompt_tokens_total: Tokens
    generation_tokens_total: Tokens
    warmup_prompt_tokens: Tokens = 0
    warmup_generation_tokens: Tokens = 0
    requests_running: InFlight = 0
    requests_waiting: InFlight = 0
    kv_cache_usage_ppm: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class FailureIn(Body):
    """An adapter the engine would not load."""

    id: Reference
    why: Annotated[str, Field(max_length=2000)]


class SyncIn(Body):
    """`serving.vocabulary.SyncReport` at the edge."""

    state: ReplicaState
    engine_start: Annotated[str, Field(pattern=r"^eng_[0-9a-z]{8,40}$")] | None = None
    url: Annotated[str, Field(max_length=300)] | None = None
    engine_key: EngineKey | None = Field(default=None, repr=False)
    adapters_loading: Annotated[list[Reference], Field(max_length=1024)] = []
    adapters_loaded: Annotated[list[Reference], Field(max_length=1024)] = []
    adapters_failed: Annotated[list[FailureIn], Field(max_length=1024)] = []
    metrics: MetricsIn | None = None
    reason: Annotated[str, Field(max_length=2000)] | None = None


class OrderOut(View):
    """`serving.vocabulary.AdapterOrder`."""

    id: str
    lora_name: str
    url: str
    sha256: str
    bytes: int


class SyncOut(View):
    """`serving.vocabulary.SyncReply`."""

    command: str
    adapters: list[OrderOut]
    poll_seconds: float
