"""/api: models, adapters, deployments, replicas, engines. Translates, and asks who may."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response

from kit.blobs import Blobs
from kit.errors import NotFound
from quotas import api as quotas
from quotas.api import Action, CurrentPrincipal, Db, Now, require
from quotas.vocabulary import PLATFORM_FIRM, FirmId, ProjectId
from scheduler import api as scheduler
from serving import adapter_catalogue, catalogue, deployments, engines, losses
from serving.catalogue import ModelSpec
from serving.deployments import DeploymentSpec
from serving.visibility import adapters_of, allow, deployments_of, sees_adapters, sees_deployments
from serving.vocabulary import Deployment, DeploymentKind
from serving.web import overview
from serving.web.schemas import (
    AdapterIn,
    AdapterOut,
    DeploymentIn,
    DeploymentOut,
    EngineLineOut,
    LossOut,
    ModelChange,
    ModelIn,
    ModelOut,
    ReplicaOut,
    ScaleIn,
)

FirmQuery = Annotated[str | None, Query(max_length=64)]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128)]

models = APIRouter(prefix="/api/models", tags=["models"])


@models.post("", status_code=201)
async def register_model(body: ModelIn, principal: CurrentPrincipal, db: Db, now: Now) -> ModelOut:
    """Add a base model to the catalogue."""
    require(principal, Action.MODEL_MANAGE, firm_id=None)
    fields: dict[str, Any] = body.model_dump() | {"capabilities": frozenset(body.capabilities)}
    async with db.transaction() as tx:
        return overview.model(await catalogue.register_model(tx, ModelSpec(**fields), by=principal, now=now))


@models.get("")
async def list_models(principal: CurrentPrincipal, db: Db) -> list[ModelOut]:
    """Every base model, and how many ready replicas serve the caller."""
    require(principal, Action.MODEL_READ, firm_id=None)
    async with db.transaction() as tx:
        return await overview.models(tx, principal.firm_id)


@models.get("/{name}")
async def view_model(name: str, principal: CurrentPrincipal, db: Db) -> ModelOut:
    """One base model."""
    require(principal, Action.MODEL_READ, firm_id=None)
    async with db.transaction() as tx:
        await catalogue.get_model(tx, name)
        return next(entry for entry in await overview.models(tx, principal.firm_id) if entry.name == name)


@models.patch("/{name}")
async def change_model(name: str, body: ModelChange, principal: CurrentPrincipal, db: Db, now: Now) -> ModelOut:
    """Change a base model; what concerns the engine replaces its replicas one by one."""
    require(principal, Action.MODEL_MANAGE, firm_id=None)
    changes = body.model_dump(exclude_unset=True)
    async with db.transaction() as tx:
        return overview.model(await catalogue.change_model(tx, name, changes, by=principal, now=now))


def adapter_router(blobs: Blobs) -> APIRouter:
    """The routes of /api/adapters; registering one reads its files."""
    adapters = APIRouter(prefix="/api/adapters", tags=["adapters"])

    @adapters.post("", status_code=201)
    async def register_adapter(body: AdapterIn, principal: CurrentPrincipal, db: Db, now: Now) -> AdapterOut:
        """Register the adapter of a finished fine-tune job (done by itself; needed after its name was refused)."""
        absent = NotFound(
            f"there is no job {body.job_id} with an adapter",
            code="job_not_found",
            hint="name a fine-tune that succeeded; see: heliu job list",
        )
        async with db.transaction() as tx:
            made = await scheduler.artifacts_of(tx, body.job_id)
        if not made:
            raise absent
        firm_id = made[0].firm_id
        allow(principal, Action.ADAPTER_MANAGE, firm_id, seen=sees_adapters(principal, firm_id), absent=absent)
        adapter = await adapter_catalogue.register_from_job(
            db, blobs, body.job_id, now=now, name=body.name, by=principal
        )
        if adapter is None:
            raise absent
        return overview.adapter(adapter)

    @adapters.get("")
    async def list_adapters(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[AdapterOut]:
        """Your firm's adapters, refused ones with the reason."""
        chosen = adapters_of(principal, firm_id)
        async with db.transaction() as tx:
            return await overview.adapters(tx, chosen)

    @adapters.get("/{adapter}")
    async def view_adapter(adapter: str, principal: CurrentPrincipal, db: Db) -> AdapterOut:
        """One adapter, by id or by name."""
        async with db.transaction() as tx:
            found = await adapter_catalogue.get_adapter(tx, adapter, firm_id=principal.firm_id)
            if not sees_adapters(principal, found.firm_id):
                raise adapter_catalogue.not_found(adapter)
            return await overview.one_adapter(tx, found)

    @adapters.delete("/{adapter}", status_code=204)
    async def delete_adapter(adapter: str, principal: CurrentPrincipal, db: Db, now: Now) -> Response:
        """Delete an adapter: no request reaches it from now on, running ones finish, then replicas unload it."""
        async with db.transaction() as tx:
            found = await adapter_catalogue.get_adapter(tx, adapter, firm_id=principal.firm_id)
            seen = sees_adapters(principal, found.firm_id)
            absent = adapter_catalogue.not_found(adapter)
            allow(principal, Action.ADAPTER_MANAGE, found.firm_id, seen=seen, absent=absent)
            await adapter_catalogue.retire(tx, found.id, by=principal, now=now)
        return Response(status_code=204)

    return adapters


serving = APIRouter(prefix="/api", tags=["deployments"])


@serving.post("/deployments", status_code=201)
async def create_deployment(
    body: DeploymentIn, principal: CurrentPrincipal, db: Db, now: Now, key: IdempotencyKey = None
) -> DeploymentOut:
    """Serve a model. Send an Idempotency-Key: sent twice it makes one deployment."""
    shared = body.kind is DeploymentKind.SHARED
    firm_id = PLATFORM_FIRM if shared else quotas.home_firm(principal)
    if shared or principal.firm_id is None:
        require(principal, Action.MODEL_MANAGE, firm_id=None)
    require(principal, Action.DEPLOYMENT_MANAGE, firm_id=firm_id)
    if not shared and firm_id == PLATFORM_FIRM:
        raise NotFound("only a firm can have a dedicated deployment", code="firm_not_found", hint="use kind shared")
    async with db.transaction() as tx:
        named = body.project_id or (None if shared else principal.project_id)
        project = await quotas.project_of(tx, ProjectId(named) if named else None, firm_id)
        spec = DeploymentSpec(
            model=body.model,
            kind=body.kind,
            firm_id=firm_id,
            project_id=project.id,
            pool=body.pool,
            qos=body.qos,
            replicas_min=body.replicas_min,
            replicas=body.replicas,
            replicas_max=body.replicas if body.replicas_max is None and body.replicas else body.replicas_max or 1,
        )
        made = await deployments.create(tx, spec, by=principal, now=now, key=key)
        return await overview.one_deployment(tx, made)


@serving.get("/deployments")
async def list_deployments(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[DeploymentOut]:
    """Your firm's deployments and the shared ones."""
    firms = deployments_of(principal, firm_id)
    async with db.transaction() as tx:
        return await overview.deployments(tx, firms)


@serving.get("/deployments/{deployment_id}")
async def view_deployment(deployment_id: str, principal: CurrentPrincipal, db: Db) -> DeploymentOut:
    """One deployment."""
    async with db.transaction() as tx:
        found = await deployments.get(tx, deployment_id)
        if not sees_deployments(principal, found.firm_id):
            raise deployments.not_found(deployment_id)
        return await overview.one_deployment(tx, found)


@serving.post("/deployments/{deployment_id}/scale")
async def scale(deployment_id: str, body: ScaleIn, principal: CurrentPrincipal, db: Db, now: Now) -> DeploymentOut:
    """Change how many replicas there should be."""
    async with db.transaction() as tx:
        _may_manage(principal, await deployments.get(tx, deployment_id))
        changed = await deployments.scale(tx, deployment_id, **body.model_dump(), by=principal, now=now)
        return await overview.one_deployment(tx, changed)


@serving.post("/deployments/{deployment_id}/restart")
async def restart(deployment_id: str, principal: CurrentPrincipal, db: Db, now: Now) -> DeploymentOut:
    """Replace its replicas one by one with fresh ones."""
    async with db.transaction() as tx:
        _may_manage(principal, await deployments.get(tx, deployment_id))
        return await overview.one_deployment(tx, await deployments.restart(tx, deployment_id, by=principal, now=now))


@serving.post("/deployments/{deployment_id}/stop")
async def stop(deployment_id: str, principal: CurrentPrincipal, db: Db, now: Now) -> DeploymentOut:
    """Drain and stop its replicas, for good."""
    async with db.transaction() as tx:
        _may_manage(principal, await deployments.get(tx, deployment_id))
        return await overview.one_deployment(tx, await deployments.stop(tx, deployment_id, by=principal, now=now))


def _may_manage(principal: CurrentPrincipal, deployment: Deployment) -> None:
    seen = sees_deployments(principal, deployment.firm_id)
    absent = deployments.not_found(deployment.id)
    allow(principal, Action.DEPLOYMENT_MANAGE, deployment.firm_id, seen=seen, absent=absent)


@serving.get("/replicas")
async def list_replicas(
    principal: CurrentPrincipal,
    db: Db,
    deployment_id: Annotated[str | None, Query(max_length=64)] = None,
    ended: bool = False,
) -> list[ReplicaOut]:
    """Replicas of your firm's deployments (for the platform's staff: of all), with the adapters loaded on each."""
    require(principal, Action.DEPLOYMENT_READ, firm_id=FirmId(principal.firm_id) if principal.firm_id else None)
    async with db.transaction() as tx:
        if deployment_id is not None:
            found = await deployments.get(tx, deployment_id)
            if not sees_deployments(principal, found.firm_id):
                raise deployments.not_found(deployment_id)
        return await overview.replicas(tx, principal.firm_id, deployment_id=deployment_id, ended=ended)


@serving.get("/engines")
async def engine_counts(principal: CurrentPrincipal, db: Db) -> list[EngineLineOut]:
    """Tokens billed against the engines' own counters, one line per engine start, each with a verdict."""
    require(principal, Action.LEDGER_VERIFY, firm_id=None)
    async with db.transaction() as tx:
        return [EngineLineOut.model_validate(line) for line in await engines.reconcile(tx)]


@serving.get("/engines/losses")
async def engine_losses(principal: CurrentPrincipal, db: Db) -> list[LossOut]:
    """Tokens that engines computed for callers and nobody was billed for, booked as the platform's loss."""
    require(principal, Action.LEDGER_VERIFY, firm_id=None)
    async with db.transaction() as tx:
        return [LossOut.model_validate(loss) for loss in await losses.losses(tx)]
