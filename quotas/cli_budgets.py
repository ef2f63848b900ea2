"""`heliu budget`, `alert`: what a month may cost, and who hears of it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from kit.cli import JsonFlag, call, show, tell
from quotas.cli_amounts import of_firm, show_money, yuan
from quotas.cli_options import FirmOption
from quotas.vocabulary import ChannelKind

app = typer.Typer()
budget = typer.Typer(help="Monthly budgets of a firm, its projects and keys.", no_args_is_help=True)
alert = typer.Typer(help="Who hears of budgets, and what became of each message.", no_args_is_help=True)
app.add_typer(budget, name="budget")
app.add_typer(alert, name="alert")

BUDGET_COLUMNS = {
    "id": "budget",
    "project_id": "project",
    "key_id": "key",
    "amount": "a month",
    "spent": "spent",
    "thresholds": "alerts at %",
    "hard_stop": "hard stop",
}
ALERT_COLUMNS = {
    "at": "when",
    "budget_id": "budget",
    "threshold": "%",
    "spent": "spent",
    "delivery_id": "message",
    "state": "state",
    "tries": "tries",
    "last_error": "error",
}


@budget.command("set")
def set_budget(
    amount: Annotated[str, typer.Argument(help="Yuan a month.")],
    project_id: Annotated[str | None, typer.Option("--project", help="Counts the project's work.")] = None,
    key_id: Annotated[str | None, typer.Option("--key", help="Counts the key's jobs and requests.")] = None,
    at: Annotated[list[int] | None, typer.Option(help="Per cent that alert; default 50, 80, 100.")] = None,
    hard_stop: Annotated[bool, typer.Option("--hard-stop", help="Refuse what comes after 100 %.")] = False,
    firm_id: FirmOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a firm, a project or a key so much a month."""
    body: dict[str, Any] = {"amount_micro_yuan": yuan(amount), "hard_stop": hard_stop}
    body |= {"project_id": project_id, "key_id": key_id, "firm_id": firm_id} | ({"thresholds": at} if at else {})
    _show_budgets([call("POST", "/api/budgets", json=body)], as_json)


@budget.command("list")
def list_budgets(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List budgets and what this month has spent."""
    _show_budgets(call("GET", "/api/budgets", params=of_firm(firm_id)), as_json)


@budget.command("end")
def end_budget(budget_id: Annotated[str, typer.Argument(help="A budget's id.")], as_json: JsonFlag = False) -> None:
    """End a budget; what it stopped goes on."""
    call("DELETE", f"/api/budgets/{budget_id}")
    tell(f"budget {budget_id} is ended", as_json=as_json, id=budget_id, state="ended")


@alert.command("to")
def add_channel(
    kind: Annotated[ChannelKind, typer.Argument(help="How they are sent.")],
    target: Annotated[str, typer.Argument(help="https://… or an e-mail address.")],
    firm_id: FirmOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Send alerts to a webhook (its secret is shown) or an e-mail address."""
    body = {"kind": kind.value, "target": target, "firm_id": firm_id}
    show(call("POST", "/api/alert-channels", json=body), as_json=as_json)


@alert.command("channels")
def list_channels(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List where alerts go."""
    columns = {"id": "channel", "kind": "kind", "target": "to"}
    show(call("GET", "/api/alert-channels", params=of_firm(firm_id)), as_json=as_json, columns=columns)


@alert.command("end")
def end_channel(
    channel_id: Annotated[str, typer.Argument(help="A channel's id, as alert channels lists it.")],
    as_json: JsonFlag = False,
) -> None:
    """Send nothing there any more."""
    call("DELETE", f"/api/alert-channels/{channel_id}")
    tell(f"{channel_id} gets no alerts any more", as_json=as_json, id=channel_id, state="ended")


@alert.command("list")
def list_alerts(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List alerts, newest first, and what became of each message."""
    show_money(call("GET", "/api/alerts", params=of_firm(firm_id)), as_json, ALERT_COLUMNS)


@alert.command("replay")
def replay(
    delivery_id: Annotated[str, typer.Argument(help="A message's id, as alert list shows it.")],
    as_json: JsonFlag = False,
) -> None:
    """Send a message again."""
    call("POST", f"/api/deliveries/{delivery_id}/replay")
    tell(f"message {delivery_id} will be sent again", as_json=as_json, id=delivery_id, state="pending")


def _show_budgets(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    shown = [
        {
            **row,
            "thresholds": ", ".join(str(share) for share in row["thresholds"]),
            "hard_stop": "yes" if row["hard_stop"] else "no",
        }
        for row in rows
    ]
    show_money(rows if as_json else shown, as_json, BUDGET_COLUMNS)
