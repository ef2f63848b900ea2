"""What the routes that explain give: the reason of a job's place, the queue, decisions as they were made."""

from datetime import datetime
from typing import Any

from pydantic import Field

from kit.web import View
from scheduler.vocabulary import JobState, WaitReason


class ScoreOut(View):
    node: str
    total: int = Field(description="thousandths of an accelerator; the higher the better")
    packing: int = Field(description="what of it is how the place packs")
    model: float = Field(description="0 to 1: whether the node has its model, on its disk or in its memory")
    data: float = Field(description="0 to 1: how much of its data the node has")


class ScoresOut(View):
    best: ScoreOut
    second: ScoreOut | None = Field(description="the next best node of the pool")
    tariff: float | None = Field(
        description="0 to 1: the pool's price beside the cheapest of those liked equally; null: no other is"
    )


class WhyOut(View):
    id: str
    state: JobState
    sentence: str
    reason: WaitReason | None
    rule: str | None
    detail: str | None
    would_start: str | None
    expected_start: datetime | None
    estimated: bool
    standing: str | None
    position: int | None
    waiting: int
    pool: str | None
    score: ScoresOut | None


class DecisionOut(View):
    cursor: str
    at: datetime
    topic: str
    subject: str
    firm_id: str | None
    body: dict[str, Any]


class DecisionsOut(View):
    decisions: list[DecisionOut]
    cursor: str


class QueueEntryOut(View):
    position: int
    id: str
    kind: str
    name: str
    firm_id: str
    priority: int
    need_milli: int
    pools: list[str]
    standing: str
    promised_first: bool = Field(
        description="it goes before all that borrows as long as its firm's work before it cannot start"
    )
    reason: WaitReason
    detail: str
    expected_start: datetime | None
    estimated: bool
    submitted_at: datetime


class QueueOut(View):
    waiting: int
    running: int
    entries: list[QueueEntryOut]
