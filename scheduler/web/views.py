"""Rows and services' answers as the schemas show them."""

from datetime import datetime

from quotas.vocabulary import ComputeQuote
from scheduler.adapters.tables import AttemptRow, CheckpointRow, PlacementRow, WorkloadRow
from scheduler.arrays import ArrayView
from scheduler.dependencies import Awaited
from scheduler.explain import Explanation, Place, expected_finish
from scheduler.quotes import Quote
from scheduler.vocabulary import ArtifactView, JobState, WaitReason
from scheduler.web.array_schemas import ArrayOut
from scheduler.web.schemas import (
    ArtifactOut,
    AttemptOut,
    AwaitedOut,
    CheckpointOut,
    JobDetailOut,
    JobOut,
    OfferOut,
    QuoteOut,
)
from scheduler.web.why_schemas import QueueEntryOut, ScoresOut, WhyOut


def job_out(job: WorkloadRow, *, now: datetime) -> JobOut:
    """A job as its owner sees it."""
    return JobOut(
        **{name: getattr(job, name) for name in JobOut.model_fields if hasattr(job, name)},
        stopping=job.stop_requested_at is not None and job.ended_at is None,
        pausing=job.pause_requested_at is not None and job.state in (JobState.STARTING, JobState.RUNNING),
        expected_start=job.eta,
        expected_finish=expected_finish(job, now=now),
        estimated=job.eta_estimated,
        cause=job.last_cause,
        message=job.last_message,
    )


def job_detail_out(
    job: WorkloadRow,
    attempts: list[AttemptRow],
    placed: dict[str, list[PlacementRow]],
    made: list[ArtifactView],
    kept: CheckpointRow | None,
    awaited: list[Awaited],
    *,
    now: datetime,
) -> JobDetailOut:
    """A job with its attempts and what it made."""
    return JobDetailOut(
        **job_out(job, now=now).model_dump(),
        attempts=[attempt_out(attempt, placed[attempt.id]) for attempt in attempts],
        artifacts=[artifact_out(artifact) for artifact in made],
        checkpoint=CheckpointOut.model_validate(kept) if kept else None,
        after=[AwaitedOut(id=one.id, rule=one.rule, succeeded=one.succeeded) for one in awaited],
    )


def attempt_out(attempt: AttemptRow, placed: list[PlacementRow]) -> AttemptOut:
    """One try at a job."""
    fields = {name: getattr(attempt, name) for name in AttemptOut.model_fields if hasattr(attempt, name)}
    return AttemptOut(**fields, nodes=[row.node_id for row in placed], devices=[row.devices for row in placed])


def artifact_out(artifact: ArtifactView) -> ArtifactOut:
    """A file that a job made."""
    return ArtifactOut.model_validate({name: getattr(artifact, name) for name in ArtifactOut.model_fields})


def array_out(one: ArrayView) -> ArrayOut:
    """An array and where its tasks stand."""
    own = {name: getattr(one.row, name) for name in ArrayOut.model_fields if hasattr(one.row, name)}
    return ArrayOut(
        **own,
        state=one.state,
        waiting=one.waiting,
        counts=dict(one.counts),
        charged_micro_yuan=one.charged_micro_yuan,
    )


def quote_out(quote: Quote) -> QuoteOut:
    """A quote."""
    return QuoteOut(
        id=quote.id,
        project_id=quote.project_id,
        min_micro_yuan=quote.cheapest.min_micro_yuan,
        max_micro_yuan=quote.dearest.max_micro_yuan,
        voucher_pays_max_micro_yuan=quote.dearest.voucher_pays_max,
        cash_max_micro_yuan=quote.dearest.cash_max,
        affordable=any(offer.affordable for offer in quote.offers.values()),
        offers=[_offer_out(pool, offer) for pool, offer in quote.offers.items()],
        expected_start=quote.forecast.start,
        expected_finish=quote.forecast.finish,
        estimated=quote.forecast.estimated,
        wait_reason=quote.forecast.reason,
        wait_detail=quote.forecast.detail,
        seconds_min=quote.seconds_min,
        expected_seconds=quote.expected_seconds,
        max_runtime_seconds=quote.max_runtime_seconds,
        basis=quote.basis,
        expires_at=quote.expires_at,
    )


def why_out(told: Explanation) -> WhyOut:
    """Why a job stands where it stands."""
    job = told.job
    return WhyOut(
        id=job.id,
        state=JobState(job.state),
        sentence=told.sentence,
        reason=WaitReason(job.wait_reason) if job.wait_reason else None,
        rule=told.rule,
        detail=job.wait_detail,
        would_start=told.would_start,
        expected_start=job.eta,
        estimated=job.eta_estimated,
        standing=told.standing,
        position=told.position,
        waiting=told.waiting,
        pool=told.pool,
        score=ScoresOut.model_validate(told.told) if told.told else None,
    )


def place_out(place: Place) -> QueueEntryOut:
    """A place in the queue."""
    row = place.workload
    assert row.wait_reason is not None, "what waits has a reason"
    return QueueEntryOut(
        position=place.position,
        id=row.id,
        kind=row.kind,
        name=row.name,
        firm_id=row.firm_id,
        priority=row.priority,
        need_milli=row.need_milli,
        pools=row.pools,
        standing=place.standing,
        promised_first=place.promised_first,
        reason=WaitReason(row.wait_reason),
        detail=row.wait_detail or WaitReason(row.wait_reason).sentence,
        expected_start=row.eta,
        estimated=row.eta_estimated,
        submitted_at=row.submitted_at,
    )


def _offer_out(pool: str, offer: ComputeQuote) -> OfferOut:
    return OfferOut(
        pool=pool,
        tariff_id=offer.tariff_id,
        min_micro_yuan=offer.min_micro_yuan,
        max_micro_yuan=offer.max_micro_yuan,
        voucher_pays_min_micro_yuan=offer.voucher_pays_min,
        voucher_pays_max_micro_yuan=offer.voucher_pays_max,
        cash_min_micro_yuan=offer.cash_min,
        cash_max_micro_yuan=offer.cash_max,
        voucher_ids=list(offer.voucher_ids),
        explanation=list(offer.explanation),
        affordable=offer.affordable,
    )
