"""Tokens billed against tokens the engines counted (invariant G1)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from serving.vocabulary import EngineCount

ENGINE_LAG = timedelta(seconds=3)
"""How long after an answer's end, a client's leaving included, an engine may take to count all of it."""


@dataclass(frozen=True, slots=True)
class Billed:
    """Sums of usage records; `prompt_tokens` includes cached ones, as the engine's counter does."""

    prompt_tokens: int
    generation_tokens: int
    last_at: datetime | None = None  # when the last of these requests ended


class Verdict(StrEnum):
    EXACT = "exact"
    OPEN = (
        "open"  # answers are under way, usage is not shipped yet, or the engine has not reported since the last answer
    )
    UNSEEN = "unseen"  # the engine died between two reports: billed more than it was last seen to have counted
    PLATFORM_LOSS = "platform_loss"  # the engine is over and counted more than was billed; nobody pays the difference
    OVERBILLED = "overbilled"  # never allowed


@dataclass(frozen=True, slots=True)
class Line:
    """One engine start (or, where usage names none, one model). Differences are counted − warm-up − billed."""

    subject: str
    model: str
    counted_prompt: int
    counted_generation: int
    warmup_prompt: int
    warmup_generation: int
    billed_prompt: int
    billed_generation: int
    verdict: Verdict

    @property
    def difference_prompt(self) -> int:
        """Prompt tokens the engine counted for callers and nobody was billed for; negative: billed too many."""
        return self.counted_prompt - self.warmup_prompt - self.billed_prompt

    @property
    def difference_generation(self) -> int:
        """Generated tokens the engine counted for callers and nobody was billed for; negative: billed too many."""
        return self.counted_generation - self.warmup_generation - self.billed_generation


def reconcile(billed: Mapping[str, Billed], engines: Iterable[EngineCount], *, busy: frozenset[str]) -> list[Line]:
    """One line per engine start. `busy`: engine starts that have requests running or waiting at this moment."""
    lines: list[Line] = []
    known: set[str] = set()
    for engine in engines:
        known.add(engine.engine_start)
        paid = billed.get(engine.engine_start, Billed(0, 0))
        lines.append(_line(engine, paid, busy=engine.engine_start in busy))
    for subject, paid in billed.items():
        if subject not in known:
            lines.append(Line(subject, "", 0, 0, 0, 0, paid.prompt_tokens, paid.generation_tokens, Verdict.OVERBILLED))
    return lines


def _line(engine: EngineCount, paid: Billed, *, busy: bool) -> Line:
    rest_prompt = engine.prompt_tokens - engine.warmup_prompt_tokens - paid.prompt_tokens
    rest_generation = engine.generation_tokens - engine.warmup_generation_tokens - paid.generation_tokens
    stale = paid.last_at is not None and engine.counted_at <= paid.last_at + ENGINE_LAG
    return Line(
        subject=engine.engine_start,
        model=engine.model,
        counted_prompt=engine.prompt_tokens,
        counted_generation=engine.generation_tokens,
        warmup_prompt=engine.warmup_prompt_tokens,
        warmup_generation=engine.warmup_generation_tokens,
        billed_prompt=paid.prompt_tokens,
        billed_generation=paid.generation_tokens,
        verdict=_verdict(rest_prompt, rest_generation, ended=engine.ended, settled=not busy and not stale),
    )


def _verdict(rest_prompt: int, rest_generation: int, *, ended: bool, settled: bool) -> Verdict:
    if rest_prompt == 0 and rest_generation == 0:
        return Verdict.EXACT
    if not ended and not settled:
        return Verdict.OPEN
    if rest_prompt < 0 or rest_generation < 0:
        return Verdict.UNSEEN if ended else Verdict.OVERBILLED
    return Verdict.PLATFORM_LOSS
