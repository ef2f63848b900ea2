"""What people see of the catalogue and of what is served."""

from collections import Counter
from collections.abc import Collection

from sqlalchemy.ext.asyncio import AsyncSession

from quotas.vocabulary import PLATFORM_FIRM
from serving import adapter_catalogue, catalogue
from serving.adapters import store
from serving.adapters.tables import DeploymentRow
from serving.vocabulary import Adapter, Deployment, Model
from serving.web.schemas import AdapterOut, DeploymentOut, LoadOut, ModelOut, ReplicaOut


def model(value: Model, replicas_ready: int = 0) -> ModelOut:
    """One base model."""
    seen = ModelOut.model_validate(value)
    return seen.model_copy(update={"replicas_ready": replicas_ready, "capabilities": sorted(value.capabilities)})


async def models(tx: AsyncSession, firm_id: str | None) -> list[ModelOut]:
    """Every base model with the ready replicas that serve this firm (None: anybody)."""
    ready = await store.ready_counts(tx)
    serving: Counter[str] = Counter()
    for row in await store.deployments(tx, firm_ids=None if firm_id is None else {firm_id, PLATFORM_FIRM}):
        serving[row.model] += ready.get(row.id, 0)
    return [model(value, serving[value.name]) for value in await catalogue.list_models(tx)]


def adapter(value: Adapter, replicas_ready: int = 0) -> AdapterOut:
    """One adapter."""
    return AdapterOut.model_validate(value).model_copy(update={"replicas_ready": replicas_ready})


async def adapters(tx: AsyncSession, firm_id: str | None) -> list[AdapterOut]:
    """A firm's adapters (None: every firm's) with the replicas that have each."""
    found = await adapter_catalogue.list_adapters(tx, firm_id)
    ready = await store.ready_loads(tx, [value.id for value in found])
    return [adapter(value, ready.get(value.id, 0)) for value in found]


async def one_adapter(tx: AsyncSession, value: Adapter) -> AdapterOut:
    """One adapter with the replicas that have it."""
    return adapter(value, (await store.ready_loads(tx, [value.id])).get(value.id, 0))


async def deployments(tx: AsyncSession, firm_ids: Collection[str] | None) -> list[DeploymentOut]:
    """Deployments of these firms (None: of all)."""
    ready = await store.ready_counts(tx)
    return [_deployment(row, ready.get(row.id, 0)) for row in await store.deployments(tx, firm_ids=firm_ids)]


async def one_deployment(tx: AsyncSession, value: Deployment) -> DeploymentOut:
    """One deployment."""
    row = await store.deployment(tx, value.id)
    assert row is not None, "the caller has it"
    return _deployment(row, (await store.ready_counts(tx)).get(value.id, 0))


async def replicas(
    tx: AsyncSession, firm_id: str | None, *, deployment_id: str | None, ended: bool
) -> list[ReplicaOut]:
    """Replicas of one firm's deployments (None: of all), with their adapters.

    Adapters on shared replicas are many firms': only the platform sees those.
    """
    chosen = [row.id for row in await store.deployments(tx, firm_ids=None if firm_id is None else {firm_id})]
    if deployment_id is not None:
        chosen = [one for one in chosen if one == deployment_id]
    rows = await store.replicas(tx, deployment_ids=chosen, live_only=not ended)
    loads: dict[str, list[LoadOut]] = {}
    for load in await store.loads(tx, [row.id for row in rows]):
        loads.setdefault(load.replica_id, []).append(LoadOut.model_validate(load))
    return [
        ReplicaOut.model_validate(store.replica_of(row)).model_copy(update={"adapters": loads.get(row.id, [])})
        for row in rows
    ]


def _deployment(row: DeploymentRow, replicas_ready: int) -> DeploymentOut:
    return DeploymentOut.model_validate(row).model_copy(update={"replicas_ready": replicas_ready})
