"""`heliu top`: the platform as it is now, in a terminal, renewed every few seconds."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from rich.markup import escape
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.widgets import DataTable, Footer, Header, Static

from heliu.top.seen import Refused

TABLES: dict[str, tuple[str, ...]] = {
    "firms": ("Firm", "State", "Waiting", "Available ¥"),
    "models": ("Model", "Can", "Ready"),
    "pools": ("Pool", "Nodes", "GPUs", "Placed"),
    "replicas": ("Replica", "Model", "State", "Running", "Waiting", "Adapters", "Reason"),
    "queue": ("#", "Work", "Firm", "GPUs", "Why it waits", "Start"),
}


class Top(App[None]):
    """Five tables and a line that says how it stands. A platform that is away leaves what was seen last."""

    TITLE = "heliu top"
    CSS = """
    .row { height: 1fr; }
    DataTable { width: 1fr; border: round $primary; }
    #note { height: 1; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "Quit"), ("r", "renew", "Now")]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, look: Callable[[], dict[str, Any]], *, every_seconds: float = 2.0) -> None:
        super().__init__()
        self._look = look
        self._every_seconds = every_seconds

    def compose(self) -> ComposeResult:
        """The tables, from the firms down to the queue."""
        yield Header()
        with Horizontal(classes="row"):
            for name in ("firms", "models", "pools"):
                yield DataTable(id=name)
        for name in ("replicas", "queue"):
            yield DataTable(id=name, classes="row")
        yield Static("looking …", id="note")
        yield Footer()

    def on_mount(self) -> None:
        """Head the tables, look at once and then again and again."""
        for name, columns in TABLES.items():
            table = self._table(name)
            table.add_columns(*columns)
            table.border_title = name
            table.cursor_type = "none"
        self.action_renew()
        self.set_interval(self._every_seconds, self.action_renew)

    def action_renew(self) -> None:
        """Look again, in a thread; a look still under way is enough."""
        if not any(worker.name == "look" and worker.is_running for worker in self.workers):
            self.run_worker(self._renew, name="look", thread=True)

    def _renew(self) -> None:
        try:
            seen = self._look()
        except Refused as refused:
            self.call_from_thread(self._note, f"[b red]{escape(str(refused))}[/]")
            return
        self.call_from_thread(self._show, seen)

    def _show(self, seen: dict[str, Any]) -> None:
        for name, rows in rows_of(seen).items():
            table = self._table(name)
            table.clear()
            table.add_rows(rows)
        self._note(f"{seen['queue']['waiting']} waiting, {seen['queue']['running']} placed")

    def _note(self, text: str) -> None:
        self.query_one("#note", Static).update(text)

    def _table(self, name: str) -> "DataTable[str]":
        return self.query_one(f"#{name}", DataTable)


def rows_of(seen: dict[str, Any]) -> dict[str, list[Sequence[str]]]:
    """What was seen as the cells of each table."""
    names = {firm["id"]: firm["name"] for firm in seen["firms"]}
    return {
        "firms": [
            (firm["name"], firm["state"], str(firm["waiting"]), _yuan(firm["available_micro_yuan"]))
            for firm in seen["firms"]
        ],
        "models": [
            (model["name"], ", ".join(model["capabilities"]), str(model["replicas_ready"])) for model in seen["models"]
        ],
        "pools": [
            (pool["name"], str(pool["nodes"]), _gpus(pool["gpu_milli"]), _gpus(pool["placed_milli"]))
            for pool in seen["pools"]
        ],
        "replicas": [
            (
                one["id"], one["model"], one["state"], str(one["requests_running"]), str(one["requests_waiting"]),
                str(one["adapters_ready"]), one["reason"] or "",
            )
            for one in seen["replicas"]
        ],
        "queue": [
            (
                str(entry["position"]), entry["name"], names.get(entry["firm_id"], entry["firm_id"]),
                _gpus(entry["need_milli"]), entry["detail"], (entry["expected_start"] or "")[11:16],
            )
            for entry in seen["queue"]["entries"]
        ],
    }  # fmt: skip


def _gpus(milli: int) -> str:
    return f"{milli / 1000:g}"


def _yuan(micro: int | None) -> str:
    return "" if micro is None else f"{micro / 1_000_000:,.2f}"
