"""A quote: the price, who pays, when it starts and ends. It holds for 15 minutes and its maximum caps the charge."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from kit.blobs import Blobs
from kit.db import Database
from kit.ids import new_id
from quotas import api as quotas
from quotas.vocabulary import ComputeQuote, FirmId, PoolName, ProjectId
from scheduler import durations, jobs
from scheduler.adapters import store
from scheduler.adapters.tables import QuoteRow
from scheduler.facts import load_state, rates_for
from scheduler.inputs import resolve_inputs
from scheduler.quote import Forecast, forecast
from scheduler.recipes import Prepared
from scheduler.specs import require_to_come
from scheduler.terms import Terms
from scheduler.vocabulary import QuoteId


@dataclass(frozen=True, slots=True)
class Quote:
    """What was told. Amounts are those of the dearest acceptable pool at most and the cheapest at least."""

    id: QuoteId
    project_id: ProjectId
    offers: dict[PoolName, ComputeQuote]
    forecast: Forecast
    seconds_min: int
    expected_seconds: int
    max_runtime_seconds: int
    basis: str  # where the expected duration comes from
    expires_at: datetime

    @property
    def dearest(self) -> ComputeQuote:
        """The offer of the pool with the highest maximum: it caps the charge."""
        return max(self.offers.values(), key=lambda offer: offer.max_micro_yuan)

    @property
    def cheapest(self) -> ComputeQuote:
        """The offer of the pool with the lowest minimum."""
        return min(self.offers.values(), key=lambda offer: offer.min_micro_yuan)


async def quote_job(
    db: Database,
    blobs: Blobs,
    spec: jobs.JobSpec,
    *,
    firm_id: FirmId,
    project_id: ProjectId | None,
    terms: Terms,
    now: datetime,
) -> Quote:
    """Price and time of a job as if it were submitted now; it is checked as strictly. Nothing is held.

    Raises what `jobs.submit_job` raises, except for lack of money: the quote says whether it is affordable.
    """
    async with db.transaction() as tx:
        await quotas.require_active(tx, firm_id)
        project = await quotas.project_of(tx, project_id, firm_id)
        require_to_come(spec, now=now)
        files = await resolve_inputs(tx, spec.inputs, firm_id=firm_id)
    prepared = await jobs.prepare_job(blobs, spec, files, terms=terms)
    async with db.transaction() as tx:
        prepared = await durations.expect(
            tx, prepared, firm_id=firm_id, name=spec.name, declared_seconds=spec.expected_seconds
        )
        state = await load_state(tx, terms, now=now)
        candidate = jobs.as_candidate(spec, prepared, firm_id, id=new_id("job"), now=now)
        state = replace(state, rates=await rates_for(tx, [*state.waiting.values(), candidate], now=now))
        jobs.refuse_hopeless(candidate, state)
        offers = {pool: await jobs.price(tx, spec, prepared, firm_id, pool, now=now) for pool in spec.pools}
        quote = _quote(project.id, prepared, offers, forecast(state, candidate, terms.policy, now=now), terms, now)
        await store.insert(tx, _row(quote, firm_id, spec.shape_hash(project.id), now=now))
    return quote


def _quote(
    project_id: ProjectId,
    prepared: Prepared,
    offers: dict[PoolName, ComputeQuote],
    told: Forecast,
    terms: Terms,
    now: datetime,
) -> Quote:
    return Quote(
        QuoteId(new_id("quo")),
        project_id,
        offers,
        told,
        prepared.seconds_min,
        prepared.expected_seconds,
        prepared.max_runtime_seconds,
        prepared.basis,
        now + timedelta(seconds=terms.quote_seconds),
    )


def _row(quote: Quote, firm_id: FirmId, shape_hash: bytes, *, now: datetime) -> QuoteRow:
    body: dict[str, Any] = {
        "start": quote.forecast.start.isoformat() if quote.forecast.start else None,
        "finish": quote.forecast.finish.isoformat() if quote.forecast.finish else None,
        "tariffs": {pool: offer.tariff_id for pool, offer in quote.offers.items()},
    }
    return QuoteRow(
        id=quote.id,
        firm_id=firm_id,
        project_id=quote.project_id,
        shape_hash=shape_hash,
        max_micro_yuan=quote.dearest.max_micro_yuan,
        body=body,
        created_at=now,
        expires_at=quote.expires_at,
    )
