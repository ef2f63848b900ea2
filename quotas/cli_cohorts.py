"""`heliu cohort`: the tree in which firms share."""

from collections import defaultdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.tree import Tree

from kit.cli import JsonFlag, call, console, show
from kit.units import MILLI_PER_GPU
from quotas.cli_options import Why
from quotas.cli_quotas import thousandths

app = typer.Typer()
cohort = typer.Typer(help="The tree in which firms share.", no_args_is_help=True)
app.add_typer(cohort, name="cohort")


@cohort.command("place")
def place(
    node: Annotated[str, typer.Argument(help="A firm's id, or the name of a cohort; a new name makes one.")],
    parent: Annotated[str | None, typer.Option(help="The cohort above it; default: none, it is at the top.")] = None,
    weight: Annotated[str, typer.Option(help="Its share among its siblings, e.g. 1.5.")] = "1",
    effective_from: Annotated[str | None, typer.Option("--from", help="Default: now.")] = None,
    reason: Why = None,
    as_json: JsonFlag = False,
) -> None:
    """Hang a firm or a cohort below a cohort, now or from a day to come."""
    body = {
        "parent": parent,
        "weight_milli": thousandths(weight),
        "effective_from": effective_from,
        "reason": reason,
    }
    show(call("PUT", f"/api/cohorts/{node}", json=body), as_json=as_json)


@cohort.command("tree")
def tree(
    at: Annotated[str | None, typer.Option(help="Any instant, past or to come; default: now.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the tree."""
    rows = call("GET", "/api/cohorts", params={"at": at} if at else {})
    if as_json:
        show(rows, as_json=True)
        return
    below: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        below[row["parent"]].append(row)
    city = Tree("the city")
    _grow(city, None, below)
    console.print(city)


def _grow(branch: Tree, parent: str | None, below: dict[str | None, list[dict[str, Any]]]) -> None:
    for row in below[parent]:
        weight = row["weight_milli"] / MILLI_PER_GPU
        _grow(branch.add(f"{escape(row['node'])}  [dim]weight {weight:g}[/dim]"), row["node"], below)
