"""The replica controller: follows the workloads behind the replicas and takes the steps that `replicas.plan` names."""

import logging
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.db import Database, notify
from kit.errors import HeliuError
from kit.ids import new_id
from kit.units import GpuMilli
from quotas.vocabulary import FirmId, PoolName, ProjectId, QoS
from scheduler import api as scheduler
from scheduler.api import Terms
from scheduler.vocabulary import JOB_OVER, JobState, ReplicaSpec, WorkloadId, WorkloadStatus
from serving import adapter_catalogue, replica_sync
from serving.adapters import store
from serving.adapters.tables import DeploymentRow, ModelRow, ReplicaRow
from serving.replicas import BackOff, Drain, Launch, Policy, Stop, plan
from serving.vocabulary import (
    ADAPTER_RANK_MAX,
    MAX_NUM_SEQS,
    REPLICA_OVER,
    REPLICA_PROGRAM,
    REPLICAS_CHANNEL,
    ReplicaParams,
    ReplicaState,
    may_become,
)

log = logging.getLogger(__name__)

REMEMBER_ENDED = timedelta(hours=1)  # replicas that ended longer ago no longer slow down new ones
REFUSED_PAUSE = timedelta(seconds=15)  # when the scheduler refuses a replica, it is asked again after this


async def tend(db: Database, policy: Policy, terms: Terms, *, now: datetime) -> None:
    """One pass over everything. One deployment's trouble does not keep the others waiting."""
    async with db.transaction() as tx:
        ids = await store.deployments_to_tend(tx)
    for deployment_id in ids:
        try:
            await db.retrying(lambda tx, chosen=deployment_id: tend_deployment(tx, chosen, policy, terms, now=now))
        except HeliuError as error:
            log.warning("a deployment could not be tended", extra={"deployment": deployment_id, "why": error.message})
    async with db.transaction() as tx:
        await adapter_catalogue.finish_retirements(tx, now=now)


async def tend_deployment(tx: AsyncSession, deployment_id: str, policy: Policy, terms: Terms, *, now: datetime) -> None:
    """Follow the workloads of one deployment, then take the next steps towards what it should be."""
    deployment = await store.deployment(tx, deployment_id, lock=True)
    assert deployment is not None, "deployments are never deleted"
    rows = await store.replicas(tx, deployment_ids=[deployment_id], over_since=now - REMEMBER_ENDED, lock=True)
    live = [row for row in rows if row.state not in REPLICA_OVER]
    statuses = await scheduler.workload_states(tx, [WorkloadId(r.workload_id) for r in live if r.workload_id])
    for row in live:
        await _follow(tx, row, statuses.get(WorkloadId(row.workload_id or "")), terms, now=now)
    await tx.flush()
    seen = [store.replica_of(row) for row in rows]
    by_id = {row.id: row for row in rows}
    deployment.blocked_reason = deployment.blocked_reason if _blocked(deployment, now) else None
    for action in plan(store.deployment_of(deployment), seen, policy, now=now):
        match action:
            case Launch(count):
                await _launch(tx, deployment, count, now=now)
            case BackOff(until, failures):
                deployment.blocked_until = until
                deployment.blocked_reason = f"{failures} replicas failed in a row; the next one starts after a pause"
            case Drain(replica_id, why):
                await move(tx, by_id[replica_id], ReplicaState.DRAINING, why.value, now=now)
            case Stop(replica_id, why):
                await _stop(tx, by_id[replica_id], why.value, terms, now=now)
    await tx.flush()


async def move(tx: AsyncSession, row: ReplicaRow, state: ReplicaState, reason: str | None, *, now: datetime) -> None:
    """Put a replica into another state and say so."""
    before = ReplicaState(row.state)
    row.reason = reason[:500] if reason else None
    if before is state:
        return
    assert may_become(before, state), f"a replica does not go from {before} to {state}"
    row.state, row.changed_at = state.value, now
    await tx.flush()
    body = {"from": before.value, "to": state.value, "deployment": row.deployment_id, "reason": row.reason}
    await events.append(tx, "replica.state", row.id, body, now=now)
    await notify(tx, REPLICAS_CHANNEL, row.id)


async def _follow(
    tx: AsyncSession, row: ReplicaRow, status: WorkloadStatus | None, terms: Terms, *, now: datetime
) -> None:
    """What its workload's state means for the replica."""
    if status is None or status.state in JOB_OVER:
        told = row.stop_at is not None or row.state == ReplicaState.DRAINING
        reason = row.reason if told else (status.last_message if status else None) or "its workload ended"
        await replica_sync.forget_engine(tx, row, now=now)
        await move(tx, row, ReplicaState.GONE if told else ReplicaState.FAILED, reason, now=now)
        return
    if row.state == ReplicaState.DRAINING:
        if status.state is JobState.QUEUED:  # its attempt is over: there is nothing left to finish
            await _stop(tx, row, row.reason or "drained", terms, now=now)
        return
    if row.attempt_id is not None and row.attempt_id != status.attempt_id:
        await replica_sync.forget_engine(tx, row, now=now)
        row.attempt_id = None
        await move(tx, row, ReplicaState.PENDING, status.last_message, now=now)
    if row.state == ReplicaState.PENDING and status.state is JobState.QUEUED:
        row.reason = _why_waiting(status)


def _why_waiting(status: WorkloadStatus) -> str | None:
    """The scheduler's reason for the wait, and what ended the attempt before it."""
    parts = [status.wait_detail or (status.wait_reason.sentence if status.wait_reason else None)]
    if status.failures:
        parts.append(status.last_message)
    said = "; ".join(part for part in parts if part)
    return said[:500] or None


def _blocked(deployment: DeploymentRow, now: datetime) -> bool:
    return deployment.blocked_until is not None and now < deployment.blocked_until


async def _launch(tx: AsyncSession, deployment: DeploymentRow, count: int, *, now: datetime) -> None:
    """Submit `count` replica workloads; a refusal is kept on the deployment and asked again after a pause."""
    if _blocked(deployment, now):
        return
    model = await store.model(tx, deployment.model)
    assert model is not None, "a foreign key holds it"
    for _ in range(count):
        try:
            async with tx.begin_nested():
                await _launch_one(tx, deployment, model, now=now)
        except HeliuError as refusal:
            deployment.blocked_reason, deployment.blocked_until = refusal.message[:500], now + REFUSED_PAUSE
            return
    deployment.blocked_reason = deployment.blocked_until = None


async def _launch_one(tx: AsyncSession, deployment: DeploymentRow, model: ModelRow, *, now: datetime) -> None:
    row = ReplicaRow(
        id=new_id("rep"),
        deployment_id=deployment.id,
        model=model.name,
        generation=deployment.generation,
        max_concurrency=model.engine_arguments.get("max_num_seqs", MAX_NUM_SEQS),
        state=ReplicaState.PENDING.value,
        created_at=now,
        changed_at=now,
    )
    tx.add(row)
    await tx.flush()
    spec = ReplicaSpec(
        key=row.id,
        name=f"{model.name} {deployment.id}",
        firm_id=FirmId(deployment.firm_id),
        project_id=ProjectId(deployment.project_id),
        pools=(PoolName(deployment.pool),),
        gpu_milli=GpuMilli(model.gpu_milli),
        program=REPLICA_PROGRAM,
        params=dict(replica_params(row, model)),
        qos=QoS(deployment.qos),
        model=model.source,
    )
    row.workload_id = await scheduler.submit_replica(tx, spec, now=now)
    await tx.flush()
    body = {"from": None, "to": row.state, "deployment": deployment.id, "reason": None}
    await events.append(tx, "replica.state", row.id, body, now=now)


def replica_params(row: ReplicaRow, model: ModelRow) -> ReplicaParams:
    """What the replica host is told. The engine's length and batch are always said, so that the gateway knows them."""
    arguments = {"max_model_len": model.context_tokens, "max_num_seqs": MAX_NUM_SEQS, **model.engine_arguments}
    return ReplicaParams(
        replica_id=row.id,
        deployment_id=row.deployment_id,
        model=model.name,
        source=model.source,
        revision=model.revision,
        engine_arguments=arguments,
        context_tokens=model.context_tokens,
        capabilities=list(model.capabilities),
        max_loras=model.max_loras,
        max_lora_rank=ADAPTER_RANK_MAX,
        generation=row.generation,
    )


async def _stop(tx: AsyncSession, row: ReplicaRow, why: str, terms: Terms, *, now: datetime) -> None:
    """Take it out of service and end its workload. Doing so again changes nothing."""
    if row.stop_at is not None:
        return
    row.stop_at = now
    await move(tx, row, ReplicaState.DRAINING, why, now=now)
    if row.workload_id is None:
        await move(tx, row, ReplicaState.GONE, why, now=now)
    else:
        await scheduler.stop_workload(tx, WorkloadId(row.workload_id), why, terms=terms, now=now)
