"""Models, deployments and replicas for tests, made through serving's own services."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import SYSTEM
from kit.ids import new_id
from quotas.vocabulary import PLATFORM_FIRM, FirmId, ProjectId, QoS
from scheduler.vocabulary import AttemptId, AttemptIdentity, WorkloadId, WorkloadKind
from serving import catalogue, deployments
from serving.adapters.tables import AdapterRow, ReplicaRow
from serving.catalogue import ModelSpec
from serving.deployments import DeploymentSpec
from serving.engines import Counters
from serving.replica_sync import Report
from serving.vocabulary import Capability, Deployment, DeploymentKind, Modality, Model, ReplicaState
from tests.support.adapters import BASE
from tests.support.money import POOL

KEY = "engine-key-that-nobody-may-see-0123456789"


def model_spec(**changes: Any) -> ModelSpec:
    """SmolLM2 as the demo registers it."""
    values: dict[str, Any] = {
        "name": BASE,
        "display_name": "SmolLM2 135M Instruct",
        "owner": "Hugging Face",
        "licence": "Apache-2.0",
        "modality": Modality.TEXT,
        "context_tokens": 2048,
        "capabilities": frozenset({Capability.CHAT, Capability.COMPLETIONS}),
        "source": BASE,
        "revision": "1",
        "engine_arguments": {"enforce_eager": True},
        "max_loras": 2,
    }
    return ModelSpec(**(values | changes))


async def add_model(tx: AsyncSession, *, now: datetime, **changes: Any) -> Model:
    """A base model in the catalogue."""
    return await catalogue.register_model(tx, model_spec(**changes), by=SYSTEM, now=now)


async def add_project(tx: AsyncSession, firm_id: str, *, now: datetime) -> str:
    """The firm's default project; the one it has, if it has one."""
    await tx.execute(
        text("""INSERT INTO quotas.project (id, firm_id, name, created_at) VALUES (:id, :firm, 'default', :now)
                ON CONFLICT DO NOTHING"""),
        {"id": new_id("prj"), "firm": firm_id, "now": now},
    )
    row = await tx.execute(text("SELECT id FROM quotas.project WHERE firm_id = :firm"), {"firm": firm_id})
    return str(row.scalar_one())


async def deploy(tx: AsyncSession, *, now: datetime, firm_id: str | None = None, **changes: Any) -> Deployment:
    """A deployment of the base model: shared, or dedicated to `firm_id`."""
    payer = firm_id or PLATFORM_FIRM
    values: dict[str, Any] = {
        "model": BASE,
        "kind": DeploymentKind.DEDICATED if firm_id else DeploymentKind.SHARED,
        "firm_id": payer,
        "project_id": await add_project(tx, payer, now=now),
        "pool": POOL,
        "qos": QoS.STANDARD,
        "replicas_min": 0,
        "replicas": 1,
        "replicas_max": 4,
    }
    return await deployments.create(tx, DeploymentSpec(**(values | changes)), by=SYSTEM, now=now)


@dataclass
class Host:
    """A replica host as its attempt: the reports it would send."""

    replica_id: str
    workload_id: str
    attempt_id: str = field(default_factory=lambda: new_id("att"))
    engine_start: str = field(default_factory=lambda: new_id("eng"))
    fence: int = 1
    stop_requested: bool = False

    @property
    def identity(self) -> AttemptIdentity:
        return AttemptIdentity(
            AttemptId(self.attempt_id),
            WorkloadId(self.workload_id),
            WorkloadKind.REPLICA,
            FirmId("firm_x"),
            ProjectId("prj_x"),
            self.fence,
            self.stop_requested,
        )

    def report(self, state: ReplicaState = ReplicaState.READY, **changes: Any) -> Report:
        values: dict[str, Any] = {
            "state": state,
            "engine_start": self.engine_start,
            "url": "http://127.0.0.1:40001",
            "engine_key": KEY,
            "counters": Counters(10, 1, 10, 1),
        }
        return Report(**(values | changes))

    def successor(self) -> "Host":
        """The next attempt of the same workload."""
        return Host(self.replica_id, self.workload_id, fence=self.fence + 1)


async def add_replica(tx: AsyncSession, deployment: Deployment, *, now: datetime) -> Host:
    """A replica of a deployment, as the controller makes it, with a workload nobody schedules."""
    row = ReplicaRow(
        id=new_id("rep"),
        deployment_id=deployment.id,
        model=deployment.model,
        workload_id=new_id("rep"),
        generation=deployment.generation,
        max_concurrency=64,
        state=ReplicaState.PENDING.value,
        created_at=now,
        changed_at=now,
    )
    tx.add(row)
    await tx.flush()
    assert row.workload_id is not None
    return Host(row.id, row.workload_id)


async def add_adapter(tx: AsyncSession, firm_id: str, name: str, *, now: datetime, **changes: Any) -> str:
    """An adapter that passed; returns its id."""
    values: dict[str, Any] = {
        "id": new_id("adp"),
        "name": name,
        "firm_id": firm_id,
        "project_id": await add_project(tx, firm_id, now=now),
        "base_model": BASE,
        "base_revision": "1",
        "rank": 8,
        "sha256": "ab" * 32,
        "size_bytes": 1000,
        "job_id": new_id("job"),
        "weights_artifact": new_id("art"),
        "config": b"{}",
        "state": "active",
        "created_at": now,
    }
    row = AdapterRow(**(values | changes))
    tx.add(row)
    await tx.flush()
    return row.id
