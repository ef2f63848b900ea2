"""The words of serving: models, adapters, deployments, replicas, and what the gateway routes by. Stdlib only."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType, NotRequired, TypedDict

ModelName = NewType("ModelName", str)  # a slug, e.g. "smollm2-135m-instruct"; the same for every firm
AdapterId = NewType("AdapterId", str)  # "adp_…"; also the LoRA name inside the engine
DeploymentId = NewType("DeploymentId", str)  # "dep_…"
ReplicaId = NewType("ReplicaId", str)  # "rep_…"
EngineStartId = NewType("EngineStartId", str)  # "eng_…": one start of one engine process; its token counters begin at 0

ADAPTER_RANK_MAX = 16
REPLICA_PROGRAM = "serving.node.replica_host"
MAX_NUM_SEQS = 64  # sequences an engine batches where its catalogue entry does not say
REPLICAS_CHANNEL = "heliu_replicas"  # PostgreSQL NOTIFY; the payload is a replica id or "*"


class Capability(StrEnum):
    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    TOOLS = "tools"
    VISION = "vision"


class Modality(StrEnum):
    TEXT = "text"
    IMAGE_TEXT = "image_text"
    EMBEDDING = "embedding"


class DeploymentKind(StrEnum):
    SHARED = "shared"  # the platform pays the GPU time, callers pay for tokens
    DEDICATED = "dedicated"  # its firm pays the GPU time, its tokens are metered at price zero


class DeploymentState(StrEnum):
    ACTIVE = "active"
    STOPPED = "stopped"


class ReplicaState(StrEnum):
    PENDING = "pending"  # its workload waits in the queue, or waits to be placed again
    STARTING = "starting"  # the engine loads the model
    WARMING = "warming"  # the engine answers; a real token and the first adapters are under way
    READY = "ready"
    DRAINING = "draining"  # takes no new request, finishes those it has
    GONE = "gone"
    FAILED = "failed"


class AdapterState(StrEnum):
    ACTIVE = "active"
    REFUSED = "refused"  # its files did not pass; `reason` says why
    RETIRING = "retiring"  # deleted by its firm; replicas are unloading it
    DELETED = "deleted"


class LoadState(StrEnum):
    """Where one adapter stands on one replica."""

    PENDING = "pending"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"  # not wanted here any more; requests with it are finishing
    FAILED = "failed"


class ReplicaCommand(StrEnum):
    RUN = "run"
    DRAIN = "drain"
    STOP = "stop"


_S = ReplicaState
REPLICA_TRANSITIONS: Mapping[ReplicaState, frozenset[ReplicaState]] = {
    # An engine that restarts goes back to starting; an attempt that was lost goes back to pending.
    _S.PENDING: frozenset({_S.STARTING, _S.DRAINING, _S.GONE, _S.FAILED}),
    _S.STARTING: frozenset({_S.PENDING, _S.WARMING, _S.DRAINING, _S.GONE, _S.FAILED}),
    _S.WARMING: frozenset({_S.PENDING, _S.STARTING, _S.READY, _S.DRAINING, _S.GONE, _S.FAILED}),
    _S.READY: frozenset({_S.PENDING, _S.STARTING, _S.DRAINING, _S.GONE, _S.FAILED}),
    _S.DRAINING: frozenset({_S.GONE, _S.FAILED}),
    _S.GONE: frozenset(),
    _S.FAILED: frozenset(),
}
REPLICA_OVER = frozenset({ReplicaState.GONE, ReplicaState.FAILED})


def may_become(now: ReplicaState, then: ReplicaState) -> bool:
    """Whether a replica in state `now` may next be in state `then`; staying as it is always may."""
    return now is then or then in REPLICA_TRANSITIONS[now]


@dataclass(frozen=True, slots=True)
class Model:
    """A base model of the catalogue."""

    name: ModelName
    display_name: str
    owner: str
    licence: str
    filing_number: str | None  # 备案号
    modality: Modality
    context_tokens: int
    capabilities: frozenset[Capability]
    source: str  # folder under <home>/models, made by prepare_model, or a hub's model name
    revision: str
    engine_arguments: Mapping[str, Any]  # checked against serving.engine_arguments
    gpu_milli: int  # per replica
    max_loras: int  # adapters a replica of it keeps loaded; 0: it takes none
    deprecated_at: datetime | None
    retires_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA on a base model, owned by one firm; `sha256` of its safetensors file is its identity."""

    id: AdapterId
    name: str
    firm_id: str
    project_id: str
    base_model: ModelName
    base_revision: str
    rank: int
    sha256: str
    size_bytes: int
    job_id: str
    state: AdapterState
    reason: str | None
    last_used_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model served by a fixed number of replicas within `[replicas_min, replicas_max]`."""

    id: DeploymentId
    model: ModelName
    kind: DeploymentKind
    firm_id: str  # who pays the GPU time: the platform's firm when shared
    project_id: str
    pool: str
    qos: str
    replicas_min: int
    replicas: int
    replicas_max: int
    generation: int  # grows with every change that needs new replicas
    state: DeploymentState
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine of a deployment, as a workload. Its engine key is not here: only `api.route_table` reads it."""

    id: ReplicaId
    deployment_id: DeploymentId
    model: ModelName
    workload_id: str | None
    attempt_id: str | None
    generation: int
    state: ReplicaState
    reason: str | None
    url: str | None
    engine_start: EngineStartId | None
    requests_running: int
    requests_waiting: int
    created_at: datetime
    changed_at: datetime
    ready_at: datetime | None
    synced_at: datetime | None


# --- what the gateway routes by (api.route_table) ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelRoute:
    name: ModelName
    context_tokens: int
    capabilities: frozenset[Capability]
    created_at: datetime
    owner: str
    deprecated_at: datetime | None
    retires_at: datetime | None  # from then on requests are refused
    revision: str = ""


@dataclass(frozen=True, slots=True)
class AdapterRoute:
    id: AdapterId  # what the engine is asked for
    name: str  # what the firm calls it
    firm_id: str
    base_model: ModelName
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DeploymentRoute:
    """`firm_id` is set on dedicated deployments: only that firm is routed there, at token price zero."""

    id: DeploymentId
    model: ModelName
    kind: DeploymentKind
    firm_id: str | None


@dataclass(frozen=True, slots=True, repr=False)
class ReplicaRoute:
    """A ready replica. It has no repr, so that the engine key cannot slip into a log line."""

    id: ReplicaId
    deployment_id: DeploymentId
    model: ModelName
    url: str  # "http://127.0.0.1:<port>", without /v1
    engine_key: str
    engine_start: EngineStartId
    served_name: str  # the name the engine knows the base model by
    adapters_ready: frozenset[AdapterId]
    max_concurrency: int  # sequences it batches at once (max_num_seqs)
    max_waiting: int

    def __repr__(self) -> str:
        return f"ReplicaRoute({self.id}, {self.model}, {self.url})"


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Everything the gateway needs to route; `version` differs whenever anything in it does."""

    version: str
    models: Mapping[ModelName, ModelRoute]
    adapters: Mapping[tuple[str, str], AdapterRoute]  # (firm id, adapter name)
    deployments: Mapping[DeploymentId, DeploymentRoute]
    replicas: tuple[ReplicaRoute, ...]


@dataclass(frozen=True, slots=True)
class EngineCount:
    """What one engine start has counted itself; warm-up tokens (the platform's own) are inside and also told apart."""

    engine_start: EngineStartId
    replica_id: ReplicaId
    model: ModelName
    prompt_tokens: int
    generation_tokens: int
    warmup_prompt_tokens: int
    warmup_generation_tokens: int
    started_at: datetime
    counted_at: datetime
    ended: bool  # the engine is over; when it died between two reports its last tokens were never counted


# --- wire shapes of /internal/v1/replicas/{attempt_id}/sync -----------------------------------------------------------


class ReplicaParams(TypedDict):
    """`params` of a replica workload's plan: all that the replica host is told about its engine."""

    replica_id: str
    deployment_id: str
    model: str  # --served-model-name
    source: str  # folder under HELIU_MODELS_DIR
    revision: str
    engine_arguments: dict[str, Any]  # {"max_model_len": 2048, "enforce_eager": True, …}: snake_case of vLLM's flags
    context_tokens: int
    capabilities: list[str]
    max_loras: int  # 0: start without --enable-lora
    max_lora_rank: int
    generation: int


class EngineMetrics(TypedDict):
    """Counters as the engine shows them now, since `engine_start`."""

    prompt_tokens_total: int
    generation_tokens_total: int
    warmup_prompt_tokens: int  # part of the totals that the replica host spent itself
    warmup_generation_tokens: int
    requests_running: int
    requests_waiting: int
    kv_cache_usage_ppm: NotRequired[int]


class AdapterFailure(TypedDict):
    id: str
    why: str


class SyncReport(TypedDict):
    state: str  # ReplicaState: starting | warming | ready | draining | failed
    engine_start: str | None  # a new "eng_…" id for every engine process started
    url: str | None
    engine_key: str | None
    adapters_loading: NotRequired[list[str]]
    adapters_loaded: list[str]
    adapters_failed: list[AdapterFailure]
    metrics: EngineMetrics | None
    reason: NotRequired[str | None]  # why it failed


class AdapterOrder(TypedDict):
    """An adapter the replica is to keep loaded; anything loaded and not ordered is to be unloaded."""

    id: str
    lora_name: str
    url: str  # + "/adapter_config.json" and "/adapter_model.safetensors", with the attempt's token
    sha256: str  # of adapter_model.safetensors
    bytes: int


class SyncReply(TypedDict):
    command: str  # ReplicaCommand
    adapters: list[AdapterOrder]
    poll_seconds: float
