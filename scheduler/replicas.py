"""Replica workloads, for serving: a program that runs until it is stopped, on the same path as a job."""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.db import notify
from kit.errors import Conflict, NotFound
from kit.ids import new_id
from scheduler import jobs
from scheduler.adapters import store
from scheduler.adapters.tables import WorkloadRow
from scheduler.terms import Terms
from scheduler.vocabulary import (
    JOB_OVER,
    JOBS_CHANNEL,
    AttemptId,
    EndCause,
    JobState,
    PoolName,
    ReplicaSpec,
    WaitReason,
    WorkloadId,
    WorkloadKind,
    WorkloadStatus,
)


async def submit_replica(tx: AsyncSession, spec: ReplicaSpec, *, now: datetime) -> WorkloadId:
    """Queue a replica. The same key again is the same replica; Conflict when it asks for something else."""
    content = [spec.name, spec.project_id, spec.pools, spec.workers, spec.gpu_milli, spec.program, dict(spec.params)]
    request_hash = hashlib.sha256(json.dumps([*content, spec.qos, spec.priority], sort_keys=True).encode()).digest()
    await tx.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"replica:{spec.key}"})
    known = await store.workload_by_key(tx, spec.firm_id, WorkloadKind.REPLICA, spec.key)
    if known is not None:
        if known.request_hash != request_hash:
            raise Conflict(f"replica {spec.key} was asked for with other content", code="idempotency_conflict")
        return WorkloadId(known.id)
    row = WorkloadRow(
        id=new_id("rep"),
        kind=WorkloadKind.REPLICA,
        name=spec.name,
        firm_id=spec.firm_id,
        project_id=spec.project_id,
        submitted_by="serving",
        idempotency_key=spec.key,
        request_hash=request_hash,
        program=spec.program,
        params=dict(spec.params),
        model=spec.model,
        sandboxed=False,
        pools=list(spec.pools),
        workers=spec.workers,
        gpu_milli=spec.gpu_milli,
        qos=spec.qos,
        priority=spec.priority,
        state=JobState.QUEUED,
        fence=0,
        failures=0,
        wait_reason=WaitReason.NEW,
        wait_detail=WaitReason.NEW.sentence,
        eta_estimated=False,
        charged_micro_yuan=0,
        submitted_at=now,
    )
    await store.insert(tx, row)
    await events.append(tx, "workload.submitted", row.id, {"name": row.name}, now=now, firm_id=row.firm_id)
    await notify(tx, JOBS_CHANNEL, row.id)
    return WorkloadId(row.id)


async def stop_workload(
    tx: AsyncSession, workload_id: WorkloadId, reason: str, *, now: datetime, terms: Terms | None = None
) -> None:
    """Stop it for good; what is over stays over. Raises NotFound."""
    row = await store.workload(tx, workload_id, lock=True)
    if row is None:
        raise NotFound(f"There is no workload {workload_id}.", code="workload_not_found")
    if row.state not in JOB_OVER:
        await jobs.stop(tx, row, reason, terms=terms or Terms(), now=now)


async def workload_states(tx: AsyncSession, ids: Sequence[str]) -> dict[WorkloadId, WorkloadStatus]:
    """Where workloads stand, by id; unknown ids are absent."""
    found: dict[WorkloadId, WorkloadStatus] = {}
    for workload_id in ids:
        row = await store.workload(tx, workload_id)
        if row is None:
            continue
        live = await store.live_attempt(tx, row.id)
        found[WorkloadId(row.id)] = WorkloadStatus(
            id=WorkloadId(row.id),
            kind=WorkloadKind(row.kind),
            state=JobState(row.state),
            attempt_id=AttemptId(live.id) if live else None,
            pool=PoolName(live.pool) if live else None,
            wait_reason=WaitReason(row.wait_reason) if row.wait_reason else None,
            wait_detail=row.wait_detail,
            eta=row.eta,
            failures=row.failures,
            last_cause=EndCause(row.last_cause) if row.last_cause else None,
            last_message=row.last_message,
            stop_requested=row.stop_requested_at is not None,
        )
    return found
