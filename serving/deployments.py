"""Deployments: what a firm or the platform wants served. The controller makes it so."""

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import Principal
from kit.db import notify
from kit.errors import Conflict, InvalidInput, NotFound
from kit.ids import new_id
from quotas.api import audit
from quotas.vocabulary import PLATFORM_FIRM, QoS
from serving import catalogue
from serving.adapters import store
from serving.adapters.tables import DeploymentRow
from serving.vocabulary import REPLICAS_CHANNEL, Deployment, DeploymentKind, DeploymentState

REPLICAS_MAX = 64


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """A deployment as it is asked for. `replicas` is the fixed count within its bounds."""

    model: str
    kind: DeploymentKind
    firm_id: str
    project_id: str
    pool: str
    qos: QoS
    replicas_min: int
    replicas: int
    replicas_max: int


async def create(
    tx: AsyncSession, spec: DeploymentSpec, *, by: Principal, now: datetime, key: str | None = None
) -> Deployment:
    """A new deployment; its replicas follow. The same idempotency `key` again is the deployment it made.

    Raises NotFound for the model, InvalidInput for bounds, Conflict for a key that was used for something else.
    """
    asked = asdict(spec)
    if key is not None:
        await store.lock_name(tx, f"deployment:{spec.firm_id}:{key}")
        standing = await store.deployment_by_key(tx, spec.firm_id, key)
        if standing is not None and standing.asked != asked:
            raise Conflict(
                "this idempotency key was used for another deployment",
                code="idempotency_conflict",
                hint="send another key",
            )
        if standing is not None:
            return store.deployment_of(standing)
    model = await catalogue.get_model(tx, spec.model)
    if model.retires_at is not None and model.retires_at <= now:
        raise Conflict(f"the model {model.name} is retired", code="model_retired", hint="deploy a newer one")
    assert (spec.kind is DeploymentKind.SHARED) == (spec.firm_id == PLATFORM_FIRM), "the platform pays what is shared"
    _check_bounds(spec.replicas_min, spec.replicas, spec.replicas_max)
    row = DeploymentRow(
        id=new_id("dep"),
        model=model.name,
        kind=spec.kind.value,
        firm_id=spec.firm_id,
        project_id=spec.project_id,
        pool=spec.pool,
        qos=spec.qos.value,
        replicas_min=spec.replicas_min,
        replicas=spec.replicas,
        replicas_max=spec.replicas_max,
        generation=1,
        state=DeploymentState.ACTIVE.value,
        created_by=by.id,
        idempotency_key=key,
        asked=asked,
        created_at=now,
        changed_at=now,
    )
    tx.add(row)
    await tx.flush()
    await _announce(tx, row, "deployment.created", by=by, now=now)
    return store.deployment_of(row)


async def scale(
    tx: AsyncSession,
    deployment_id: str,
    *,
    replicas: int | None = None,
    replicas_min: int | None = None,
    replicas_max: int | None = None,
    by: Principal,
    now: datetime,
) -> Deployment:
    """Change how many replicas there should be. Raises Conflict for a stopped deployment, InvalidInput for bounds."""
    row = await _active(tx, deployment_id)
    least = row.replicas_min if replicas_min is None else replicas_min
    most = row.replicas_max if replicas_max is None else replicas_max
    wanted = min(max(row.replicas, least), most) if replicas is None else replicas
    _check_bounds(least, wanted, most)
    row.replicas_min, row.replicas, row.replicas_max, row.changed_at = least, wanted, most, now
    row.blocked_until = row.blocked_reason = None
    await tx.flush()
    await _announce(tx, row, "deployment.scaled", by=by, now=now)
    return store.deployment_of(row)


async def restart(tx: AsyncSession, deployment_id: str, *, by: Principal, now: datetime) -> Deployment:
    """Replace its replicas one by one with fresh ones. Raises Conflict for a stopped deployment."""
    row = await _active(tx, deployment_id)
    row.generation, row.changed_at, row.blocked_until, row.blocked_reason = row.generation + 1, now, None, None
    await tx.flush()
    await _announce(tx, row, "deployment.restarted", by=by, now=now)
    return store.deployment_of(row)


async def stop(tx: AsyncSession, deployment_id: str, *, by: Principal, now: datetime) -> Deployment:
    """Drain and stop its replicas, for good; stopping it again changes nothing."""
    row = await _row(tx, deployment_id, lock=True)
    if row.state != DeploymentState.STOPPED.value:
        row.state, row.changed_at = DeploymentState.STOPPED.value, now
        await tx.flush()
        await _announce(tx, row, "deployment.stopped", by=by, now=now)
    return store.deployment_of(row)


async def get(tx: AsyncSession, deployment_id: str) -> Deployment:
    """The deployment of this id. Raises NotFound."""
    return store.deployment_of(await _row(tx, deployment_id))


def not_found(deployment_id: str) -> NotFound:
    """The one answer for a deployment that does not exist and for one that is somebody else's."""
    return NotFound(
        f"there is no deployment {deployment_id}", code="deployment_not_found", hint="see: heliu deploy list"
    )


async def _row(tx: AsyncSession, deployment_id: str, *, lock: bool = False) -> DeploymentRow:
    row = await store.deployment(tx, deployment_id, lock=lock)
    if row is None:
        raise not_found(deployment_id)
    return row


async def _active(tx: AsyncSession, deployment_id: str) -> DeploymentRow:
    row = await _row(tx, deployment_id, lock=True)
    if row.state != DeploymentState.ACTIVE.value:
        raise Conflict(f"the deployment {deployment_id} is stopped", code="deployment_stopped", hint="create a new one")
    return row


async def _announce(tx: AsyncSession, row: DeploymentRow, topic: str, *, by: Principal, now: datetime) -> None:
    body = {"model": row.model, "replicas": row.replicas, "generation": row.generation}
    await audit.record(tx, topic, row.id, by=by, now=now, firm_id=row.firm_id, after=body)
    await events.append(tx, topic, row.id, body, now=now, firm_id=row.firm_id)
    await notify(tx, REPLICAS_CHANNEL, "*")


def _check_bounds(least: int, wanted: int, most: int) -> None:
    if not 0 <= least <= wanted <= most <= REPLICAS_MAX or most < 1:
        raise InvalidInput(
            f"replicas must satisfy 0 ≤ min ({least}) ≤ replicas ({wanted}) ≤ max ({most}) ≤ {REPLICAS_MAX}, max ≥ 1",
            code="replica_bounds",
        )
