"""What engines computed for callers and nobody was billed for, booked per engine start as the platform's loss.

It comes of gateways that were killed (billed at the last count they logged) and of answers that were cut before they
told their count. It moves no money: nothing was paid and nothing is owed, so it is a record beside the ledger, at list
price. Usage that a gateway ships late, because it was away, makes it smaller.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import Database
from kit.errors import Refused
from kit.units import MicroYuan
from quotas import api as quotas
from quotas.vocabulary import ModelName
from serving import engines
from serving.admission import Rate, cost
from serving.counting import Verdict


@dataclass(frozen=True, slots=True)
class Loss:
    """Tokens of one engine start that nobody pays, at list price; None where the model had no price."""

    engine_start: str
    model: str
    prompt_tokens: int
    generation_tokens: int
    micro_yuan: MicroYuan | None
    booked_at: datetime
    changed_at: datetime


async def book(db: Database, *, now: datetime) -> int:
    """Book every loss there is now, and set right those booked before. Returns how many rows changed."""
    changed = 0
    async with db.transaction() as tx:
        booked = {loss.engine_start: loss for loss in await losses(tx)}
        for line in await engines.reconcile(tx):
            had = booked.get(line.subject)
            if line.verdict is Verdict.PLATFORM_LOSS:
                prompt, generation = max(0, line.difference_prompt), max(0, line.difference_generation)
            elif line.verdict is Verdict.EXACT and had is not None:
                prompt = generation = 0
            else:
                continue
            if had is None or (had.prompt_tokens, had.generation_tokens) != (prompt, generation):
                at = now if had is None else had.booked_at
                price = await _list_price(tx, line.model, prompt, generation, at=at)
                await _write(tx, Loss(line.subject, line.model, prompt, generation, price, at, now))
                changed += 1
    return changed


async def losses(tx: AsyncSession) -> Sequence[Loss]:
    """What is booked, newest first."""
    rows = await tx.execute(text("SELECT * FROM serving.platform_loss ORDER BY booked_at DESC, engine_start DESC"))
    return [
        Loss(
            row.engine_start, row.model, row.prompt_tokens, row.generation_tokens, row.micro_yuan, row.booked_at,
            row.changed_at,
        )
        for row in rows
    ]  # fmt: skip


async def _list_price(tx: AsyncSession, model: str, prompt: int, generation: int, *, at: datetime) -> MicroYuan | None:
    try:
        rate = await quotas.token_rate(tx, model=ModelName(model), at=at)
    except Refused:
        return None
    whole = Rate(rate.input, rate.cached_input, rate.output)
    return MicroYuan(cost(whole, input=prompt, cached_input=0, output=generation))


async def _write(tx: AsyncSession, loss: Loss) -> None:
    await tx.execute(
        text("""
            INSERT INTO serving.platform_loss (engine_start, model, prompt_tokens, generation_tokens, micro_yuan,
                booked_at, changed_at)
            VALUES (:start, :model, :prompt, :generation, :price, :booked, :changed)
            ON CONFLICT (engine_start) DO UPDATE SET prompt_tokens = excluded.prompt_tokens,
                generation_tokens = excluded.generation_tokens, micro_yuan = excluded.micro_yuan,
                changed_at = excluded.changed_at"""),
        {
            "start": loss.engine_start,
            "model": loss.model,
            "prompt": loss.prompt_tokens,
            "generation": loss.generation_tokens,
            "price": loss.micro_yuan,
            "booked": loss.booked_at,
            "changed": loss.changed_at,
        },
    )
