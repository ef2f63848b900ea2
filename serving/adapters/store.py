"""Rows of serving, in and out of the database. Every function runs in its caller's transaction."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer
from sqlmodel import col

from serving.adapters.tables import AdapterLoadRow, AdapterRow, DeploymentRow, ModelRow, ReplicaRow
from serving.vocabulary import (
    Adapter,
    AdapterId,
    AdapterState,
    Capability,
    Deployment,
    DeploymentId,
    DeploymentKind,
    DeploymentState,
    EngineStartId,
    LoadState,
    Modality,
    Model,
    ModelName,
    Replica,
    ReplicaId,
    ReplicaState,
)

LIVE_ADAPTERS = (AdapterState.ACTIVE.value, AdapterState.RETIRING.value)
OVER = (ReplicaState.GONE.value, ReplicaState.FAILED.value)


def model_of(row: ModelRow) -> Model:
    """The row as a value."""
    return Model(
        name=ModelName(row.name),
        display_name=row.display_name,
        owner=row.owner,
        licence=row.licence,
        filing_number=row.filing_number,
        modality=Modality(row.modality),
        context_tokens=row.context_tokens,
        capabilities=frozenset(Capability(c) for c in row.capabilities),
        source=row.source,
        revision=row.revision,
        engine_arguments=row.engine_arguments,
        gpu_milli=row.gpu_milli,
        max_loras=row.max_loras,
        deprecated_at=row.deprecated_at,
        retires_at=row.retires_at,
        created_at=row.created_at,
    )


def adapter_of(row: AdapterRow) -> Adapter:
    """The row as a value."""
    return Adapter(
        id=AdapterId(row.id),
        name=row.name,
        firm_id=row.firm_id,
        project_id=row.project_id,
        base_model=ModelName(row.base_model or ""),
        base_revision=row.base_revision,
        rank=row.rank,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        job_id=row.job_id,
        state=AdapterState(row.state),
        reason=row.reason,
        last_used_at=row.last_used_at,
        created_at=row.created_at,
    )


def deployment_of(row: DeploymentRow) -> Deployment:
    """The row as a value."""
    return Deployment(
        id=DeploymentId(row.id),
        model=ModelName(row.model),
        kind=DeploymentKind(row.kind),
        firm_id=row.firm_id,
        project_id=row.project_id,
        pool=row.pool,
        qos=row.qos,
        replicas_min=row.replicas_min,
        replicas=row.replicas,
        replicas_max=row.replicas_max,
        generation=row.generation,
        state=DeploymentState(row.state),
        created_at=row.created_at,
    )


def replica_of(row: ReplicaRow) -> Replica:
    """The row as a value."""
    return Replica(
        id=ReplicaId(row.id),
        deployment_id=DeploymentId(row.deployment_id),
        model=ModelName(row.model),
        workload_id=row.workload_id,
        attempt_id=row.attempt_id,
        generation=row.generation,
        state=ReplicaState(row.state),
        reason=row.reason,
        url=row.url,
        engine_start=EngineStartId(row.engine_start) if row.engine_start else None,
        requests_running=row.requests_running,
        requests_waiting=row.requests_waiting,
        created_at=row.created_at,
        changed_at=row.changed_at,
        ready_at=row.ready_at,
        synced_at=row.synced_at,
    )


async def lock_name(tx: AsyncSession, name: str) -> None:
    """Whoever gives or takes the name of a model or adapter waits here for whoever else does."""
    await tx.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('serving.name:' || :name, 0))"), {"name": name}
    )


async def models(tx: AsyncSession) -> list[ModelRow]:
    """Every base model, by name."""
    return list((await tx.execute(select(ModelRow).order_by(col(ModelRow.name)))).scalars())


async def model(tx: AsyncSession, name: str) -> ModelRow | None:
    """The base model of this name."""
    return await tx.get(ModelRow, name)


async def adapter(tx: AsyncSession, adapter_id: str, *, lock: bool = False) -> AdapterRow | None:
    """The adapter of this id, in whatever state."""
    return await tx.get(AdapterRow, adapter_id, with_for_update=lock, populate_existing=lock)


async def adapters(
    tx: AsyncSession,
    *,
    firm_id: str | None = None,
    base_model: str | None = None,
    states: Collection[str] = LIVE_ADAPTERS,
) -> list[AdapterRow]:
    """Adapters in one of `states`, oldest first; of one firm and on one base model where those are given.

    Without their `config`: only `adapter` reads that.
    """
    query = select(AdapterRow).options(defer(cast(Any, AdapterRow.config), raiseload=True))
    query = query.where(col(AdapterRow.state).in_(states)).order_by(col(AdapterRow.id))
    if firm_id is not None:
        query = query.where(col(AdapterRow.firm_id) == firm_id)
    if base_model is not None:
        query = query.where(col(AdapterRow.base_model) == base_model)
    return list((await tx.execute(query)).scalars())


async def adapter_named(tx: AsyncSession, firm_id: str, name: str) -> AdapterRow | None:
    """The firm's live adapter of this name."""
    found = await adapters(tx, firm_id=firm_id)
    return next((row for row in found if row.name == name), None)


async def adapter_of_job(tx: AsyncSession, job_id: str) -> AdapterRow | None:
    """The adapter that came of this job, unless it was deleted; the deleted one when there is no other."""
    query = (
        select(AdapterRow)
        .where(col(AdapterRow.job_id) == job_id)
        .order_by((col(AdapterRow.state) == AdapterState.DELETED.value), col(AdapterRow.id).desc())
        .limit(1)
    )
    return (await tx.execute(query)).scalar_one_or_none()


async def name_is_an_adapters(tx: AsyncSession, name: str) -> bool:
    """Whether some firm has a live adapter of this name."""
    query = select(func.count()).select_from(AdapterRow)
    query = query.where(col(AdapterRow.name) == name, col(AdapterRow.state).in_(LIVE_ADAPTERS))
    return (await tx.execute(query)).scalar_one() > 0


async def deployment(tx: AsyncSession, deployment_id: str, *, lock: bool = False) -> DeploymentRow | None:
    """The deployment of this id."""
    return await tx.get(DeploymentRow, deployment_id, with_for_update=lock, populate_existing=lock)


async def deployment_by_key(tx: AsyncSession, firm_id: str, key: str) -> DeploymentRow | None:
    """The deployment a firm made with this idempotency key."""
    query = select(DeploymentRow).where(
        col(DeploymentRow.firm_id) == firm_id, col(DeploymentRow.idempotency_key) == key
    )
    return (await tx.execute(query)).scalar_one_or_none()


async def deployments(
    tx: AsyncSession, *, firm_ids: Collection[str] | None = None, active_only: bool = False
) -> list[DeploymentRow]:
    """Deployments, oldest first; only of `firm_ids` when given."""
    query = select(DeploymentRow).order_by(col(DeploymentRow.id))
    if firm_ids is not None:
        query = query.where(col(DeploymentRow.firm_id).in_(firm_ids))
    if active_only:
        query = query.where(col(DeploymentRow.state) == DeploymentState.ACTIVE.value)
    return list((await tx.execute(query)).scalars())


async def deployments_to_tend(tx: AsyncSession) -> list[str]:
    """Ids of deployments that are active or still have a replica that is not over."""
    live = select(col(ReplicaRow.deployment_id)).where(col(ReplicaRow.state).not_in(OVER))
    query = select(col(DeploymentRow.id)).where(
        or_(col(DeploymentRow.state) == DeploymentState.ACTIVE.value, col(DeploymentRow.id).in_(live))
    )
    return list((await tx.execute(query.order_by(col(DeploymentRow.id)))).scalars())


async def replica(tx: AsyncSession, replica_id: str, *, lock: bool = False) -> ReplicaRow | None:
    """The replica of this id."""
    return await tx.get(ReplicaRow, replica_id, with_for_update=lock, populate_existing=lock)


async def replica_of_workload(tx: AsyncSession, workload_id: str) -> ReplicaRow | None:
    """The replica that is this workload, locked."""
    query = select(ReplicaRow).where(col(ReplicaRow.workload_id) == workload_id).with_for_update()
    return (await tx.execute(query)).scalar_one_or_none()


async def replicas(
    tx: AsyncSession,
    *,
    deployment_ids: Collection[str] | None = None,
    live_only: bool = False,
    over_since: datetime | None = None,
    lock: bool = False,
) -> list[ReplicaRow]:
    """Replicas, oldest first. `over_since`: of those that are over, only the ones that ended after it."""
    query = select(ReplicaRow).order_by(col(ReplicaRow.id))
    if deployment_ids is not None:
        query = query.where(col(ReplicaRow.deployment_id).in_(deployment_ids))
    if live_only:
        query = query.where(col(ReplicaRow.state).not_in(OVER))
    elif over_since is not None:
        query = query.where(or_(col(ReplicaRow.state).not_in(OVER), col(ReplicaRow.changed_at) > over_since))
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    return list((await tx.execute(query)).scalars())


async def ready_counts(tx: AsyncSession) -> dict[str, int]:
    """How many replicas of each deployment are ready."""
    query = (
        select(col(ReplicaRow.deployment_id), func.count())
        .where(col(ReplicaRow.state) == ReplicaState.READY.value)
        .group_by(col(ReplicaRow.deployment_id))
    )
    return {row[0]: row[1] for row in await tx.execute(query)}


async def loads(tx: AsyncSession, replica_ids: Sequence[str]) -> list[AdapterLoadRow]:
    """Adapter loads of these replicas."""
    query = select(AdapterLoadRow).where(col(AdapterLoadRow.replica_id).in_(replica_ids))
    return list((await tx.execute(query.order_by(col(AdapterLoadRow.adapter_id)))).scalars())


async def ready_loads(tx: AsyncSession, adapter_ids: Sequence[str]) -> dict[str, int]:
    """How many replicas have each of these adapters ready."""
    query = (
        select(col(AdapterLoadRow.adapter_id), func.count())
        .where(col(AdapterLoadRow.adapter_id).in_(adapter_ids), col(AdapterLoadRow.state) == LoadState.READY.value)
        .group_by(col(AdapterLoadRow.adapter_id))
    )
    return {row[0]: row[1] for row in await tx.execute(query)}


async def loaded_anywhere(tx: AsyncSession, adapter_id: str) -> bool:
    """Whether any live replica still has this adapter, or is loading or unloading it."""
    query = (
        select(func.count())
        .select_from(AdapterLoadRow)
        .join(ReplicaRow, col(ReplicaRow.id) == col(AdapterLoadRow.replica_id))
        .where(
            col(AdapterLoadRow.adapter_id) == adapter_id,
            col(AdapterLoadRow.state).in_([LoadState.LOADING, LoadState.READY, LoadState.UNLOADING]),
            col(ReplicaRow.state).not_in(OVER),
        )
    )
    return (await tx.execute(query)).scalar_one() > 0


async def touch_adapters(tx: AsyncSession, used: dict[str, datetime]) -> int:
    """Move `last_used_at` forward, never back; returns how many rows changed."""
    changed = 0
    for adapter_id in sorted(used):
        at = used[adapter_id]
        statement = (
            update(AdapterRow)
            .where(
                col(AdapterRow.id) == adapter_id,
                col(AdapterRow.state) == AdapterState.ACTIVE.value,
                or_(col(AdapterRow.last_used_at).is_(None), col(AdapterRow.last_used_at) < at),
            )
            .values(last_used_at=at)
        )
        changed += cast(Any, await tx.execute(statement)).rowcount
    return changed
