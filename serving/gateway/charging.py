"""Closed requests become charges: what a gateway's ledger process does with a batch of them, in one transaction."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncSession

from kit.clock import utc_now
from kit.db import Database
from quotas import api as quotas
from quotas.vocabulary import FirmId, KeyId, LeaseId, ModelName, ProjectId, TokenUsage
from quotas.vocabulary import Tokens as TokenCount
from serving import api as serving
from serving.metering import Closed


async def charge(db: Database, source: str, records: Sequence[Closed], successors: Mapping[str, str]) -> None:
    """Charge these records of gateway `source`, each once however often it comes, or none of them.

    `successors`: what a lease that was shrunk goes by now. Raises InvalidInput and Unavailable as `ports.Ledger` does.
    """
    usages = [_usage(source, record, successors) for record in records]
    of = {record.subject.id: record for record in records}

    async def work(tx: AsyncSession) -> None:
        taken = await quotas.ingest_tokens(tx, usages, now=utc_now())
        if taken.new:
            await serving.record_engine_usage(tx, _made(source, [of[usage.id] for usage in taken.new]))

    await db.retrying(work)


def _usage(source: str, record: Closed, successors: Mapping[str, str]) -> TokenUsage:
    subject, tokens = record.subject, record.tokens
    lease_id = subject.lease_id
    while lease_id is not None and lease_id in successors:
        lease_id = successors[lease_id]
    return TokenUsage(
        id=subject.id, source=source, key_id=KeyId(subject.key_id), firm_id=FirmId(subject.firm_id),
        project_id=ProjectId(subject.project_id), model=ModelName(subject.model),
        base_model=ModelName(subject.base_model), input=TokenCount(tokens.input),
        cached_input=TokenCount(tokens.cached_input), output=TokenCount(tokens.output),
        at=_instant(subject.at_ms), outcome=record.outcome.value,
        lease_id=None if lease_id is None else LeaseId(lease_id), dedicated=subject.dedicated,
    )  # fmt: skip


def _made(source: str, records: Sequence[Closed]) -> list[serving.EngineUsage]:
    """What each engine counted for them: the prompt once for each choice."""
    of_engines: dict[str, list[Closed]] = {}
    for record in records:
        of_engines.setdefault(record.subject.engine_start, []).append(record)
    return [
        serving.EngineUsage(
            source,
            engine_start,
            sum([record.tokens.input * record.subject.choices for record in made]),
            sum([record.tokens.output for record in made]),
            _instant(max([record.subject.at_ms for record in made])),
        )
        for engine_start, made in of_engines.items()
        if engine_start
    ]


def _instant(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)
