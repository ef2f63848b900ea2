"""Tables of the scheduler, as the migrations make them. A `table=True` class validates nothing: the database does."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    Double,
    Index,
    Integer,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Field

from scheduler.adapters.columns import SCHEMA as SCHEMA
from scheduler.adapters.columns import Table as _Table
from scheduler.adapters.columns import count as _count
from scheduler.adapters.columns import false as _false
from scheduler.adapters.columns import flag as _flag
from scheduler.adapters.columns import hash_column as _hash
from scheduler.adapters.columns import instant as _instant
from scheduler.adapters.columns import integer as _integer
from scheduler.adapters.columns import integers as _integers
from scheduler.adapters.columns import json_column as _json
from scheduler.adapters.columns import sizes as _sizes
from scheduler.adapters.columns import small_count as _small_count
from scheduler.adapters.columns import text_column as _text
from scheduler.adapters.columns import texts as _texts
from scheduler.adapters.fleet_tables import DeviceRow as DeviceRow
from scheduler.adapters.fleet_tables import InventoryRow as InventoryRow
from scheduler.adapters.fleet_tables import NodeRow as NodeRow
from scheduler.adapters.fleet_tables import PoolRow as PoolRow
from scheduler.adapters.fleet_tables import WindowRow as WindowRow
from scheduler.adapters.gangs import Gang
from scheduler.vocabulary import Spread


class QuotaUseRow(_Table, table=True):
    """What a firm's live attempts hold in a pool."""

    __tablename__ = "quota_use"
    __table_args__ = ({"schema": SCHEMA},)

    firm_id: str = _text(primary_key=True)
    pool: str = _text(primary_key=True)
    used_milli: int = _integer()


class FirmUsageRow(_Table, table=True):
    """What a firm used of a pool, in thousandths × seconds, each weighing half as much after a half-life."""

    __tablename__ = "firm_usage"
    __table_args__ = ({"schema": SCHEMA},)

    firm_id: str = _text(primary_key=True)
    pool: str = _text(primary_key=True, to="pool.name")
    milli_seconds: float = Field(default=None, sa_column=Column(Double, nullable=False))
    as_of: datetime = _instant()


class QuoteRow(_Table, table=True):
    """A price and a time that were told, and until when they bind."""

    __tablename__ = "quote"
    __table_args__ = ({"schema": SCHEMA},)

    id: str = _text(primary_key=True)
    firm_id: str = _text()
    project_id: str = _text()
    shape_hash: bytes = _hash()
    max_micro_yuan: int = _integer(big=True)
    body: dict[str, Any] = _json()
    created_at: datetime = _instant()
    expires_at: datetime = _instant()


class WorkloadRow(Gang, _Table, table=True):
    """A job or a replica, from its submission on."""

    __tablename__ = "workload"
    __table_args__ = (
        Index("workload_idempotency", "firm_id", "kind", "idempotency_key", unique=True),
        Index("workload_live", "id", postgresql_where=text("ended_at IS NULL")),
        Index("workload_firm", "firm_id", "submitted_at"),
        Index(
            "workload_task",
            "array_id",
            "array_index",
            "array_run",
            unique=True,
            postgresql_where=text("array_id IS NOT NULL"),
        ),
        Index("workload_open_task", "array_id", postgresql_where=text("ended_at IS NULL AND array_id IS NOT NULL")),
        {"schema": SCHEMA},
    )

    id: str = _text(primary_key=True)
    kind: str = _text()
    name: str = _text()
    firm_id: str = _text()
    project_id: str = _text()
    submitted_by: str = _text()
    idempotency_key: str = _text()
    request_hash: bytes = _hash()
    recipe: str | None = _text(nullable=True)
    program: str = _text()
    params: dict[str, Any] = _json()
    sandboxed: bool = _flag()
    pools: list[str] = _texts()
    pool_ranks: list[int] | None = _integers(nullable=True)  # pools of one rank are liked equally; None: in order
    workers: int = _integer()
    gpu_milli: int = _integer()
    cpu_milli: int = _small_count()
    memory_mib: int = _small_count()
    spread: str = Field(default=Spread.SAME_CENTRE, sa_column=Column(Text, nullable=False))
    topology: str | None = _text(nullable=True)
    qos: str = _text()
    priority: int = _integer()
    expected_seconds: int | None = _integer(nullable=True)
    max_runtime_seconds: int | None = _integer(nullable=True)
    cap_micro_yuan: int | None = _integer(nullable=True, big=True)
    quote_id: str | None = _text(nullable=True, to="quote.id")
    deadline: datetime | None = _instant(nullable=True)
    state: str = _text()
    fence: int = _integer()
    failures: int = _integer()
    wait_reason: str | None = _text(nullable=True)
    wait_detail: str | None = _text(nullable=True)
    eta: datetime | None = _instant(nullable=True)
    eta_estimated: bool = _flag()
    held_until: datetime | None = _instant(nullable=True)
    stop_requested_at: datetime | None = _instant(nullable=True)
    stop_reason: str | None = _text(nullable=True)
    progress: dict[str, Any] | None = _json(nullable=True)
    last_cause: str | None = _text(nullable=True)
    last_message: str | None = _text(nullable=True)
    charged_micro_yuan: int = _integer(big=True)
    submitted_at: datetime = _instant()
    started_at: datetime | None = _instant(nullable=True)
    ended_at: datetime | None = _instant(nullable=True)
    running_since: datetime | None = _instant(nullable=True)  # the start of its last attempt that has started
    kept_ms: int = _count()  # of its running time, by ended attempts and safe in a checkpoint
    lost_gpu_ms: int = _count()  # what the platform lost of its work; nobody paid for it
    pause_requested_at: datetime | None = _instant(nullable=True)
    pause_reason: str | None = _text(nullable=True)
    hard_cap_micro_yuan: int | None = _integer(nullable=True, big=True)  # it is stopped when it has spent this much
    retries: int = _small_count()  # how often it is tried again after an error of its own
    program_errors: int = _small_count()
    estimated_seconds: int | None = _integer(nullable=True)  # by its recipe
    duration_basis: str | None = _text(nullable=True)  # where expected_seconds comes from
    workers_min: int | None = _integer(nullable=True)  # elastic: it starts with what fits between these …
    workers_max: int | None = _integer(nullable=True)  # … and `workers` is what its attempt has
    model: str | None = _text(nullable=True)  # the base model that its program reads
    files: dict[str, int] = _sizes()  # what it reads, by the names nodes keep it under (inventories.py), in bytes
    checkpoints: bool = _false()  # its program keeps what it has done: it can be moved at little loss
    array_id: str | None = _text(nullable=True, to="job_array.id")
    array_index: int | None = _integer(nullable=True)
    array_run: int | None = _integer(nullable=True)


class ArrayRow(_Table, table=True):
    """Many tasks of one shape. `next_index` is the cursor, `again` the tasks to be run once more."""

    __tablename__ = "job_array"
    __table_args__ = (
        Index("job_array_idempotency", "firm_id", "idempotency_key", unique=True),
        Index("job_array_open", "id", postgresql_where=text("ended_at IS NULL")),
        {"schema": SCHEMA},
    )

    id: str = _text(primary_key=True)
    firm_id: str = _text()
    project_id: str = _text()
    submitted_by: str = _text()
    name: str = _text()
    recipe: str = _text()
    idempotency_key: str = _text()
    request_hash: bytes = _hash()
    template: dict[str, Any] = _json()  # what every task's row has
    inputs: list[dict[str, Any]] = _json()
    size: int = _integer()
    at_most: int = _integer()  # tasks that are jobs under way at once
    next_index: int = _integer()
    run: int = _integer()
    again: list[int] = Field(default=None, sa_column=Column(ARRAY(Integer), nullable=False))
    held_detail: str | None = _text(nullable=True)  # the limit that keeps the next task from its turn
    created_at: datetime = _instant()
    cancelled_at: datetime | None = _instant(nullable=True)
    ended_at: datetime | None = _instant(nullable=True)


class DependencyRow(_Table, table=True):
    """A job waits for the end of another job or array."""

    __tablename__ = "dependency"
    __table_args__ = (Index("dependency_after", "after_id"), {"schema": SCHEMA})

    workload_id: str = _text(primary_key=True, to="workload.id")
    after_id: str = _text(primary_key=True)  # job_… or arr_…
    rule: str = _text()


class InputRow(_Table, table=True):
    """A file a job reads: an object that was whole when the job was submitted."""

    __tablename__ = "workload_input"
    __table_args__ = ({"schema": SCHEMA},)

    workload_id: str = _text(primary_key=True, to="workload.id")
    name: str = _text(primary_key=True)
    blob: str = _text()
    sha256: str = _text()
    size_bytes: int = _integer(big=True)


class AttemptRow(_Table, table=True):
    """One try at running a workload. At most one is not over (unique), and its fence is the workload's."""

    __tablename__ = "attempt"
    __table_args__ = (
        Index("attempt_fence", "workload_id", "fence", unique=True),
        Index("attempt_live", "workload_id", unique=True, postgresql_where=text("ended_at IS NULL")),
        Index("attempt_uncleared", "ended_at", postgresql_where=text("cleared_at IS NULL")),
        {"schema": SCHEMA},
    )

    id: str = _text(primary_key=True)
    workload_id: str = _text(to="workload.id")
    firm_id: str = _text()
    fence: int = _integer()
    state: str = _text()
    pool: str = _text(to="pool.name")
    token_hash: bytes = _hash()
    hold_id: str = _text()
    held_seconds: int = _integer()
    runner: str | None = _text(nullable=True)
    placed_at: datetime = _instant()
    ordered_at: datetime | None = _instant(nullable=True)
    claimed_at: datetime | None = _instant(nullable=True)
    lease_until: datetime | None = _instant(nullable=True)
    started_at: datetime | None = _instant(nullable=True)
    metered_ms: int = _integer(big=True)
    stop_requested_at: datetime | None = _instant(nullable=True)
    stop_cause: str | None = _text(nullable=True)
    stop_message: str | None = _text(nullable=True)  # why, for its owner: the runner only knows that it was told to
    ended_at: datetime | None = _instant(nullable=True)
    cause: str | None = _text(nullable=True)
    message: str | None = _text(nullable=True)
    exit_code: int | None = _integer(nullable=True)
    ran_ms: int | None = _integer(nullable=True, big=True)
    cleared_at: datetime | None = _instant(nullable=True)
    kept_ms: int = _count()  # of its running time, safe in a checkpoint
    kept_at: datetime | None = _instant(nullable=True)
    told: dict[str, Any] | None = _json(nullable=True)  # how its place scored, beside the next best one


class PlacementRow(_Table, table=True):
    """The node of one worker of an attempt, its accelerators there, and what it takes of them, of CPU and memory."""

    __tablename__ = "placement"
    __table_args__ = (Index("placement_node", "node_id"), {"schema": SCHEMA})

    attempt_id: str = _text(primary_key=True, to="attempt.id")
    worker: int = _integer(primary_key=True)
    node_id: str = _text(to="node.id")
    gpu_milli: int = _integer()
    cpu_milli: int = _integer()
    memory_mib: int = _integer()
    devices: list[int] = _integers()


class CheckpointRow(_Table, table=True):
    """What a workload's next attempt begins from: one packed folder, stored under its hash. The last one stands."""

    __tablename__ = "checkpoint"
    __table_args__ = (Index("checkpoint_firm", "firm_id"), {"schema": SCHEMA})

    workload_id: str = _text(primary_key=True, to="workload.id")
    attempt_id: str = _text(to="attempt.id")
    firm_id: str = _text()
    project_id: str = _text()
    step: int = _integer(big=True)
    gpu_ms: int = _integer(big=True)  # of the workload's work so far, all attempts
    sha256: str = _text()
    size_bytes: int = _integer(big=True)
    blob: str = _text()
    created_at: datetime = _instant()


class LogLineRow(_Table, table=True):
    """A line an attempt wrote; (fence, seq) orders all lines of a workload."""

    __tablename__ = "log_line"
    __table_args__ = ({"schema": SCHEMA},)

    workload_id: str = _text(primary_key=True, to="workload.id")
    fence: int = _integer(primary_key=True)
    seq: int = _integer(primary_key=True)
    at: datetime = _instant()
    text: str = _text()


class ArtifactRow(_Table, table=True):
    """A file an attempt stored. It can be seen once its attempt has succeeded (`published_at`)."""

    __tablename__ = "artifact"
    __table_args__ = (
        Index("artifact_name", "attempt_id", "name", unique=True),
        Index("artifact_firm", "firm_id", "created_at"),
        {"schema": SCHEMA},
    )

    id: str = _text(primary_key=True)
    firm_id: str = _text()
    project_id: str = _text()
    workload_id: str = _text(to="workload.id")
    attempt_id: str = _text(to="attempt.id")
    name: str = _text()
    kind: str = _text()
    sha256: str = _text()
    size_bytes: int = _integer(big=True)
    blob: str = _text()
    meta: dict[str, Any] = _json()
    created_at: datetime = _instant()
    published_at: datetime | None = _instant(nullable=True)


class UploadRow(_Table, table=True):
    """A file on its way in, or arrived: resumable part by part, whole and hashed when complete."""

    __tablename__ = "upload"
    __table_args__ = (Index("upload_firm", "firm_id", "created_at"), {"schema": SCHEMA})

    id: str = _text(primary_key=True)
    firm_id: str = _text()
    project_id: str = _text()
    name: str = _text()
    sha256: str = _text()
    size_bytes: int = _integer(big=True)
    received_bytes: int = _integer(big=True)
    state: str = _text()
    created_by: str = _text()
    created_at: datetime = _instant()
    expires_at: datetime = _instant()


class UploadPartRow(_Table, table=True):
    """A part of an upload that has arrived whole."""

    __tablename__ = "upload_part"
    __table_args__ = ({"schema": SCHEMA},)

    upload_id: str = _text(primary_key=True, to="upload.id")
    start: int = _integer(primary_key=True, big=True)
    size_bytes: int = _integer(big=True)
    blob: str = _text()
