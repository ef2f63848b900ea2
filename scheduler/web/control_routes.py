"""A job under way: pause, resume, priority, what it waits for."""

from fastapi import APIRouter

from quotas.api import Action, CurrentPrincipal, Db, Now
from scheduler import job_control, jobs
from scheduler.specs import After
from scheduler.web.edge import EdgeOf, may_touch
from scheduler.web.schemas import AfterListIn, JobOut, PriorityIn
from scheduler.web.views import job_out

router = APIRouter(prefix="/api", tags=["jobs"])


@router.post("/jobs/{job_id}/pause")
async def pause(job_id: str, principal: CurrentPrincipal, db: Db, now: Now, edge: EdgeOf) -> JobOut:
    """Lay a job aside: at once while it waits, else its program gets its grace to keep a checkpoint."""
    async with db.transaction() as tx:
        may_touch(principal, Action.JOB_CANCEL, await jobs.job_of(tx, job_id))
        job = await job_control.pause_job(tx, job_id, by=principal, terms=edge.terms, now=now)
    return job_out(job, now=now)


@router.post("/jobs/{job_id}/resume")
async def resume(job_id: str, principal: CurrentPrincipal, db: Db, now: Now) -> JobOut:
    """Queue a paused job again; it goes on from its last checkpoint."""
    async with db.transaction() as tx:
        may_touch(principal, Action.JOB_SUBMIT, await jobs.job_of(tx, job_id))
        job = await job_control.resume_job(tx, job_id, by=principal, now=now)
    return job_out(job, now=now)


@router.post("/jobs/{job_id}/after")
async def run_after(job_id: str, body: AfterListIn, principal: CurrentPrincipal, db: Db, now: Now) -> JobOut:
    """Let a job that has not started wait for other work of its firm too."""
    async with db.transaction() as tx:
        may_touch(principal, Action.JOB_SUBMIT, await jobs.job_of(tx, job_id))
        edges = [After(edge.id, edge.rule) for edge in body.after]
        job = await job_control.run_after(tx, job_id, edges, now=now)
    return job_out(job, now=now)


@router.post("/jobs/{job_id}/priority")
async def priority(job_id: str, body: PriorityIn, principal: CurrentPrincipal, db: Db, now: Now) -> JobOut:
    """How much a job matters among its firm's own; other firms' work does not feel it."""
    async with db.transaction() as tx:
        may_touch(principal, Action.JOB_SUBMIT, await jobs.job_of(tx, job_id))
        job, _ = await job_control.set_priority(tx, job_id, body.priority, by=principal, now=now)
    return job_out(job, now=now)
