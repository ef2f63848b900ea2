"""Four eyes on money: what waits for a second administrator, approved or refused by one."""

from dataclasses import dataclass

from heliu.client.approval_views import ApprovalPolicy, Proposal
from heliu.client.transport import Transport


@dataclass(frozen=True, slots=True)
class Approvals:
    """Proposals; an act that made one raised `AwaitsApproval` instead of returning what it did."""

    _transport: Transport

    def list(self, *, state: str | None = None) -> list[Proposal]:
        """What waits (`open`) and what became of earlier ones."""
        return [Proposal(**row) for row in self._transport.json("GET", "/api/approvals", query={"state": state})]

    def approve(self, proposal_id: str) -> Proposal:
        """Let it happen, now; never one's own. `result_id` names what it made."""
        return Proposal(**self._transport.json("POST", f"/api/approvals/{proposal_id}/approve"))

    def refuse(self, proposal_id: str, *, reason: str) -> Proposal:
        """Refuse it and say why; one's own is taken back this way."""
        body = {"reason": reason}
        return Proposal(**self._transport.json("POST", f"/api/approvals/{proposal_id}/refuse", body=body))

    def policy(self) -> ApprovalPolicy:
        """The amounts above which two administrators are needed."""
        return ApprovalPolicy(**self._transport.json("GET", "/api/approvals/policy"))
