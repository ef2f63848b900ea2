"""What an owner does with a job under way: lay it aside and take it up again, and say how much it matters."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import Principal
from kit.db import notify
from kit.errors import Conflict
from scheduler import attempts, dependencies
from scheduler.adapters import store
from scheduler.adapters.tables import WorkloadRow
from scheduler.admission import topic
from scheduler.jobs import job_of
from scheduler.specs import After
from scheduler.terms import Terms
from scheduler.vocabulary import JOB_OVER, JOBS_CHANNEL, AttemptState, EndCause, JobState, WaitReason


async def pause_job(tx: AsyncSession, job_id: str, *, by: Principal, terms: Terms, now: datetime) -> WorkloadRow:
    """Lay a job aside: at once while nothing of it runs, else its program gets its grace to keep a checkpoint.

    What it ran is charged: it is the owner's wish. Asking again is fine. Raises NotFound, Conflict (`job_over`,
    `job_stopping`).
    """
    job = await _under_way(tx, job_id)
    if job.pause_requested_at is not None:
        return job
    reason = f"paused by {by.id}"
    job.pause_requested_at, job.pause_reason = now, reason
    if job.cap_micro_yuan is not None:  # what ran before and is not kept was paid for: it may not run on for nothing
        job.hard_cap_micro_yuan = min(job.cap_micro_yuan, job.hard_cap_micro_yuan or job.cap_micro_yuan)
    attempt = await store.live_attempt(tx, job.id)
    if attempt is None:
        await attempts.lay_aside(tx, job, now=now)
    elif attempt.state == AttemptState.PLACED:
        attempt = await store.attempt(tx, attempt.id, lock=True)
        assert attempt is not None, "attempts are never deleted"
        await attempts.end(tx, job, attempt, EndCause.PAUSED, reason, terms=terms, now=now)
    else:
        await attempts.request_stop(tx, attempt, EndCause.PAUSED, reason, now=now)
    await notify(tx, JOBS_CHANNEL, job.id)
    return job


async def resume_job(tx: AsyncSession, job_id: str, *, by: Principal, now: datetime) -> WorkloadRow:
    """Queue a job again that was laid aside; it begins at its last checkpoint. Raises NotFound, Conflict."""
    job = await _under_way(tx, job_id)
    if job.pause_requested_at is None:
        raise Conflict(f"job {job.id} is not paused ({job.state})", code="job_not_paused", hint="see: heliu job show")
    job.pause_requested_at = job.pause_reason = None
    if job.state == JobState.PAUSED:  # else its attempt still ends, and it is queued again when that is done
        job.state, job.wait_reason, job.wait_detail = JobState.QUEUED, WaitReason.NEW, WaitReason.NEW.sentence
        job.progress = None  # its next attempt tells where it begins
        await tx.flush()
        await dependencies.settle(tx, job, now=now)
        await events.append(tx, topic(job, "resumed"), job.id, {"by": by.id}, now=now, firm_id=job.firm_id)
    await notify(tx, JOBS_CHANNEL, job.id)
    return job


async def run_after(tx: AsyncSession, job_id: str, after: Sequence[After], *, now: datetime) -> WorkloadRow:
    """Let a job that has not started wait for others too. Raises what `dependencies.add` raises."""
    job = await _under_way(tx, job_id)
    await dependencies.add(tx, job, after, now=now)
    return job


async def set_priority(
    tx: AsyncSession, job_id: str, priority: int, *, by: Principal, now: datetime
) -> tuple[WorkloadRow, int]:
    """A job's priority among its firm's own work, from the next cycle on; returns the old one too. Raises NotFound."""
    job = await _under_way(tx, job_id)
    before, job.priority = job.priority, priority
    await tx.flush()
    if before != priority:
        body = {"before": before, "after": priority, "by": by.id}
        await events.append(tx, topic(job, "priority"), job.id, body, now=now, firm_id=job.firm_id)
        await notify(tx, JOBS_CHANNEL, job.id)
    return job, before


async def _under_way(tx: AsyncSession, job_id: str) -> WorkloadRow:
    job = await job_of(tx, job_id, lock=True)
    if job.state in JOB_OVER:
        raise Conflict(f"job {job.id} is over ({job.state})", code="job_over", hint="submit it again")
    if job.stop_requested_at is not None:
        raise Conflict(f"job {job.id} has been told to stop", code="job_stopping", hint="submit it again")
    return job
