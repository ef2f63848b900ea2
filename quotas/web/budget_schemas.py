"""What budgets and alerts look like on the wire."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from kit.patterns import Pattern
from kit.web import Body, View
from quotas.vocabulary import ChannelKind
from quotas.web.money_schemas import Amount
from quotas.web.schemas import Id

Percent = Annotated[int, Field(ge=1, le=1000)]
Target = Annotated[
    str,
    StringConstraints(min_length=3, max_length=500),
    Pattern(
        r"^(https?://\S+|[^@\s]+@[^@\s]+)$",
        "a target is a web address or an e-mail address, without spaces",
        "https://studio.example/heliu",
    ),
]


class BudgetIn(Body):
    """Without a project or key: the whole firm's. A hard stop refuses what comes after 100 %."""

    firm_id: Id | None = None
    project_id: Id | None = None
    key_id: Id | None = None
    amount_micro_yuan: Amount
    thresholds: Annotated[tuple[Percent, ...], Field(min_length=1, max_length=10)] = (50, 80, 100)
    hard_stop: bool = False


class BudgetOut(View):
    id: str
    firm_id: str
    project_id: str | None
    key_id: str | None
    amount_micro_yuan: Annotated[int, Field(validation_alias="amount")]
    spent_micro_yuan: Annotated[int, Field(validation_alias="spent")]
    held_micro_yuan: Annotated[int, Field(validation_alias="held", description="put aside for jobs under way")]
    leased_micro_yuan: Annotated[int, Field(validation_alias="leased", description="in gateways' hands")]
    thresholds: list[int]
    hard_stop: bool
    created_by: str
    created_at: datetime


class ChannelIn(Body):
    firm_id: Id | None = None
    kind: ChannelKind
    target: Target

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.kind is ChannelKind.WEBHOOK) is not self.target.startswith(("http://", "https://")):
            raise ValueError("a webhook has a web address as its target, an e-mail an e-mail address")
        return self


class ChannelOut(View):
    """`secret` signs a webhook's messages (Standard Webhooks, v1)."""

    id: str
    firm_id: str
    kind: ChannelKind
    target: str
    secret: str | None
    created_by: str
    created_at: datetime


class AlertOut(View):
    id: str
    budget_id: str
    firm_id: str
    period: str
    threshold: int
    amount_micro_yuan: Annotated[int, Field(validation_alias="amount")]
    spent_micro_yuan: Annotated[int, Field(validation_alias="spent")]
    at: datetime
    delivery_id: str | None
    channel_id: str | None
    state: str | None
    tries: int | None
    next_at: datetime | None
    last_error: str | None
    delivered_at: datetime | None
