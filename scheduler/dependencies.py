"""Jobs that run after other jobs: a small graph without cycles, resolved when what is waited for ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias, assert_never

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from kit import events
from kit.clock import Clock
from kit.db import Database, notify
from kit.errors import Conflict, InvalidInput, NotFound
from scheduler import attempts
from scheduler.adapters import store
from scheduler.adapters.tables import ArrayRow, DependencyRow, WorkloadRow
from scheduler.admission import topic
from scheduler.specs import After
from scheduler.vocabulary import JOBS_CHANNEL, AfterRule, EndCause, JobState, WaitReason, WorkloadKind

AFTER_MAX = 32


@dataclass(frozen=True, slots=True)
class Awaited:
    """What a job waits for, and how it ended: None while it has not."""

    id: str
    rule: AfterRule
    succeeded: bool | None


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything ended as it should."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """It waits; the detail names for what."""

    detail: str


@dataclass(frozen=True, slots=True)
class Hopeless:
    """Something ended in another way than it waited for."""

    detail: str


Stand: TypeAlias = Ready | Blocked | Hopeless


def stand(awaited: Sequence[Awaited]) -> Stand:
    """Where a job stands that waits for these."""
    for one in awaited:
        if one.succeeded is not None and not _as_wished(one.rule, one.succeeded):
            how = "succeeded" if one.succeeded else "did not succeed"
            return Hopeless(f"{one.id} {how}, and this job was to run only if it {_WISHED[one.rule]}")
    open_ones = [f"{one.id} ({_WISHED[one.rule]})" for one in awaited if one.succeeded is None]
    return Blocked(f"waits until: {', '.join(open_ones)}") if open_ones else Ready()


async def add(tx: AsyncSession, job: WorkloadRow, after: Sequence[After], *, now: datetime) -> None:
    """Let a job that has not started wait for these; the caller has locked it, or just made it.

    Raises NotFound for another firm's or unknown work, Conflict (`dependency_cycle`, `job_started`), InvalidInput.
    """
    if not after:
        return
    if job.state not in (JobState.BLOCKED, JobState.QUEUED, JobState.PAUSED):
        raise Conflict(
            f"job {job.id} has started or is over ({job.state})", code="job_started", hint="submit it anew with --after"
        )
    known = {row.after_id for row in await _rows(tx, job.id)}
    for edge in after:
        await _require_own(tx, job, edge.id)
        if edge.id in known:
            raise InvalidInput(
                f"{job.id} waits for {edge.id} already", code="dependency_twice", hint="name each of them once"
            )
        known.add(edge.id)
        if edge.id == job.id or await _reaches(tx, edge.id, job.id):
            what = "it cannot wait for itself" if edge.id == job.id else f"{edge.id} itself waits for {job.id}"
            raise Conflict(
                f"{what}: it would never start",
                code="dependency_cycle",
                hint="see what a job waits for: heliu job show",
            )
        await store.insert(tx, DependencyRow(workload_id=job.id, after_id=edge.id, rule=edge.rule))
    if len(known) > AFTER_MAX:
        raise InvalidInput(
            f"a job may wait for {AFTER_MAX} others, not for {len(known)}",
            code="too_many_dependencies",
            hint="let a job or an array stand for several of them",
        )
    if job.state != JobState.PAUSED:
        await settle(tx, job, now=now)


async def settle(tx: AsyncSession, job: WorkloadRow, *, now: datetime) -> bool:
    """Let a job stand where what it waits for puts it: blocked, queued or cancelled; whether that changed anything."""
    before = job.state, job.wait_detail
    match stand(await awaited_by(tx, job.id)):
        case Blocked(detail):
            job.state, job.wait_reason, job.wait_detail, job.eta = JobState.BLOCKED, WaitReason.AFTER, detail, None
            job.eta_estimated, job.held_until = False, None
        case Ready():
            if job.state != JobState.QUEUED:
                job.state, job.wait_reason, job.wait_detail = JobState.QUEUED, WaitReason.NEW, WaitReason.NEW.sentence
        case Hopeless(detail):
            job.stop_requested_at, job.stop_reason = now, detail
            job.last_cause, job.last_message = EndCause.CANCELLED, detail
            await attempts.finish_workload(tx, job, JobState.CANCELLED, now=now)
        case never:
            assert_never(never)
    await tx.flush()
    if before == (job.state, job.wait_detail):
        return False
    if job.ended_at is None:
        body = {"state": job.state, "detail": job.wait_detail}
        await events.append(tx, topic(job, "dependencies"), job.id, body, now=now, firm_id=job.firm_id)
    await notify(tx, JOBS_CHANNEL, job.id)
    return True


async def awaited_by(tx: AsyncSession, job_id: str) -> list[Awaited]:
    """What a job waits for, in the order of ids, and how each ended."""
    rows = await _rows(tx, job_id)
    return [Awaited(row.after_id, AfterRule(row.rule), await _succeeded(tx, row.after_id)) for row in rows]


async def resolve(db: Database, clock: Clock) -> int:
    """Look again at jobs of whose awaited work some is over; returns how many moved."""
    async with db.transaction() as tx:
        rows = await tx.execute(
            text("""
                SELECT DISTINCT d.workload_id FROM scheduler.workload w
                JOIN scheduler.dependency d ON d.workload_id = w.id
                LEFT JOIN scheduler.workload a ON a.id = d.after_id
                LEFT JOIN scheduler.job_array r ON r.id = d.after_id
                WHERE w.state = 'blocked' AND w.ended_at IS NULL AND (a.ended_at IS NOT NULL OR r.ended_at IS NOT NULL)
                ORDER BY d.workload_id""")
        )
        ids = list(rows.scalars())
    moved = 0
    for job_id in ids:
        async with db.transaction() as tx:
            job = await store.workload(tx, job_id, lock=True)
            if job is not None and job.state == JobState.BLOCKED:
                moved += await settle(tx, job, now=clock.now())
    return moved


_WISHED = {AfterRule.OK: "succeeds", AfterRule.ANY: "ends", AfterRule.FAILED: "ends without success"}


def _as_wished(rule: AfterRule, succeeded: bool) -> bool:
    match rule:
        case AfterRule.OK:
            return succeeded
        case AfterRule.ANY:
            return True
        case AfterRule.FAILED:
            return not succeeded


async def _succeeded(tx: AsyncSession, after_id: str) -> bool | None:
    if after_id.startswith("arr_"):
        found = await tx.execute(
            text("""
                SELECT ended_at IS NULL, cancelled_at IS NULL AND NOT EXISTS (
                    SELECT FROM (SELECT DISTINCT ON (array_index) state FROM scheduler.workload
                        WHERE array_id = :array ORDER BY array_index, array_run DESC) AS last
                    WHERE last.state <> 'succeeded')
                FROM scheduler.job_array WHERE id = :array"""),
            {"array": after_id},
        )
        is_open, succeeded = found.one()
        return None if is_open else bool(succeeded)
    job = await store.workload(tx, after_id)
    assert job is not None, "workloads are never deleted"
    return None if job.ended_at is None else job.state == JobState.SUCCEEDED


async def _require_own(tx: AsyncSession, job: WorkloadRow, after_id: str) -> None:
    """Another firm's work is NotFound like work that is not there."""
    row: ArrayRow | WorkloadRow | None
    if after_id.startswith("arr_"):
        row = await tx.get(ArrayRow, after_id)
    else:
        row = await store.workload(tx, after_id)
        row = row if row is not None and row.kind == WorkloadKind.JOB else None
    if row is None or row.firm_id != job.firm_id:
        raise NotFound(
            f"There is no job or array {after_id} to run after.", code="job_not_found", hint="see: heliu job list"
        )


async def _reaches(tx: AsyncSession, start: str, target: str) -> bool:
    """Whether `start` waits, over any number of others, for `target`."""
    await tx.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('dependency', 0))"))  # no two at once
    found = await tx.execute(
        text("""
            WITH RECURSIVE before (id) AS (
                SELECT CAST(:start AS text)
                UNION SELECT d.after_id FROM scheduler.dependency d JOIN before b ON d.workload_id = b.id)
            SELECT EXISTS (SELECT FROM before WHERE id = :target)"""),
        {"start": start, "target": target},
    )
    return bool(found.scalar_one())


async def _rows(tx: AsyncSession, job_id: str) -> Sequence[DependencyRow]:
    query = select(DependencyRow).where(DependencyRow.workload_id == job_id).order_by(col(DependencyRow.after_id))
    return (await tx.execute(query)).scalars().all()
