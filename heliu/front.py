"""What `heliu up`, `down` and `status` show: a line per service while it starts, then every address."""

import asyncio
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import psutil
import typer
from rich.panel import Panel
from rich.table import Table

from heliu.supervisor import down as taking_down
from heliu.supervisor import preflight
from heliu.supervisor import up as starting
from heliu.supervisor.ray_cluster import ACCELERATOR, CENTRE, SLOTS
from heliu.supervisor.records import RunFolder, ServiceRecord
from kit.cli import UNREACHABLE, console, show, show_line, tell
from kit.settings import Settings

SHOWN = ("ready", "done", "ended", "started again", "stopped")


def up(*, detach: bool, plain: bool, as_json: bool) -> None:
    """Start the platform; in the foreground this returns when it was stopped."""
    settings = Settings()
    began = monotonic()
    progress = _plain_line if plain else _silence if as_json else _line

    def ready() -> None:
        if plain:
            _plain_line("supervisor", "ready")
        elif as_json:
            show_line({"state": "ready", "addresses": addresses(settings), "admin_link": _admin_link(settings)})
        else:
            announce(settings, seconds=monotonic() - began, detached=detach)

    if detach:
        starting.start_detached(settings, progress)
        ready()
    else:
        asyncio.run(starting.run(settings, progress, ready))
        if as_json:
            show_line({"state": "down"})
        else:
            _line("supervisor", "stopped")


def down(*, as_json: bool) -> None:
    """Stop the platform of this home."""
    home = Settings().home
    if RunFolder(home).instance() is None and not RunFolder(home).services():
        tell(f"nothing runs in {home.resolve()}", as_json=as_json, state="down", stopped=False, home=home.resolve())
        return
    taking_down.take_down(home, _silent if as_json else lambda line: console.print(line, highlight=False))
    if not as_json:
        console.print("[green]✓[/green] everything is stopped; its state is kept, heliu up finds it again")
    else:
        show({"state": "down", "stopped": True, "home": home.resolve()}, as_json=True)


def addresses(settings: Settings) -> dict[str, str]:
    """Where the platform of this machine listens."""
    return {
        "API and its documentation": f"{settings.api_url}/docs",
        "OpenAI-compatible gateway": f"{settings.gateway_url}/v1",
        "Ray dashboard": f"http://127.0.0.1:{settings.ray_dashboard_port}",
        "Logs": str(settings.home.resolve() / "logs"),
    }


def announce(settings: Settings, *, seconds: float, detached: bool) -> None:
    """Say that it is ready, where, and how the first administrator gets in."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, where in addresses(settings).items():
        table.add_row(what, f"[cyan]{where}[/cyan]")
    table.add_row("Centre", f"{CENTRE}: a pool of {SLOTS} {ACCELERATOR}s (these are CPU slots, not GPUs)")
    table.add_row("Stop", "heliu down" if detached else "Ctrl-C, or heliu down")
    console.print(Panel(table, title=f"Heliu is ready in {seconds:.0f} s", border_style="green", expand=False))
    console.print("To become the administrator, open this link; it works once, for 15 minutes:")
    console.print(f"[cyan]{_admin_link(settings)}[/cyan]", soft_wrap=True)


def _admin_link(settings: Settings) -> str:
    from heliu.main import admin_link

    return admin_link(settings)


def status(*, as_json: bool) -> None:
    """Print what runs; ends with exit code 3 when the platform is not up."""
    settings = Settings()
    instance = preflight.running_instance(settings.home)
    rows = [_row(record) for record in RunFolder(settings.home).services()]
    state = "down" if instance is None else "ready" if instance.ready else "starting"
    if as_json:
        show({"state": state, "services": rows, "addresses": addresses(settings)}, as_json=True)
    else:
        columns = {"name": "Service", "state": "State", "pid": "Process", "since": "Since", "restarts": "Restarts"}
        show(rows, as_json=False, columns=columns, title=f"Heliu in {settings.home.resolve()}: {state}")
        if instance:
            show(addresses(settings), as_json=False)
    if instance is None:
        raise typer.Exit(UNREACHABLE)


def _row(record: ServiceRecord) -> Mapping[str, Any]:
    process = record.process.find()
    since = datetime.fromtimestamp(record.process.create_time, UTC).astimezone()
    memory = _memory_mib(process) if process else 0
    return {
        "name": record.name,
        "state": "gone" if process is None else "ready" if record.ready else "starting",
        "pid": record.process.pid,
        "since": since.isoformat(timespec="seconds"),
        "restarts": record.restarts,
        "memory_mib": memory,
    }


def _memory_mib(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss >> 20
    except psutil.Error:
        return 0


def _line(name: str, what: str) -> None:
    if what.startswith(SHOWN):
        mark = "[green]✓[/green]" if what in ("ready", "done") else "[yellow]•[/yellow]"
        console.print(f"  {mark} {name:<12} {what}", highlight=False)


def _plain_line(name: str, what: str) -> None:
    sys.stdout.write(f"{name}: {what}\n")
    sys.stdout.flush()


def _silence(_name: str, _what: str) -> None:
    """Progress nobody asked for."""


def _silent(_line: str) -> None:
    """A sentence nobody asked for."""
