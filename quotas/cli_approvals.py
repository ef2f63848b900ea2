"""`heliu approval`: four eyes on money."""

from typing import Annotated, Any

import typer

from kit.cli import JsonFlag, call, console, show
from quotas.cli_amounts import priced, show_money, yuan
from quotas.cli_options import WhyAsked
from quotas.vocabulary import ProposalState

app = typer.Typer()
approval = typer.Typer(help="Four eyes on money: what waits for a second administrator.", no_args_is_help=True)
app.add_typer(approval, name="approval")

ProposalId = Annotated[str, typer.Argument(help="The id of what waits, as approval list shows it.")]
COLUMNS = {
    "id": "proposal",
    "action": "what",
    "firm_id": "firm",
    "amount": "amount",
    "state": "state",
    "proposed_by": "proposed by",
    "decided_by": "decided by",
    "decision_reason": "reason",
}


def done(answer: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
    """What was done; where a second administrator must approve it first, say so and end the command."""
    if "proposed_by" not in answer:
        return answer
    if as_json:
        show(answer, as_json=True)
    else:
        console.print(f"{answer['id']} waits for a second administrator: heliu approval approve {answer['id']}")
    raise typer.Exit


@approval.command("list")
def list_proposals(
    state: Annotated[ProposalState | None, typer.Option(help="Only proposals in this state.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List what waits, and what became of earlier ones."""
    rows = call("GET", "/api/approvals", params={"state": state.value} if state else {})
    show_money(rows, as_json, COLUMNS)


@approval.command("approve")
def approve(approval_id: ProposalId, as_json: JsonFlag = False) -> None:
    """Let it happen, now. Never one's own."""
    row = call("POST", f"/api/approvals/{approval_id}/approve")
    show_money(row, as_json, COLUMNS)


@approval.command("refuse")
def refuse(approval_id: ProposalId, reason: WhyAsked, as_json: JsonFlag = False) -> None:
    """Refuse it and say why; one's own is taken back this way."""
    row = call("POST", f"/api/approvals/{approval_id}/refuse", json={"reason": reason})
    show_money(row, as_json, COLUMNS)


@approval.command("policy")
def policy(
    amount: Annotated[str | None, typer.Option(help="Yuan: above it, two administrators.")] = None,
    rate: Annotated[str | None, typer.Option(help="Yuan: a tariff with a higher price needs two.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why the amounts change.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the amounts above which two are needed, or set them; raising them needs two itself."""
    now = call("GET", "/api/approvals/policy")
    if amount is not None or rate is not None:
        body = {
            "amount_above_micro_yuan": yuan(amount) if amount else now["amount_above_micro_yuan"],
            "rate_above_micro_yuan": yuan(rate) if rate else now["rate_above_micro_yuan"],
            "reason": reason or typer.prompt("Reason"),
        }
        now = done(call("PUT", "/api/approvals/policy", json=body), as_json=as_json)
    show(now if as_json else priced(now), as_json=as_json)
