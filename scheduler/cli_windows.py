"""`heliu window`: times for which nodes are kept, for maintenance or for one firm."""

from datetime import datetime
from typing import Annotated

import typer

from kit.cli import JsonFlag, call, show, wrong_usage

app = typer.Typer()
window = typer.Typer(help="Maintenance windows and reservations: list, keep, lift.", no_args_is_help=True)
app.add_typer(window, name="window")

COLUMNS = {
    "id": "Window", "scope": "Of", "target": "Target", "starts_at": "From", "ends_at": "Until", "firm_id": "For",
    "reason": "Because",
}  # fmt: skip


@window.command("list")
def list_windows(as_json: JsonFlag = False) -> None:
    """List the times for which nodes are kept."""
    show(call("GET", "/api/windows"), as_json=as_json, columns=COLUMNS)


@window.command("keep")
def keep(
    scope: Annotated[str, typer.Argument(help="node, pool or centre.")],
    target: Annotated[str, typer.Argument(help="A node's id, a pool or a centre.")],
    since: Annotated[str, typer.Option("--from", help="When it begins, as 2026-12-01T02:00+08:00.")],
    until: Annotated[str, typer.Option("--until", help="When it ends.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; whoever waits for maintenance reads it.")],
    firm: Annotated[str | None, typer.Option("--firm", help="Only this firm's work may run there then.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Keep nodes for maintenance or for one firm. Work that would run into it starts elsewhere or waits."""
    body = {"scope": scope, "target": target, "reason": reason, "firm_id": firm}
    body |= {"starts_at": instant("--from", since), "ends_at": instant("--until", until)}
    show(call("POST", "/api/windows", json=body), as_json=as_json, columns=COLUMNS)


@window.command("lift")
def lift(window_id: Annotated[str, typer.Argument(help="A window's id (win_…).")], as_json: JsonFlag = False) -> None:
    """Free the nodes for everybody again."""
    show(call("POST", f"/api/windows/{window_id}/lift"), as_json=as_json, columns=COLUMNS)


def instant(option: str, said: str) -> str:
    """A time with its zone; the zone of this machine where none is said."""
    try:
        return datetime.fromisoformat(said).astimezone().isoformat()
    except ValueError:
        wrong_usage(f"{option} {said!r} is not a time like 2026-12-01T02:00+08:00")
