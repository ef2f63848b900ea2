"""The wire between an attempt's runner (on the node) and the control plane: JSON over HTTP.

Base: ``{HELIU_CONTROL_URL}/internal/v1/attempts/{attempt_id}``, ``Authorization: Bearer ha_<attempt>_<secret>``.

======  ==================  =====================================  ===============================================
GET     /plan               → Plan                                 counts as a heartbeat: it renews the lease
GET     /inputs/{name}      → bytes                                ``Range: bytes=N-`` is answered with 206
POST    /started            StartedIn → LeaseOut                   repeating it changes nothing
POST    /heartbeat          HeartbeatIn → HeartbeatOut             log lines are deduplicated by ``seq``
PUT     /outputs/{name}     bytes → OutputOut                      headers below; same name and hash again: same reply
PUT     /checkpoint         bytes → CheckpointOut                  X-Sha256, X-Step, X-Ran-Ms; replaces the one before
GET     /checkpoint         → bytes                                the one the plan names; ranges as for inputs
POST    /finished           FinishedIn → {}                        the first one wins; repeating it changes nothing
======  ==================  =====================================  ===============================================

Every refusal is a problem document with a ``code``. 409 ``fence_lost`` means: this attempt may not run any more.
A lease of n seconds runs from the moment the runner *sent* the request, so it ends here before it ends there.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

FENCE_LOST = "fence_lost"
HEADER_RUNNER = "X-Runner"  # with GET /plan: a random name of the runner's process; the first one claims the attempt
HEADER_SHA256 = "X-Sha256"
HEADER_KIND = "X-Kind"
HEADER_STEP = "X-Step"  # of a checkpoint: how far the program was
HEADER_RAN_MS = "X-Ran-Ms"  # … and for how long it had run in this attempt
HEADER_META = "X-Meta"  # a JSON object in ASCII (other characters as \\uXXXX), at most META_BYTES_MAX

LOG_LINE_CHARS_MAX = 4_000
LOG_LINES_PER_HEARTBEAT_MAX = 500
META_BYTES_MAX = 4_096
METRICS_MAX = 32
MESSAGE_CHARS_MAX = 2_000

HELD_FILES_MAX = 256  # files a node keeps and tells of
HELD_MODELS_MAX = 128
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

NAME_BYTES_MAX = 512
NAME_DEPTH_MAX = 16


def plain_name(name: str) -> str:
    """The relative path in NFC; ValueError when it is absolute, climbs, or holds control or invisible characters."""
    normal = unicodedata.normalize("NFC", name)
    parts = normal.split("/")
    if len(parts) > NAME_DEPTH_MAX or len(normal.encode()) > NAME_BYTES_MAX:
        raise ValueError(f"a file name may have {NAME_DEPTH_MAX} levels and {NAME_BYTES_MAX} bytes")
    for part in parts:
        if part in ("", ".", "..") or len(part.encode()) > 255 or part != part.strip():
            raise ValueError("a file name is a relative path without empty parts, '.' or '..'")
        if "\\" in part or any(unicodedata.category(character)[0] == "C" for character in part):
            raise ValueError("a file name may not hold backslashes, control or invisible characters")
    return normal


def held_as(firm_id: str, sha256: str) -> str:
    """The name under which a node keeps a firm's file: firms share no file, nor the knowledge that one is there."""
    return hashlib.sha256(f"{firm_id}:{sha256}".encode()).hexdigest()[:32]


FileName = Annotated[str, AfterValidator(plain_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
HeldAs = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
ModelName = Annotated[str, Field(pattern=rf"^{MODEL_NAME.pattern}$")]
Seconds = Annotated[int, Field(ge=1, le=31 * 86_400)]


class Wire(BaseModel):
    """Strict and closed: an unknown field or a wrong type is an error on either side."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OutputKind(StrEnum):
    ADAPTER = "adapter"  # adapter_config.json and adapter_model.safetensors; meta {adapter_name, base_model, rank}
    RESULTS = "results"  # JSONL made by a platform recipe
    FILE = "file"  # whatever a script left in outputs/


class Outcome(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


class Cause(StrEnum):
    """Why an attempt is over. ``is_platform_fault``: the firm is not to blame. What follows, the server decides."""

    DONE = "done"
    STOPPED = "stopped"  # told to stop, and did
    TIME_LIMIT = "time_limit"  # ran max_runtime_seconds
    BAD_INPUT = "bad_input"  # the firm's data; the message names file and line
    BAD_PARAMS = "bad_params"
    PROGRAM_FAILED = "program_failed"  # exit code ≠ 0 of what the firm brought, or a recipe's own error
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_REFUSED = "output_refused"  # a link, a special file, too many, too large
    INPUT_UNAVAILABLE = "input_unavailable"  # an input could not be fetched or its hash is wrong
    UPLOAD_FAILED = "upload_failed"
    MODEL_MISSING = "model_missing"  # the base model's folder is not on this node
    SETUP_FAILED = "setup_failed"  # sandbox, placement group, interpreter: the node is not fit
    ENGINE_DIED = "engine_died"  # a replica's model server
    KILLED = "killed"  # a signal that neither the runner nor the program sent

    @property
    def is_platform_fault(self) -> bool:
        return self in _PLATFORM_FAULTS


_PLATFORM_FAULTS = frozenset(
    {
        Cause.INPUT_UNAVAILABLE,
        Cause.UPLOAD_FAILED,
        Cause.MODEL_MISSING,
        Cause.SETUP_FAILED,
        Cause.ENGINE_DIED,
        Cause.KILLED,
    }
)


class InputFile(Wire):
    """``url`` is absolute, or starts with ``/`` on the control plane, which alone is shown the bearer."""

    name: FileName
    url: str
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class CheckpointFile(Wire):
    """What the next attempt begins from: a packed folder, fetched from `/checkpoint`."""

    step: Annotated[int, Field(ge=0)]
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Plan(Wire):
    attempt_id: str
    workload_id: str
    kind: Literal["job", "replica"]
    program: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)+$")]
    params: dict[str, Any]
    inputs: list[InputFile] = []
    sandboxed: bool
    lease_seconds: Seconds
    heartbeat_seconds: Seconds
    grace_seconds: Annotated[int, Field(ge=0, le=3600)]
    max_runtime_seconds: Seconds | None = None  # from `started`; None for a replica
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    gpu_milli: Annotated[int, Field(ge=0)]  # per worker
    cpu_milli: Annotated[int, Field(ge=0)] = 0  # per worker; 0: whatever is left
    memory_mib: Annotated[int, Field(ge=0)] = 0  # per worker; 0: whatever is left
    nodes: list[str] = []  # Ray node ids, one per worker; used only when workers > 1
    devices: list[list[Annotated[int, Field(ge=0)]]] = []  # per worker: which accelerators of its node are its own
    devices_variable: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None  # names them to the program
    worker_resources: dict[str, float] = {}  # what each worker takes from Ray, e.g. {"slot": 1} or {"GPU": 1}
    output_bytes_max: Annotated[int, Field(ge=0)] = 4 * 1024**3
    output_files_max: Annotated[int, Field(ge=0)] = 1_000
    task_index: Annotated[int, Field(ge=0)] | None = None  # of a job array
    checkpoint: CheckpointFile | None = None
    checkpoint_bytes_max: Annotated[int, Field(ge=0)] = 4 * 1024**3
    firm_id: str  # whose files the node keeps for its next attempts
    model: str | None = None  # the base model it reads


class Progress(Wire):
    step: Annotated[int, Field(ge=0)]
    total_steps: Annotated[int, Field(ge=0)]
    metrics: Annotated[dict[str, float], Field(max_length=METRICS_MAX)] = {}


class LogLine(Wire):
    seq: Annotated[int, Field(ge=1)]  # from 1 in each attempt, without gaps
    text: Annotated[str, Field(max_length=LOG_LINE_CHARS_MAX)]


class StartedIn(Wire):
    pass


class LeaseOut(Wire):
    lease_seconds: Seconds


class Inventory(Wire):
    """What the node of one worker has: files by their `held_as`, models on its disk, and those of them in memory."""

    worker: Annotated[int, Field(ge=0)]
    files: Annotated[list[HeldAs], Field(max_length=HELD_FILES_MAX)] = []
    models: Annotated[list[ModelName], Field(max_length=HELD_MODELS_MAX)] = []
    warm: Annotated[list[ModelName], Field(max_length=HELD_MODELS_MAX)] = []


class HeartbeatIn(Wire):
    progress: Progress | None = None
    inventories: Annotated[list[Inventory], Field(max_length=1024)] = []  # when they have changed
    log: Annotated[list[LogLine], Field(max_length=LOG_LINES_PER_HEARTBEAT_MAX)] = []


class HeartbeatOut(Wire):
    lease_seconds: Seconds
    command: Literal["run", "stop"]
    grace_seconds: Annotated[int, Field(ge=0, le=3600)]


class OutputOut(Wire):
    artifact_id: str
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class CheckpointOut(Wire):
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class FinishedIn(Wire):
    outcome: Annotated[Outcome, Field(strict=False)]
    cause: Annotated[Cause, Field(strict=False)]
    message: Annotated[str, Field(max_length=MESSAGE_CHARS_MAX)] = ""
    exit_code: int | None = None  # negative: ended by that signal; None: the program never started
    ran_ms: Annotated[int, Field(ge=0)]  # monotonic, from `started` to the program's exit; 0 when it never started
