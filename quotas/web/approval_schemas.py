"""What four eyes look like on the wire."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field

from kit.units import MAX_AMOUNT
from kit.web import Body, View
from quotas.adapters.approval_tables import ApprovalPolicyRow
from quotas.vocabulary import MoneyAction, ProposalState
from quotas.web.schemas import Paragraph

Ceiling = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]


class PolicyIn(Body):
    """Above these a second administrator is needed; `rate` is a tariff's highest price."""

    amount_above_micro_yuan: Ceiling
    rate_above_micro_yuan: Ceiling
    reason: Paragraph


class PolicyOut(View):
    amount_above_micro_yuan: int
    rate_above_micro_yuan: int
    set_at: datetime
    set_by: str
    reason: str

    @classmethod
    def of(cls, row: ApprovalPolicyRow) -> Self:
        """The policy as it is shown."""
        return cls(
            amount_above_micro_yuan=row.amount_above,
            rate_above_micro_yuan=row.rate_above,
            set_at=row.set_at,
            set_by=row.set_by,
            reason=row.reason,
        )


class ProposalOut(View):
    id: str
    action: MoneyAction
    firm_id: str | None
    amount_micro_yuan: Annotated[int, Field(validation_alias="amount")]
    body: dict[str, Any]
    state: ProposalState
    proposed_by: str
    proposed_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    decision_reason: str | None
    result_id: str | None
