"""What runners say and are told: plan, heartbeats, exits. The node protocol's meaning, without HTTP."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from urllib.parse import quote

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.units import MicroYuan
from quotas import api as quotas
from quotas.vocabulary import FirmId, PoolName, QoS
from scheduler import attempts, checkpoints, inventories
from scheduler.adapters import records, store
from scheduler.adapters.records import Attempt, Workload
from scheduler.adapters.tables import AttemptRow, InputRow, WorkloadRow
from scheduler.admission import topic
from scheduler.lifetimes import seconds_left
from scheduler.node.protocol import (
    Cause,
    CheckpointFile,
    FinishedIn,
    HeartbeatIn,
    HeartbeatOut,
    InputFile,
    Outcome,
    Plan,
)
from scheduler.ports import cluster_resources
from scheduler.terms import Terms
from scheduler.vocabulary import AttemptIdentity, EndCause, WorkloadKind

_CAUSES = {
    Cause.DONE: EndCause.DONE,
    Cause.STOPPED: EndCause.PLATFORM,  # nobody asked it to
    Cause.TIME_LIMIT: EndCause.TIME_LIMIT,
    Cause.BAD_INPUT: EndCause.PROGRAM_ERROR,
    Cause.BAD_PARAMS: EndCause.PROGRAM_ERROR,
    Cause.PROGRAM_FAILED: EndCause.PROGRAM_ERROR,
    Cause.OUT_OF_MEMORY: EndCause.PROGRAM_ERROR,
    Cause.OUTPUT_REFUSED: EndCause.PROGRAM_ERROR,
    Cause.INPUT_UNAVAILABLE: EndCause.SETUP,
    Cause.MODEL_MISSING: EndCause.SETUP,
    Cause.SETUP_FAILED: EndCause.SETUP,
    Cause.UPLOAD_FAILED: EndCause.PLATFORM,
    Cause.ENGINE_DIED: EndCause.PLATFORM,
    Cause.KILLED: EndCause.PLATFORM,
}
_CREDENTIAL = re.compile(r"\b(h[la]_[A-Za-z0-9_]+?_|hs_)[A-Za-z0-9_-]{20,}")


async def plan(tx: AsyncSession, identity: AttemptIdentity, runner: str, *, terms: Terms, now: datetime) -> Plan:
    """Claim the attempt and say what to run. Raises Conflict (`fence_lost`) for a second runner."""
    attempt = await attempts.claim(tx, identity, runner, terms=terms, now=now)
    workload = await store.workload(tx, identity.workload_id)
    assert workload is not None, "an attempt belongs to a workload"
    placed = (await store.placements(tx, [attempt.id]))[attempt.id]
    nodes = {node.id: node for node in await store.nodes(tx, pool=PoolName(attempt.pool))}
    first, kept = nodes[placed[0].node_id], await checkpoints.checkpoint_of(tx, workload.id)
    limit = await _seconds_allowed(tx, workload, attempt, now=now)
    return Plan(
        attempt_id=attempt.id,
        workload_id=workload.id,
        kind="replica" if identity.kind is WorkloadKind.REPLICA else "job",
        program=workload.program,
        params=workload.params,
        inputs=[_input(attempt, row) for row in await store.inputs(tx, workload.id)],
        sandboxed=workload.sandboxed,
        lease_seconds=terms.lease_seconds,
        heartbeat_seconds=terms.heartbeat_seconds,
        grace_seconds=terms.grace_seconds,
        max_runtime_seconds=limit,
        workers=workload.workers,
        gpu_milli=workload.gpu_milli,
        cpu_milli=workload.cpu_milli,
        memory_mib=workload.memory_mib,
        nodes=[row.node_id for row in placed],
        devices=[list(row.devices) for row in placed],
        devices_variable=first.devices_variable,
        worker_resources=cluster_resources(first.resource, workload.shape),
        output_bytes_max=terms.output_bytes_max,
        output_files_max=terms.output_files_max,
        task_index=workload.array_index,
        checkpoint=CheckpointFile(step=kept.step, sha256=kept.sha256, bytes=kept.size_bytes) if kept else None,
        checkpoint_bytes_max=terms.checkpoint_bytes_max,
        firm_id=workload.firm_id,
        model=workload.model,
    )


async def heartbeat(
    tx: AsyncSession, identity: AttemptIdentity, report: HeartbeatIn, *, terms: Terms, now: datetime
) -> HeartbeatOut:
    """Extend the lease, keep log and progress, pass on the wish to stop. Raises Conflict (`fence_lost`)."""
    workload = await store.workload(tx, identity.workload_id, lock=True)
    assert workload is not None, "an attempt belongs to a workload"
    until = now + timedelta(seconds=terms.lease_seconds)
    if not await store.renew_lease(tx, identity.attempt_id, identity.fence, until):
        raise attempts.fence_lost()
    lines = [(line.seq, _without_credentials(line.text)) for line in report.log]
    await store.add_log_lines(tx, identity.workload_id, identity.fence, lines, now)
    await inventories.record(tx, identity.attempt_id, report.inventories, now=now)
    if report.progress is not None:
        await _keep_progress(tx, workload, identity, report, now=now)
    return HeartbeatOut(
        lease_seconds=terms.lease_seconds,
        command="stop" if identity.stop_requested else "run",
        grace_seconds=terms.grace_seconds,
    )


async def finished_many(
    tx: AsyncSession, reported: Mapping[AttemptIdentity, FinishedIn], *, terms: Terms, now: datetime
) -> set[AttemptIdentity]:
    """Runners' last words: their attempts are over, each with its cause. Whose word comes too late is missing."""
    endings: list[attempts.Ending] = []
    heard: set[AttemptIdentity] = set()
    live = await records.live_locked(tx, [identity.attempt_id for identity in reported])
    for identity, report in reported.items():
        workload, attempt = live.get(identity.attempt_id, (None, None))
        if workload is None or attempt is None or attempt.claimed_at is None:
            continue
        cause = end_cause(report, attempt, workload)
        message = _message(report, attempt, cause)
        fit = report.cause is Cause.MODEL_MISSING  # whoever names a model that is nowhere must not close nodes
        endings.append(attempts.Ending(workload, attempt, cause, message, report.ran_ms, report.exit_code, fit))
        heard.add(identity)
    if endings:
        await attempts.end_many(tx, endings, terms=terms, now=now)
    return heard


def end_cause(report: FinishedIn, attempt: Attempt, workload: Workload) -> EndCause:
    """The cause on record: what it was stopped for, if it was, else what the runner saw."""
    if report.outcome is Outcome.SUCCEEDED:
        return EndCause.DONE
    if attempt.stop_cause is not None:
        return EndCause(attempt.stop_cause)
    if report.cause is Cause.TIME_LIMIT and workload.hard_cap_micro_yuan is not None:
        allowed = seconds_left(workload.max_runtime_seconds, workload.kept_ms)
        if allowed is not None and report.ran_ms < allowed * 1000:
            return EndCause.SPENDING_CAP  # its runner was given less time than that, and this is why
    return _CAUSES[report.cause]


def _message(report: FinishedIn, attempt: Attempt, cause: EndCause) -> str:
    """What goes with that cause: a runner that was told to stop does not know why."""
    if cause is EndCause.SPENDING_CAP:
        return attempts.SPENT
    if cause == attempt.stop_cause and attempt.stop_message:
        return attempt.stop_message
    return _without_credentials(report.message) or report.cause.value


async def _seconds_allowed(
    tx: AsyncSession, workload: WorkloadRow, attempt: AttemptRow, *, now: datetime
) -> int | None:
    """What is left of its maximum runtime, or as long as what is left of its hard cap lasts; at least a second."""
    left = seconds_left(workload.max_runtime_seconds, workload.kept_ms)
    if left is None or workload.hard_cap_micro_yuan is None:
        return left
    lasts = await quotas.affordable_seconds(
        tx,
        firm_id=FirmId(workload.firm_id),
        pool=PoolName(attempt.pool),
        qos=QoS(workload.qos),
        gpu_milli=workload.need_milli,
        amount=MicroYuan(workload.hard_cap_micro_yuan - workload.charged_micro_yuan),
        seconds_max=left,
        at=now,
    )
    return max(1, lasts)


def _without_credentials(said: str) -> str:
    """What a program said, without the secrets of Heliu that it may have printed."""
    return _CREDENTIAL.sub(r"\1…", said)


def _input(attempt: AttemptRow, row: InputRow) -> InputFile:
    url = f"/internal/v1/attempts/{attempt.id}/inputs/{quote(row.name)}"
    return InputFile(name=row.name, url=url, sha256=row.sha256, bytes=row.size_bytes)


async def _keep_progress(
    tx: AsyncSession, workload: WorkloadRow, identity: AttemptIdentity, report: HeartbeatIn, *, now: datetime
) -> None:
    assert report.progress is not None, "the caller looked"
    body = report.progress.model_dump(mode="json")
    changed = await tx.execute(
        text("""
            UPDATE scheduler.workload SET progress = CAST(:progress AS jsonb)
            WHERE id = :id AND fence = :fence AND progress IS DISTINCT FROM CAST(:progress AS jsonb) RETURNING id"""),
        {"id": identity.workload_id, "fence": identity.fence, "progress": report.progress.model_dump_json()},
    )
    if changed.scalar_one_or_none() is not None:
        await events.append(tx, topic(workload, "progress"), workload.id, body, now=now, firm_id=workload.firm_id)
