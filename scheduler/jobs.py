"""Jobs as their owners handle them: submitted once, seen, explained, cancelled at every state."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import Principal
from kit.blobs import Blobs
from kit.db import Database, notify, violated_constraint
from kit.errors import Conflict, InvalidInput, NoMoney, NotFound, Refused
from kit.ids import new_id
from kit.units import MicroYuan, format_yuan
from quotas import api as quotas
from quotas.vocabulary import ComputeQuote, FirmId, PoolName, ProjectId
from scheduler import attempts, dependencies, durations
from scheduler.adapters import store
from scheduler.adapters.tables import InputRow, QuoteRow, WorkloadRow
from scheduler.admission import topic
from scheduler.cycle import refusal
from scheduler.facts import load_state
from scheduler.firm_limits import require_budget, require_room
from scheduler.inputs import resolve_inputs
from scheduler.inventories import useful_files
from scheduler.recipes import DataFile, Prepared, prepare
from scheduler.snapshot import State, Waiting
from scheduler.specs import InputRef as InputRef
from scheduler.specs import JobSpec as JobSpec
from scheduler.specs import content_hash as content_hash
from scheduler.specs import require_to_come
from scheduler.terms import Terms
from scheduler.vocabulary import (
    JOB_OVER,
    JOBS_CHANNEL,
    AttemptState,
    EndCause,
    JobState,
    RejectReason,
    WaitReason,
    WorkloadId,
    WorkloadKind,
)


@dataclass(frozen=True, slots=True)
class Submission:
    """The job, and whether this call made it."""

    job: WorkloadRow
    created: bool


async def submit_job(
    db: Database,
    blobs: Blobs,
    spec: JobSpec,
    *,
    firm_id: FirmId,
    project_id: ProjectId | None,
    idempotency_key: str,
    quote_id: str | None,
    by: Principal,
    terms: Terms,
    now: datetime,
) -> Submission:
    """Take a job into the queue; sending it twice under one key makes one job.

    Raises Conflict (`idempotency_conflict`, `quote_mismatch`), InvalidInput for parameters and data, NotFound for a
    foreign project or file, Refused with the rule's code (`no_quota`, `too_large`, `unknown_pool`, `quote_expired`),
    NoMoney when it could not be paid even if nothing else ran.
    """
    async with db.transaction() as tx:
        await quotas.require_active(tx, firm_id)
        project = await quotas.project_of(tx, project_id, firm_id)
        request_hash = spec.request_hash(project.id, quote_id)
        known = await _known(tx, firm_id, idempotency_key, request_hash)
        if known is not None:
            return Submission(known, created=False)  # also when what it reads was deleted since
        require_to_come(spec, now=now)
        files = await resolve_inputs(tx, spec.inputs, firm_id=firm_id)
    prepared = await prepare_job(blobs, spec, files, terms=terms)
    async with db.transaction() as tx:
        prepared = await durations.expect(
            tx, prepared, firm_id=firm_id, name=spec.name, declared_seconds=spec.expected_seconds
        )
    job = row_of(spec, prepared, files, firm_id, project.id, by=by, now=now)
    job.idempotency_key, job.request_hash = idempotency_key, request_hash
    try:
        async with db.transaction() as tx:
            await _accept(tx, job, spec, prepared, files, quote_id, terms=terms, now=now)
    except IntegrityError as error:
        if violated_constraint(error) != "workload_idempotency":
            raise
        async with db.transaction() as tx:  # somebody else was faster with the same key
            same = await _known(tx, firm_id, idempotency_key, request_hash)
            assert same is not None, "the constraint has seen it"
            return Submission(same, created=False)
    return Submission(job, created=True)


async def prepare_job(blobs: Blobs, spec: JobSpec, files: Sequence[InputRow], *, terms: Terms) -> Prepared:
    """Check parameters and data with the recipe itself and learn how long it takes. Raises InvalidInput."""
    data = {row.name: DataFile(row.size_bytes, blobs.read(row.blob)) for row in files}
    prepared = await prepare(spec.recipe, spec.params, data, spec.max_runtime_seconds)
    if prepared.max_runtime_seconds > terms.max_runtime_seconds:
        raise InvalidInput(
            f"it may run {terms.max_runtime_seconds} seconds at most, not {prepared.max_runtime_seconds}",
            code="runtime_too_long",
            hint="set max_runtime_seconds",
        )
    if spec.workers > prepared.recipe.workers_max:
        raise InvalidInput(
            f"recipe {spec.recipe} runs with at most {prepared.recipe.workers_max} workers, not with {spec.workers}",
            code="too_many_workers",
            hint="ask for fewer, or make several jobs of it",
        )
    return prepared


def as_candidate(spec: JobSpec, prepared: Prepared, firm_id: FirmId, *, id: str, now: datetime) -> Waiting:
    """The job as decisions would see it if it were submitted now."""
    return Waiting(
        WorkloadId(id),
        firm_id,
        spec.pools,
        spec.workers,
        spec.gpu_milli,
        spec.priority,
        now,
        prepared.expected_seconds,
        qos=spec.qos,
        deadline=spec.deadline,
        cpu_milli=spec.cpu_milli,
        memory_mib=spec.memory_mib,
        spread=spec.spread,
        topology=spec.topology,
        checkpoints=prepared.recipe.checkpoints,
        workers_min=spec.workers_min,
        ranks=spec.ranks,
    )


async def price(
    tx: AsyncSession,
    spec: JobSpec,
    prepared: Prepared,
    firm_id: FirmId,
    pool: PoolName,
    *,
    cap: int | None = None,
    now: datetime,
) -> ComputeQuote:
    """What it costs in one pool, at most `cap` micro-yuan. Raises Refused (`no_tariff`)."""
    return await quotas.quote_compute(
        tx,
        firm_id=firm_id,
        pool=pool,
        qos=spec.qos,
        gpu_milli=spec.need_milli,
        seconds_min=prepared.seconds_min,
        seconds_max=prepared.max_runtime_seconds,
        cap_micro_yuan=None if cap is None else MicroYuan(cap),
        at=now,
        now=now,
    )


def refuse_hopeless(candidate: Waiting, state: State) -> None:
    """Raises Refused with the rule's code when the job can never run as it is."""
    reject = refusal(candidate, state)
    if reject is None:
        return
    hints = {
        RejectReason.NO_QUOTA: "ask the platform's administrator for quota, or ask for less",
        RejectReason.TOO_LARGE: "ask for less per worker, for fewer workers, or for another spread or topology",
        RejectReason.UNKNOWN_POOL: "see the pools: heliu pool list",
    }
    raise Refused(f"This job can never run: {reject.detail}.", code=reject.reason.value, hint=hints[reject.reason])


async def job_of(tx: AsyncSession, job_id: str, *, lock: bool = False) -> WorkloadRow:
    """The job. Raises NotFound."""
    row = await store.workload(tx, job_id, lock=lock)
    if row is None or row.kind != WorkloadKind.JOB:
        raise job_not_found(job_id)
    return row


def job_not_found(job_id: str) -> NotFound:
    """The one answer for a job that does not exist and for another firm's."""
    return NotFound(f"There is no job {job_id}.", code="job_not_found", hint="see: heliu job list")


async def cancel_job(tx: AsyncSession, job_id: str, *, by: Principal, terms: Terms, now: datetime) -> WorkloadRow:
    """Stop a job: at once when nothing runs, else its runner is asked and has its grace. Asking again is fine.

    Raises NotFound, Conflict (`job_over`) for a job that has ended.
    """
    job = await job_of(tx, job_id, lock=True)
    if job.state in JOB_OVER:
        raise Conflict(f"job {job.id} is over ({job.state})", code="job_over", hint="nothing is left to cancel")
    await stop(tx, job, f"cancelled by {by.id}", terms=terms, now=now)
    return job


async def stop(tx: AsyncSession, workload: WorkloadRow, reason: str, *, terms: Terms, now: datetime) -> None:
    """End a workload at its owner's word; the caller has locked it. No attempt claimed: it ends here and now."""
    workload.stop_requested_at, workload.stop_reason = workload.stop_requested_at or now, workload.stop_reason or reason
    attempt = await store.live_attempt(tx, workload.id)
    if attempt is None:
        workload.last_cause, workload.last_message = EndCause.CANCELLED, reason
        await attempts.finish_workload(tx, workload, JobState.CANCELLED, now=now)
    elif attempt.state == AttemptState.PLACED:
        attempt = await store.attempt(tx, attempt.id, lock=True)
        assert attempt is not None, "attempts are never deleted"
        await attempts.end(tx, workload, attempt, EndCause.CANCELLED, reason, terms=terms, now=now)
    else:
        await attempts.request_stop(tx, attempt, EndCause.CANCELLED, reason, now=now)
        await events.append(
            tx, topic(workload, "stopping"), workload.id, {"reason": reason}, now=now, firm_id=workload.firm_id
        )
    await notify(tx, JOBS_CHANNEL, workload.id)


def fresh(*, now: datetime) -> dict[str, Any]:
    """What every job has when it is new."""
    return {
        "id": new_id("job"),
        "kind": WorkloadKind.JOB,
        "state": JobState.QUEUED,
        "fence": 0,
        "failures": 0,
        "wait_reason": WaitReason.NEW,
        "wait_detail": WaitReason.NEW.sentence,
        "eta_estimated": False,
        "charged_micro_yuan": 0,
        "submitted_at": now,
    }


def row_of(
    spec: JobSpec,
    prepared: Prepared,
    files: Sequence[InputRow],
    firm_id: FirmId,
    project_id: ProjectId,
    *,
    by: Principal,
    now: datetime,
) -> WorkloadRow:
    """The row of a job as it is submitted."""
    return WorkloadRow(
        **fresh(now=now),
        name=spec.name,
        firm_id=firm_id,
        project_id=project_id,
        submitted_by=by.id,
        recipe=spec.recipe,
        program=prepared.recipe.program,
        params=prepared.params,
        sandboxed=prepared.recipe.sandboxed,
        workers_min=spec.workers_min,
        workers_max=None if spec.workers_min is None else spec.workers,
        checkpoints=prepared.recipe.checkpoints,
        model=prepared.model,
        files=useful_files(firm_id, files),
        pools=list(spec.pools),
        pool_ranks=list(spec.ranks) or None,
        workers=spec.workers,
        gpu_milli=spec.gpu_milli,
        cpu_milli=spec.cpu_milli,
        memory_mib=spec.memory_mib,
        spread=spec.spread,
        topology=spec.topology,
        qos=spec.qos,
        priority=spec.priority,
        expected_seconds=prepared.expected_seconds,
        max_runtime_seconds=prepared.max_runtime_seconds,
        cap_micro_yuan=spec.cap_micro_yuan,
        hard_cap_micro_yuan=spec.cap_micro_yuan,
        retries=spec.retries,
        estimated_seconds=prepared.estimated_seconds,
        duration_basis=prepared.basis,
        deadline=spec.deadline,
    )


async def _accept(
    tx: AsyncSession,
    job: WorkloadRow,
    spec: JobSpec,
    prepared: Prepared,
    files: Sequence[InputRow],
    quote_id: str | None,
    *,
    terms: Terms,
    now: datetime,
) -> None:
    firm_id = FirmId(job.firm_id)
    candidate = as_candidate(spec, prepared, firm_id, id=job.id, now=now)
    refuse_hopeless(candidate, await load_state(tx, terms, now=now))
    await require_room(tx, job, now=now)
    if quote_id is not None:
        quote = await _quote(tx, quote_id, firm_id, spec.shape_hash(job.project_id), now=now)
        job.quote_id = quote.id
        job.cap_micro_yuan = min(job.cap_micro_yuan or quote.max_micro_yuan, quote.max_micro_yuan)
        if job.retries:  # each try is charged, and none runs on for nothing
            job.hard_cap_micro_yuan = job.cap_micro_yuan
    await require_payable(tx, job, spec, prepared, now=now)
    await store.insert(tx, job)
    await store.insert(
        tx,
        *(
            InputRow(workload_id=job.id, name=f.name, blob=f.blob, sha256=f.sha256, size_bytes=f.size_bytes)
            for f in files
        ),
    )
    body = {"name": job.name, "recipe": job.recipe, "pools": job.pools, "quote_id": job.quote_id}
    await events.append(tx, "job.submitted", job.id, body, now=now, firm_id=firm_id)
    await notify(tx, JOBS_CHANNEL, job.id)
    await dependencies.add(tx, job, spec.after, now=now)


async def require_payable(
    tx: AsyncSession, job: WorkloadRow, spec: JobSpec, prepared: Prepared, *, now: datetime
) -> None:
    """It must be affordable somewhere, or become so if all that is held for the firm's other work comes back."""
    firm_id, cap = FirmId(job.firm_id), job.cap_micro_yuan
    offers = [await price(tx, spec, prepared, firm_id, pool, cap=cap, now=now) for pool in spec.pools]
    least = min(offer.max_micro_yuan for offer in offers)
    await require_budget(tx, job, least, now=now)
    if any(offer.affordable for offer in offers):
        return
    available = (await quotas.account_of(tx, firm_id)).available
    held = sum(hold.amount for hold in await quotas.open_holds(tx) if hold.firm_id == firm_id)
    cash = min(offer.cash_max for offer in offers)
    if cash <= available + held:
        return  # it waits for money instead
    raise NoMoney(
        f"This job may cost up to {format_yuan(least)}, {format_yuan(cash)} of it in cash; the firm has "
        f"{format_yuan(available)}, and {format_yuan(held)} is on hold for other work.",
        hint="top up, ask for a voucher, or set a shorter max_runtime_seconds or a cap",
    )


async def _quote(tx: AsyncSession, quote_id: str, firm_id: str, shape_hash: bytes, *, now: datetime) -> QuoteRow:
    quote = await store.quote(tx, quote_id)
    if quote is None or quote.firm_id != firm_id:
        raise NotFound(f"There is no quote {quote_id}.", code="quote_not_found", hint="ask for one: heliu quote")
    if now >= quote.expires_at:
        raise Refused(
            f"Quote {quote_id} held until {quote.expires_at:%H:%M:%S} UTC.", code="quote_expired", hint="ask again"
        )
    if quote.shape_hash != shape_hash:
        raise Conflict(
            f"Quote {quote_id} was for another job.", code="quote_mismatch", hint="ask for a quote for this one"
        )
    return quote


async def _known(tx: AsyncSession, firm_id: str, key: str, request_hash: bytes) -> WorkloadRow | None:
    known = await store.workload_by_key(tx, firm_id, WorkloadKind.JOB, key)
    if known is not None and known.request_hash != request_hash:
        raise Conflict(
            f"idempotency key {key!r} was used for another job ({known.id})",
            code="idempotency_conflict",
            hint="use a new key for a new job",
        )
    return known
