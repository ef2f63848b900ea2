"""`heliu ledger`: what is on hold, and the proof of every balance."""

from collections.abc import Mapping
from typing import Any

import typer
from rich.markup import escape

from kit.cli import REFUSED, JsonFlag, call, console, show
from quotas.cli_amounts import show_money

app = typer.Typer()
ledger = typer.Typer(help="Examine the ledger.", no_args_is_help=True)
app.add_typer(ledger, name="ledger")

HOLD_COLUMNS = {
    "id": "hold",
    "kind": "kind",
    "subject": "held for",
    "firm_id": "firm",
    "amount": "amount",
    "expires_at": "expires",
}


@ledger.command("holds")
def holds(as_json: JsonFlag = False) -> None:
    """List what is on hold now, by name."""
    show_money(call("GET", "/api/ledger/holds"), as_json, HOLD_COLUMNS)


@ledger.command("verify")
def verify(as_json: JsonFlag = False) -> None:
    """Examine every invariant over the whole ledger; exit code 1 when one does not hold."""
    report = call("GET", "/api/ledger/check")
    if as_json:
        show(report, as_json=True)
    else:
        _print(report)
    if not report["ok"]:
        raise typer.Exit(REFUSED)


def _print(report: Mapping[str, Any]) -> None:
    counts = (("account", "accounts"), ("transfer", "transfers"), ("sealed block", "blocks"))
    console.print(", ".join(_counted(report[name], word) for word, name in counts), highlight=False)
    heads = f"{report['heads']:,} of {_counted(report['blocks'], 'block')} compared with the heads kept outside"
    unsealed = _counted(report["unsealed"], "transfer")
    console.print(f"{heads} the database; {unsealed} not sealed yet", highlight=False)
    for finding in report["findings"]:
        console.print(
            f"[red]{finding['invariant']}[/red] {escape(finding['about'])}: {escape(finding['detail'])}",
            highlight=False,
        )
    if report["open_holds"]:
        show_money(report["open_holds"], False, HOLD_COLUMNS, title="on hold")
    console.print("[green]every invariant holds[/green]" if report["ok"] else "[red]the ledger is wrong[/red]")


def _counted(many: int, word: str) -> str:
    return f"{many:,} {word}" + ("" if many == 1 else "s")
