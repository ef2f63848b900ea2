"""What the platform answers about acts that need a second administrator."""

from datetime import datetime

from heliu.client.people_views import View


class Proposal(View):
    """An act on money that happens when an administrator other than the proposer approves it."""

    id: str
    action: str
    firm_id: str | None
    amount_micro_yuan: int
    state: str
    proposed_by: str
    proposed_at: datetime
    decided_by: str | None = None
    decided_at: datetime | None = None
    decision_reason: str | None = None
    result_id: str | None = None


class ApprovalPolicy(View):
    amount_above_micro_yuan: int
    rate_above_micro_yuan: int
