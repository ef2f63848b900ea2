"""What the gateway routes by, read in one transaction."""

import hashlib

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from serving.adapters import store
from serving.adapters.tables import EngineKeyRow, ReplicaRow
from serving.vocabulary import (
    AdapterId,
    AdapterRoute,
    AdapterState,
    DeploymentId,
    DeploymentKind,
    DeploymentRoute,
    EngineStartId,
    LoadState,
    ModelName,
    ModelRoute,
    ReplicaId,
    ReplicaRoute,
    ReplicaState,
    RouteTable,
)

WAITING_SHARE = 8  # an engine may queue an eighth of what it batches; the rest waits fairly in the gateway


async def route_table(tx: AsyncSession) -> RouteTable:
    """Models, live adapters, active deployments, and ready replicas with their engine keys. For the gateway only."""
    models = [
        ModelRoute(
            name=m.name,
            context_tokens=m.context_tokens,
            capabilities=m.capabilities,
            created_at=m.created_at,
            owner=m.owner,
            deprecated_at=m.deprecated_at,
            retires_at=m.retires_at,
            revision=m.revision,
        )
        for m in map(store.model_of, await store.models(tx))
    ]
    adapters = [
        AdapterRoute(a.id, a.name, a.firm_id, a.base_model, a.created_at)
        for a in map(store.adapter_of, await store.adapters(tx, states=(AdapterState.ACTIVE,)))
    ]
    deployments = [
        DeploymentRoute(d.id, d.model, d.kind, d.firm_id if d.kind is DeploymentKind.DEDICATED else None)
        for d in map(store.deployment_of, await store.deployments(tx, active_only=True))
    ]
    replicas = await _ready_replicas(tx, known=frozenset(a.id for a in adapters))
    return RouteTable(
        version=_version(models, adapters, deployments, replicas),
        models={m.name: m for m in models},
        adapters={(a.firm_id, a.name): a for a in adapters},
        deployments={d.id: d for d in deployments},
        replicas=tuple(replicas),
    )


async def _ready_replicas(tx: AsyncSession, *, known: frozenset[AdapterId]) -> list[ReplicaRoute]:
    query = (
        select(ReplicaRow, EngineKeyRow)
        .join(EngineKeyRow, col(EngineKeyRow.replica_id) == col(ReplicaRow.id))
        .where(
            col(ReplicaRow.state) == ReplicaState.READY.value,
            col(EngineKeyRow.engine_start) == col(ReplicaRow.engine_start),
        )
        .order_by(col(ReplicaRow.id))
    )
    found = (await tx.execute(query)).all()
    loaded: dict[str, set[AdapterId]] = {}
    for load in await store.loads(tx, [row.id for row, _ in found]):
        adapter_id = AdapterId(load.adapter_id)
        if load.state == LoadState.READY and adapter_id in known:
            loaded.setdefault(load.replica_id, set()).add(adapter_id)
    return [
        ReplicaRoute(
            id=ReplicaId(row.id),
            deployment_id=DeploymentId(row.deployment_id),
            model=ModelName(row.model),
            url=row.url or "",
            engine_key=key.secret,
            engine_start=EngineStartId(key.engine_start),
            served_name=row.model,
            adapters_ready=frozenset(loaded.get(row.id, ())),
            max_concurrency=row.max_concurrency,
            max_waiting=max(2, row.max_concurrency // WAITING_SHARE),
        )
        for row, key in found
    ]


def _version(
    models: list[ModelRoute],
    adapters: list[AdapterRoute],
    deployments: list[DeploymentRoute],
    replicas: list[ReplicaRoute],
) -> str:
    digest = hashlib.sha256()
    for model in models:
        digest.update(repr((model.name, model.context_tokens, sorted(model.capabilities), model.owner)).encode())
        digest.update(repr((model.deprecated_at, model.retires_at, model.revision)).encode())
    digest.update(repr((adapters, deployments)).encode())
    for r in replicas:
        digest.update(repr((r, r.deployment_id, r.engine_start, sorted(r.adapters_ready), r.max_concurrency)).encode())
        digest.update(hashlib.sha256(r.engine_key.encode()).digest())
    return digest.hexdigest()[:32]
