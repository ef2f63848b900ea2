"""What engines counted themselves, and which billed requests ran on which engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from serving import counting
from serving.adapters.tables import EngineCountRow, ReplicaRow
from serving.counting import Billed, Line
from serving.vocabulary import EngineCount, EngineStartId, ModelName, ReplicaId


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading of an engine's counters; warm-up tokens are inside the totals."""

    prompt_tokens: int
    generation_tokens: int
    warmup_prompt_tokens: int
    warmup_generation_tokens: int


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """Tokens that one engine start made and gateway `source` has billed."""

    source: str
    engine_start: str
    prompt_tokens: int  # cached ones included
    generation_tokens: int
    at: datetime


async def begin(tx: AsyncSession, engine_start: str, *, replica_id: str, model: str, now: datetime) -> None:
    """Open the counters of a new engine process, at 0. Doing so again changes nothing."""
    await tx.execute(
        text("""
            INSERT INTO serving.engine_count (engine_start, replica_id, model, started_at, counted_at)
            VALUES (:start, :replica, :model, :now, :now) ON CONFLICT DO NOTHING"""),
        {"start": engine_start, "replica": replica_id, "model": model, "now": now},
    )


async def count(tx: AsyncSession, engine_start: str, counters: Counters, *, now: datetime) -> None:
    """Record a reading. A counter never goes down: a reading that arrives late is overtaken by the later one."""
    await tx.execute(
        text("""
            UPDATE serving.engine_count SET
                prompt_tokens = greatest(prompt_tokens, :prompt),
                generation_tokens = greatest(generation_tokens, :generation),
                warmup_prompt_tokens = greatest(warmup_prompt_tokens, least(:warm_prompt, :prompt)),
                warmup_generation_tokens = greatest(warmup_generation_tokens, least(:warm_generation, :generation)),
                counted_at = greatest(counted_at, :now)
            WHERE engine_start = :start"""),
        {
            "start": engine_start,
            "prompt": counters.prompt_tokens,
            "generation": counters.generation_tokens,
            "warm_prompt": counters.warmup_prompt_tokens,
            "warm_generation": counters.warmup_generation_tokens,
            "now": now,
        },
    )


async def end(tx: AsyncSession, engine_start: str, *, now: datetime) -> None:
    """Close the counters of an engine that is over. Doing so again changes nothing."""
    await tx.execute(
        text("UPDATE serving.engine_count SET ended_at = :now WHERE engine_start = :start AND ended_at IS NULL"),
        {"start": engine_start, "now": now},
    )


async def counts(tx: AsyncSession, *, since: datetime | None = None) -> list[EngineCount]:
    """Every engine start, oldest first; `since`: only those that still counted after it."""
    query = select(EngineCountRow).order_by(col(EngineCountRow.started_at), col(EngineCountRow.engine_start))
    if since is not None:
        query = query.where(col(EngineCountRow.counted_at) >= since)
    return [
        EngineCount(
            engine_start=EngineStartId(row.engine_start),
            replica_id=ReplicaId(row.replica_id),
            model=ModelName(row.model),
            prompt_tokens=row.prompt_tokens,
            generation_tokens=row.generation_tokens,
            warmup_prompt_tokens=row.warmup_prompt_tokens,
            warmup_generation_tokens=row.warmup_generation_tokens,
            started_at=row.started_at,
            counted_at=row.counted_at,
            ended=row.ended_at is not None,
        )
        for row in (await tx.execute(query)).scalars()
    ]


async def record_usage(tx: AsyncSession, usages: Sequence[EngineUsage]) -> None:
    """Add what was billed to the sums of its engines, in the transaction that bills it and only what is new there."""
    # In order, so that two batches never deadlock.
    await tx.execute(
        text("""
            INSERT INTO serving.engine_usage AS had (source, engine_start, prompt_tokens, generation_tokens, last_at)
            SELECT source, start, sum(prompt), sum(generation), max(at)
            FROM unnest(CAST(:sources AS text[]), CAST(:starts AS text[]), CAST(:prompts AS bigint[]),
                        CAST(:generations AS bigint[]), CAST(:ats AS timestamptz[]))
                AS more (source, start, prompt, generation, at)
            GROUP BY source, start ORDER BY source, start
            ON CONFLICT (engine_start, source) DO UPDATE SET
                prompt_tokens = had.prompt_tokens + excluded.prompt_tokens,
                generation_tokens = had.generation_tokens + excluded.generation_tokens,
                last_at = greatest(had.last_at, excluded.last_at)"""),
        {
            "sources": [u.source for u in usages],
            "starts": [u.engine_start for u in usages],
            "prompts": [u.prompt_tokens for u in usages],
            "generations": [u.generation_tokens for u in usages],
            "ats": [u.at for u in usages],
        },
    )


async def reconcile(tx: AsyncSession) -> list[Line]:
    """Tokens billed against tokens counted, one line per engine start, each with its verdict."""
    billed = {
        start: Billed(prompt_tokens=int(prompt), generation_tokens=int(generation), last_at=last_at)
        for start, prompt, generation, last_at in await tx.execute(
            text("""
                SELECT engine_start, sum(prompt_tokens), sum(generation_tokens), max(last_at)
                FROM serving.engine_usage GROUP BY engine_start""")
        )
    }
    working = select(col(ReplicaRow.engine_start)).where(
        col(ReplicaRow.engine_start).is_not(None),
        col(ReplicaRow.requests_running) + col(ReplicaRow.requests_waiting) > 0,
    )
    busy = frozenset(str(start) for start in (await tx.execute(working)).scalars())
    return counting.reconcile(billed, await counts(tx), busy=busy)
