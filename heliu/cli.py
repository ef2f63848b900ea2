"""The `heliu` command. Exit codes: 0 done · 1 refused or failed · 2 wrong usage · 3 not reachable · 4 not signed in."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup
from typer.exceptions import TyperException

from kit.cli import JsonFlag, fail, note_json, print_refusal, show, tell
from kit.errors import HeliuError

PANELS = {
    "This machine": ("demo", "up", "down", "status", "top", "admin-link", "version"),
    "People": ("login", "logout", "whoami", "firm", "document", "member", "key", "project"),
    "Work": ("quote", "job", "upload", "artifact", "queue", "array", "pool", "node", "window", "simulate", "replay"),
    "Models": ("model", "adapter", "deploy", "replica"),
    "Quotas": ("quota", "cohort", "limit"),
    "Money": (
        "account", "statement", "budget", "alert", "voucher", "programme", "tariff", "discount", "centre", "usage",
        "charge", "approval", "ledger", "audit",
    ),
    "Processes, as heliu up starts them": ("api", "gateway", "controller", "migrate", "bench-target"),
}  # fmt: skip
"""Headings of `heliu --help`, in order, with the commands below each."""


class InPanels(TyperGroup):
    """Lists its commands as `PANELS` does."""

    def __init__(self, **what: Any) -> None:
        super().__init__(**what)
        panels = {name: panel for panel, names in PANELS.items() for name in names}
        listed = [name for name in panels if name in self.commands]
        self.commands = {name: self.commands[name] for name in listed} | self.commands
        for name in listed:
            self.commands[name].rich_help_panel = panels[name]  # pyright: ignore[reportAttributeAccessIssue]


app = typer.Typer(
    name="heliu",
    cls=InPanels,
    help="Heliu (合流): a city shares its GPUs. Start with [bold]heliu demo[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Every command takes --json. "
    "Exit codes: 0 done · 1 refused or failed · 2 wrong usage · 3 not reachable · 4 not signed in.",
)

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder with the platform's state.", envvar="HELIU_HOME", show_default=False),
]

LogsAreJson = Annotated[
    bool,
    typer.Option("--json", help="Its log is JSON already; also a refusal to start.", callback=note_json, is_eager=True),
]


def main() -> None:
    """Entry point: a refusal becomes a sentence (JSON where asked) and an exit code, never a traceback."""
    whole = complete_app()
    if "--json" not in sys.argv:
        whole()
    try:
        sys.exit(whole(standalone_mode=False))
    except TyperException as wrong:  # an option or argument that is not one
        print_refusal(wrong.format_message(), code="wrong_usage", hint="every command has --help")
        sys.exit(wrong.exit_code)
    except typer.Abort:
        print_refusal("nothing was entered", code="aborted")
        sys.exit(1)


@cache
def complete_app() -> typer.Typer:
    """The command with those of every package."""
    from quotas import cli as people_and_money
    from scheduler import cli as work
    from serving import cli as models

    app.add_typer(people_and_money.app)
    app.add_typer(work.app)
    for name in ("model", "adapter", "deploy", "replica"):
        app.add_typer(getattr(models, name), name=name)
    return app


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when ready; stop it with heliu down.")] = False,
    plain: Annotated[bool, typer.Option(hidden=True)] = False,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Start the whole platform on this machine and stay until Ctrl-C."""
    from heliu import front

    with _refusals(home):
        front.up(detach=detach, plain=plain, as_json=as_json)


@app.command()
def down(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Stop everything `heliu up` started, and only that."""
    from heliu import front

    with _refusals(home):
        front.down(as_json=as_json)


@app.command()
def status(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Show the processes of this machine's platform and where it listens. Exit code 3 when it is not up."""
    from heliu import front

    with _refusals(home):
        front.status(as_json=as_json)


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print one look and end; --json implies it.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.5, max=3600)] = 2.0,
    as_json: JsonFlag = False,
) -> None:
    """Watch firms, models, replicas, pools and the queue live; q ends it."""
    from heliu.top.command import top as run_top

    run_top(once=once, as_json=as_json, every_seconds=every)


@app.command("admin-link")
def admin_link(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Print a link that makes its first visitor an administrator: one use, 15 minutes. For who runs the machine."""
    from heliu import main
    from kit.settings import Settings

    with _refusals(home):
        link = main.admin_link(Settings())
    show({"link": link} if as_json else link, as_json=as_json)


@app.command()
def demo(
    exit_: Annotated[
        bool, typer.Option("--exit", help="Stop everything at the end; the exit code says if all held.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Play the whole story: a firm, a quota, a fine-tune, a served adapter, a statement.

    With --json the story is told on standard error, and standard output has what held and what did not.
    """
    from heliu.demo.play import play

    with _refusals(home):
        raise typer.Exit(play(stop_after=exit_, as_json=as_json))


@app.command()
def version(as_json: JsonFlag = False) -> None:
    """Print the version."""
    number = installed_version("heliu")
    show({"version": number} if as_json else number, as_json=as_json)


@app.command()
def api(as_json: LogsAreJson = False) -> None:
    """Serve the control plane."""
    from heliu.main import run_api
    from kit.settings import Settings

    with _refusals():
        run_api(Settings())


@app.command()
def gateway(as_json: LogsAreJson = False) -> None:
    """Serve the OpenAI-compatible gateway."""
    from heliu.main import run_gateway
    from kit.settings import Settings

    with _refusals():
        run_gateway(Settings())


@app.command()
def controller(as_json: LogsAreJson = False) -> None:
    """Run the scheduler loop, the replica controller and the ledger sweeper while this process leads."""
    from heliu.main import run_controller
    from kit.settings import Settings

    with _refusals():
        run_controller(Settings())


@app.command()
def migrate(as_json: JsonFlag = False) -> None:
    """Bring the database to this version's schema."""
    from heliu.main import migrate as run
    from kit.settings import Settings

    with _refusals():
        run(Settings())
    tell("the database has this version's schema", as_json=as_json, migrated=True, version=installed_version("heliu"))


@app.command("bench-target")
def bench_target(
    engine: Annotated[str, typer.Argument(help="URL of a running OpenAI-compatible engine, without /v1.")],
    model: Annotated[str, typer.Option(help="The name the engine serves its model under.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="The gateway's port; 0 picks a free one.")] = 0,
    engine_key: Annotated[str, typer.Option(help="The key the engine asks for.", envvar="ENGINE_KEY")] = "",
    context_tokens: Annotated[int, typer.Option(min=64, help="The longest prompt and answer together.")] = 2048,
    as_json: LogsAreJson = False,
) -> None:
    """Serve a gateway with a ready key in front of any engine, for a load generator; prints one line of JSON."""
    from serving.main import run_bench_target

    run_bench_target(engine, model=model, port=port, engine_key=engine_key, context_tokens=context_tokens)


@contextmanager
def _refusals(home: Path | None = None) -> Iterator[None]:
    """Make what is refused a sentence; `home` is where the state lives from here on."""
    if home is not None:
        os.environ["HELIU_HOME"] = str(home.resolve())
    try:
        yield
    except HeliuError as error:
        fail(error.message, hint=error.hint, code=error.code)
    except ValidationError as error:
        if error.title not in ("Settings", "GatewaySettings"):
            raise
        first = error.errors()[0]
        prefix = "HELIU_" if error.title == "Settings" else "HELIU_GATEWAY_"
        variable = prefix + str(first["loc"][0]).upper()
        fail(
            f"{variable} is {first['input']!r}: {first['msg']}",
            hint=f"set {variable} right, or leave it unset",
            code="wrong_setting",
        )
