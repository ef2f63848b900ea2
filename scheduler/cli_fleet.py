"""`heliu queue`, `heliu node`, `heliu pool`: who waits and why, what there is to run on."""

from typing import Annotated, Any

import typer

from kit.cli import JsonFlag, call, console, show
from scheduler.cli_windows import instant

app = typer.Typer()
node = typer.Typer(help="Machines: list, cordon, drain, open.", no_args_is_help=True)
pool = typer.Typer(help="Pools of machines.", no_args_is_help=True)
app.add_typer(node, name="node")
app.add_typer(pool, name="pool")

QUEUE_COLUMNS = {
    "position": "Place", "id": "Workload", "name": "Name", "firm_id": "Firm", "need": "Needs", "standing": "Stands",
    "because": "Waits", "expected_start": "Expected start",
}  # fmt: skip
NODE_COLUMNS = {
    "id": "Node", "pool": "Pool", "address": "Address", "state": "State", "size": "Accelerators", "placed": "Placed",
    "cordon_reason": "Closed because",
}  # fmt: skip
POOL_COLUMNS = {
    "name": "Pool", "nodes": "Nodes", "size": "Accelerators", "placed": "Placed", "quota": "Your quota",
    "used": "You use",
}  # fmt: skip

NodeId = Annotated[str, typer.Argument(help="A node's id.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; shown to everybody who waits for it.")]


@app.command("queue")
def queue(as_json: JsonFlag = False) -> None:
    """Who waits, in the order in which they are considered, with the reason for each."""
    seen = call("GET", "/api/queue")
    if as_json:
        show(seen, as_json=True)
        return
    rows = [
        row | {"need": f"{row['need_milli'] / 1000:g}", "because": f"{row['reason']}: {row['detail']}"}
        for row in seen["entries"]
    ]
    firms = {row["firm_id"] for row in rows}
    columns = {field: title for field, title in QUEUE_COLUMNS.items() if field != "firm_id" or len(firms) > 1}
    show(rows, as_json=False, columns=columns)
    console.print(f"{seen['waiting']} waiting, {seen['running']} placed", highlight=False)


@node.command("list")
def list_nodes(as_json: JsonFlag = False) -> None:
    """List the machines of the city's pools."""
    rows = call("GET", "/api/nodes")
    show(rows if as_json else [_counted(row) for row in rows], as_json=as_json, columns=NODE_COLUMNS)


@node.command("cordon")
def cordon(node_id: NodeId, reason: Reason, as_json: JsonFlag = False) -> None:
    """Close a machine for new work; what runs on it runs on."""
    _close(node_id, reason, drain=False, as_json=as_json)


@node.command("drain")
def drain(
    node_id: NodeId,
    reason: Reason,
    finish_by: Annotated[
        str | None, typer.Option(help="What has ended by then (2026-12-01T02:00+08:00) runs on; the rest moves then.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Close a machine and move what runs on it, from its checkpoints, at no charge to its firms."""
    _close(node_id, reason, drain=True, finish_by=finish_by, as_json=as_json)


@node.command("open")
def uncordon(node_id: NodeId, as_json: JsonFlag = False) -> None:
    """Open a machine for work again."""
    row = call("POST", f"/api/nodes/{node_id}/uncordon")
    show(row if as_json else _counted(row), as_json=as_json, columns=NODE_COLUMNS)


@pool.command("list")
def list_pools(as_json: JsonFlag = False) -> None:
    """List the pools, what is up in them, and your quota."""
    rows = call("GET", "/api/pools")
    show(rows if as_json else [_counted(row) for row in rows], as_json=as_json, columns=POOL_COLUMNS)


def _close(node_id: str, reason: str, *, drain: bool, as_json: bool, finish_by: str | None = None) -> None:
    body = {"reason": reason, "drain": drain, "finish_by": instant("--finish-by", finish_by) if finish_by else None}
    row = call("POST", f"/api/nodes/{node_id}/cordon", json=body)
    show(row if as_json else _counted(row), as_json=as_json, columns=NODE_COLUMNS)


def _counted(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose thousandths are shown as accelerators."""
    amounts = {"size": "gpu_milli", "placed": "placed_milli", "quota": "quota_milli", "used": "used_milli"}
    shown = {name: row.get(field) for name, field in amounts.items()}
    return row | {name: None if milli is None else f"{milli / 1000:g}" for name, milli in shown.items()}
