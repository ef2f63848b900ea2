"""The tables of serving. A `table=True` class validates nothing: the rules stand in the migrations."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlmodel import Field, SQLModel

SCHEMA = {"schema": "serving"}


class Table(SQLModel):
    """What the tables share: a name SQLModel's own type does not allow for."""

    __tablename__: ClassVar[Any]


def _at(*, nullable: bool = False) -> Any:
    return Column(DateTime(timezone=True), nullable=nullable)


class ModelRow(Table, table=True):
    """A base model of the catalogue."""

    __tablename__ = "model"
    __table_args__ = SCHEMA

    name: str = Field(sa_column=Column(Text, primary_key=True))
    display_name: str = Field(sa_type=Text)
    owner: str = Field(sa_type=Text)
    licence: str = Field(sa_type=Text)
    filing_number: str | None = Field(default=None, sa_type=Text)
    modality: str = Field(sa_type=Text)
    context_tokens: int
    capabilities: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    source: str = Field(sa_type=Text)
    revision: str = Field(sa_type=Text)
    engine_arguments: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    gpu_milli: int
    max_loras: int
    deprecated_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    retires_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    created_at: datetime = Field(sa_column=_at())


class AdapterRow(Table, table=True):
    """A firm's LoRA. `config` is the rebuilt one; the weights are read from the job's artifact."""

    __tablename__ = "adapter"
    __table_args__ = SCHEMA

    id: str = Field(sa_column=Column(Text, primary_key=True))
    name: str = Field(sa_type=Text)
    firm_id: str = Field(sa_type=Text)
    project_id: str = Field(sa_type=Text)
    base_model: str | None = Field(
        default=None, sa_column=Column(Text, ForeignKey("serving.model.name"), nullable=True)
    )
    base_revision: str = Field(sa_type=Text)
    rank: int
    sha256: str = Field(sa_type=Text)
    size_bytes: int = Field(sa_type=BigInteger)
    job_id: str = Field(sa_type=Text)
    weights_artifact: str | None = Field(default=None, sa_type=Text)
    config: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    state: str = Field(sa_type=Text)
    reason: str | None = Field(default=None, sa_type=Text)
    last_used_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    retired_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    created_at: datetime = Field(sa_column=_at())


class DeploymentRow(Table, table=True):
    """A served model and how many replicas it should have."""

    __tablename__ = "deployment"
    __table_args__ = SCHEMA

    id: str = Field(sa_column=Column(Text, primary_key=True))
    model: str = Field(sa_column=Column(Text, ForeignKey("serving.model.name"), nullable=False))
    kind: str = Field(sa_type=Text)
    firm_id: str = Field(sa_type=Text)
    project_id: str = Field(sa_type=Text)
    pool: str = Field(sa_type=Text)
    qos: str = Field(sa_type=Text)
    replicas_min: int
    replicas: int
    replicas_max: int
    generation: int
    state: str = Field(sa_type=Text)
    blocked_reason: str | None = Field(default=None, sa_type=Text)
    blocked_until: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    created_by: str = Field(sa_type=Text)
    idempotency_key: str | None = Field(default=None, sa_type=Text)
    asked: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    created_at: datetime = Field(sa_column=_at())
    changed_at: datetime = Field(sa_column=_at())


class ReplicaRow(Table, table=True):
    """One engine of a deployment. Its key lies in `engine_key`, apart, so that reading a replica never reads it."""

    __tablename__ = "replica"
    __table_args__ = SCHEMA

    id: str = Field(sa_column=Column(Text, primary_key=True))
    deployment_id: str = Field(sa_column=Column(Text, ForeignKey("serving.deployment.id"), nullable=False))
    model: str = Field(sa_column=Column(Text, ForeignKey("serving.model.name"), nullable=False))
    workload_id: str | None = Field(default=None, sa_type=Text)
    attempt_id: str | None = Field(default=None, sa_type=Text)
    fence: int = Field(default=0, sa_type=BigInteger)
    generation: int
    max_concurrency: int
    state: str = Field(sa_type=Text)
    reason: str | None = Field(default=None, sa_type=Text)
    url: str | None = Field(default=None, sa_type=Text)
    engine_start: str | None = Field(default=None, sa_type=Text)
    requests_running: int = 0
    requests_waiting: int = 0
    kv_cache_usage_ppm: int = 0
    created_at: datetime = Field(sa_column=_at())
    changed_at: datetime = Field(sa_column=_at())
    ready_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    synced_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    stop_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))


class EngineKeyRow(Table, table=True):
    """The random key of a replica's present engine: written by sync, read for the gateway's route table only."""

    __tablename__ = "engine_key"
    __table_args__ = SCHEMA

    replica_id: str = Field(sa_column=Column(Text, ForeignKey("serving.replica.id"), primary_key=True))
    engine_start: str = Field(sa_type=Text)
    secret: str = Field(sa_type=Text)


class AdapterLoadRow(Table, table=True):
    """Where one adapter stands on one replica's present engine."""

    __tablename__ = "adapter_load"
    __table_args__ = SCHEMA

    replica_id: str = Field(sa_column=Column(Text, ForeignKey("serving.replica.id"), primary_key=True))
    adapter_id: str = Field(sa_column=Column(Text, ForeignKey("serving.adapter.id"), primary_key=True))
    state: str = Field(sa_type=Text)
    reason: str | None = Field(default=None, sa_type=Text)
    changed_at: datetime = Field(sa_column=_at())


class EngineCountRow(Table, table=True):
    """What one engine start counted itself; its totals only grow."""

    __tablename__ = "engine_count"
    __table_args__ = SCHEMA

    engine_start: str = Field(sa_column=Column(Text, primary_key=True))
    replica_id: str = Field(sa_column=Column(Text, ForeignKey("serving.replica.id"), nullable=False))
    model: str = Field(sa_type=Text)
    prompt_tokens: int = Field(default=0, sa_type=BigInteger)
    generation_tokens: int = Field(default=0, sa_type=BigInteger)
    warmup_prompt_tokens: int = Field(default=0, sa_type=BigInteger)
    warmup_generation_tokens: int = Field(default=0, sa_type=BigInteger)
    started_at: datetime = Field(sa_column=_at())
    counted_at: datetime = Field(sa_column=_at())
    ended_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))


class EngineUsageRow(Table, table=True):
    """What one gateway billed of an engine start, in all: to be held against the engine's own counters."""

    __tablename__ = "engine_usage"
    __table_args__ = SCHEMA

    engine_start: str = Field(sa_column=Column(Text, primary_key=True))
    source: str = Field(sa_column=Column(Text, primary_key=True))
    prompt_tokens: int = Field(sa_type=BigInteger)
    generation_tokens: int = Field(sa_type=BigInteger)
    last_at: datetime = Field(sa_column=_at())
