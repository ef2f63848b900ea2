"""Quotes and jobs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Header, Query, Response

from kit import events
from kit.errors import InvalidInput
from kit.ids import new_id
from kit.units import MicroYuan
from quotas.api import Action, CurrentPrincipal, Db, Now
from scheduler import artifacts, checkpoints, dependencies, explain, jobs, quotes
from scheduler.adapters import store
from scheduler.logs import AFTER_START, follow_position, log_page
from scheduler.specs import After, cpu_milli_of, gpu_milli_of, ranked
from scheduler.vocabulary import JOB_OVER, JobState, WorkloadKind
from scheduler.web.edge import EdgeOf, acting_firm, acting_project, may_touch
from scheduler.web.schemas import (
    ArtifactOut,
    Before,
    EventOut,
    EventsOut,
    FirmQuery,
    JobDetailOut,
    JobIn,
    JobOut,
    Limit,
    LogLineOut,
    LogOut,
    QuoteIn,
    QuoteOut,
    Wait,
    WorkIn,
)
from scheduler.web.views import artifact_out, job_detail_out, job_out, quote_out, why_out
from scheduler.web.why_schemas import WhyOut

router = APIRouter(prefix="/api", tags=["jobs"])

T = TypeVar("T")
Key = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200, description="twice the same: one job")
]
FOLLOW_POLL_SECONDS = 0.5


@router.post("/quotes", status_code=201)
async def ask_quote(body: QuoteIn, principal: CurrentPrincipal, db: Db, now: Now, edge: EdgeOf) -> QuoteOut:
    """Price, who pays, expected start and finish, before you submit. Holds for 15 minutes."""
    firm = acting_firm(principal, body.firm_id, Action.JOB_SUBMIT)
    project = acting_project(principal, body.project_id)
    quote = await quotes.quote_job(
        db, edge.blobs, spec_of(body), firm_id=firm, project_id=project, terms=edge.terms, now=now
    )
    return quote_out(quote)


@router.post("/jobs", status_code=201)
async def submit(
    body: JobIn, principal: CurrentPrincipal, db: Db, now: Now, edge: EdgeOf, response: Response, key: Key = None
) -> JobOut:
    """Submit a job. 201 when this call made it, 200 when the idempotency key had made it before."""
    firm = acting_firm(principal, body.firm_id, Action.JOB_SUBMIT)
    made = await jobs.submit_job(
        db,
        edge.blobs,
        spec_of(body),
        firm_id=firm,
        project_id=acting_project(principal, body.project_id),
        idempotency_key=key or new_id("once"),
        quote_id=body.quote_id,
        by=principal,
        terms=edge.terms,
        now=now,
    )
    response.status_code = 201 if made.created else 200
    return job_out(made.job, now=now)


@router.get("/jobs")
async def list_jobs(
    principal: CurrentPrincipal,
    db: Db,
    now: Now,
    firm_id: FirmQuery = None,
    state: Annotated[list[JobState] | None, Query()] = None,
    before: Before = None,
    limit: Limit = 50,
) -> list[JobOut]:
    """A firm's jobs, newest first."""
    firm = acting_firm(principal, firm_id, Action.JOB_READ)
    async with db.transaction() as tx:
        rows = await store.workloads(
            tx, firm_id=firm, kind=WorkloadKind.JOB, states=state or (), before=before, limit=limit
        )
    return [job_out(row, now=now) for row in rows]


@router.get("/jobs/{job_id}")
async def view_job(job_id: str, principal: CurrentPrincipal, db: Db, now: Now) -> JobDetailOut:
    """A job with its attempts and what it made."""
    async with db.transaction() as tx:
        job = await jobs.job_of(tx, job_id)
        may_touch(principal, Action.JOB_READ, job)
        tries = list(await store.attempts_of(tx, job.id))
        placed = await store.placements(tx, [attempt.id for attempt in tries])
        made = await artifacts.artifacts_of(tx, job.id)
        kept = await checkpoints.checkpoint_of(tx, job.id)
        awaited = await dependencies.awaited_by(tx, job.id)
    return job_detail_out(job, tries, placed, made, kept, awaited, now=now)


@router.post("/jobs/{job_id}/cancel")
async def cancel(job_id: str, principal: CurrentPrincipal, db: Db, now: Now, edge: EdgeOf) -> JobOut:
    """Stop a job: at once while it waits, else its runner is asked and has a grace period."""
    async with db.transaction() as tx:
        may_touch(principal, Action.JOB_CANCEL, await jobs.job_of(tx, job_id))
        job = await jobs.cancel_job(tx, job_id, by=principal, terms=edge.terms, now=now)
    return job_out(job, now=now)


@router.get("/jobs/{job_id}/why")
async def why(job_id: str, principal: CurrentPrincipal, db: Db, now: Now, edge: EdgeOf) -> WhyOut:
    """Which rule holds it, what would let it start, and when."""
    async with db.transaction() as tx:
        job = await jobs.job_of(tx, job_id)
        may_touch(principal, Action.JOB_READ, job)
        return why_out(await explain.why(tx, job, edge.terms, now=now))


@router.get("/jobs/{job_id}/artifacts")
async def job_artifacts(job_id: str, principal: CurrentPrincipal, db: Db) -> list[ArtifactOut]:
    """What the job made; empty until it has succeeded."""
    async with db.transaction() as tx:
        job = await jobs.job_of(tx, job_id)
        may_touch(principal, Action.ARTIFACT_READ, job)
        return [artifact_out(artifact) for artifact in await artifacts.artifacts_of(tx, job.id)]


@router.get("/jobs/{job_id}/logs")
async def logs(
    job_id: str,
    principal: CurrentPrincipal,
    db: Db,
    after: Annotated[str, Query(max_length=40)] = AFTER_START,
    limit: Annotated[int, Query(ge=1, le=2000)] = 500,
    wait_seconds: Wait = 0,
) -> LogOut:
    """Log lines after a cursor. With `wait_seconds` the answer comes when there is a line, or the job is over."""

    async def look() -> LogOut:
        async with db.transaction() as tx:
            job = await jobs.job_of(tx, job_id)
            may_touch(principal, Action.JOB_READ, job)
            lines = await log_page(tx, job_id, after=after, limit=limit)
        told = [LogLineOut(cursor=follow_position(line), at=line.at, text=line.text) for line in lines]
        over = job.state in JOB_OVER and len(lines) < limit
        return LogOut(lines=told, cursor=told[-1].cursor if told else after, over=over)

    return await _until(look, lambda page: bool(page.lines) or page.over, wait_seconds)


@router.get("/jobs/{job_id}/events")
async def job_events(
    job_id: str,
    principal: CurrentPrincipal,
    db: Db,
    after: Annotated[str, Query(max_length=60)] = events.START,
    wait_seconds: Wait = 0,
) -> EventsOut:
    """What happened to a job after a cursor: states, reasons, progress. Waits like the logs do."""

    async def look() -> EventsOut:
        async with db.transaction() as tx:
            job = await jobs.job_of(tx, job_id)
            may_touch(principal, Action.JOB_READ, job)
            seen = await events.read(tx, after=events.Cursor(after), subject=job_id)
        told = [EventOut(cursor=e.cursor, at=e.at, topic=e.topic, body=dict(e.body)) for e in seen]
        over = job.state in JOB_OVER and not told
        return EventsOut(events=told, cursor=told[-1].cursor if told else after, over=over)

    return await _until(look, lambda page: bool(page.events) or page.over, wait_seconds)


async def _until(look: Callable[[], Awaitable[T]], enough: Callable[[T], bool], seconds: int) -> T:
    """The first page that is enough, or the last one before time is up."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        page = await look()
        if enough(page) or loop.time() >= deadline:
            return page
        await asyncio.sleep(FOLLOW_POLL_SECONDS)


def _least(body: QuoteIn) -> int | None:
    """The fewest workers of an elastic gang; None for one of a fixed size. Raises InvalidInput."""
    least = body.workers_min
    if least is not None and least > body.workers:
        raise InvalidInput(
            f"workers_min is {least} and workers {body.workers}", code="bad_workers", hint="the least comes first"
        )
    return None if least == body.workers else least


def spec_of(body: QuoteIn) -> jobs.JobSpec:
    """What a request asks for."""
    pools, ranks = ranked(body.pools)
    cap, retries = (body.cap_micro_yuan, body.retries) if isinstance(body, WorkIn) else (None, 0)
    return jobs.JobSpec(
        name=body.name or body.recipe,
        recipe=body.recipe,
        params=body.params,
        inputs=tuple(jobs.InputRef(item.name, item.source_id) for item in body.inputs),
        pools=pools,
        ranks=ranks,
        workers=body.workers,
        workers_min=_least(body),
        gpu_milli=gpu_milli_of(body.gpus, cpus=body.cpus),
        cpu_milli=cpu_milli_of(body.cpus),
        memory_mib=body.memory_mib,
        spread=body.spread,
        topology=body.topology,
        qos=body.qos,
        priority=body.priority,
        max_runtime_seconds=body.max_runtime_seconds,
        cap_micro_yuan=MicroYuan(cap) if cap is not None else None,
        deadline=body.deadline,
        expected_seconds=body.expected_seconds,
        retries=retries,
        after=tuple(After(edge.id, edge.rule) for edge in body.after) if isinstance(body, JobIn) else (),
    )
