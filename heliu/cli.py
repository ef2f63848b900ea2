"""The `heliu` command. Exit codes: 0 done · 1 refused or failed · 2 wrong usage · 3 not reachable · 4 not signed in."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from kit.cli import JsonFlag, fail, show
from kit.errors import HeliuError

app = typer.Typer(
    name="heliu",
    help="Heliu (合流): a city shares its GPUs. Start with [bold]heliu demo[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done · 1 refused or failed · 2 wrong usage · 3 not reachable · 4 not signed in.",
)

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder with the platform's state.", envvar="HELIU_HOME", show_default=False),
]


def main() -> None:
    """Entry point: a refusal becomes a sentence and an exit code, never a traceback."""
    _mount_packages()
    app()


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when ready; stop it with heliu down.")] = False,
    plain: Annotated[bool, typer.Option(hidden=True)] = False,
    home: HomeOption = None,
) -> None:
    """Start the whole platform on this machine and stay until Ctrl-C."""
    from heliu import front

    _use_home(home)
    with _refusals():
        front.up(detach=detach, plain=plain)


@app.command()
def down(home: HomeOption = None) -> None:
    """Stop everything `heliu up` started, and only that."""
    from heliu import front

    _use_home(home)
    with _refusals():
        front.down()


@app.command()
def status(as_json: JsonFlag = False, home: HomeOption = None) -> None:
    """Show the processes of this machine's platform and where it listens. Exit code 3 when it is not up."""
    from heliu import front

    _use_home(home)
    front.status(as_json=as_json)


@app.command("admin-link")
def admin_link(as_json: JsonFlag = False, home: HomeOption = None) -> None:
    """Print a link that makes its first visitor an administrator: one use, 15 minutes. For who runs the machine."""
    from heliu import main
    from kit.settings import Settings

    _use_home(home)
    with _refusals():
        link = main.admin_link(Settings())
    show({"link": link} if as_json else link, as_json=as_json)


@app.command()
def demo(
    exit_: Annotated[
        bool, typer.Option("--exit", help="Stop everything at the end; the exit code says if all held.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Play the whole story: a firm, a quota, a fine-tune, a served adapter, a statement."""
    from heliu.demo.play import play

    _use_home(home)
    with _refusals():
        raise typer.Exit(play(stop_after=exit_))


@app.command()
def version(as_json: JsonFlag = False) -> None:
    """Print the version."""
    number = installed_version("heliu")
    show({"version": number} if as_json else number, as_json=as_json)


@app.command(rich_help_panel="Processes")
def api() -> None:
    """Serve the control plane."""
    from heliu.main import run_api
    from kit.settings import Settings

    with _refusals():
        run_api(Settings())


@app.command(rich_help_panel="Processes")
def gateway() -> None:
    """Serve the OpenAI-compatible gateway."""
    from heliu.main import run_gateway
    from kit.settings import Settings

    with _refusals():
        run_gateway(Settings())


@app.command(rich_help_panel="Processes")
def controller() -> None:
    """Run the scheduler loop, the replica controller and the ledger sweeper while this process leads."""
    from heliu.main import run_controller
    from kit.settings import Settings

    with _refusals():
        run_controller(Settings())


@app.command(rich_help_panel="Processes")
def migrate() -> None:
    """Bring the database to this version's schema."""
    from heliu.main import migrate as run
    from kit.settings import Settings

    with _refusals():
        run(Settings())


@app.command("bench-target", rich_help_panel="Processes")
def bench_target(
    engine: Annotated[str, typer.Argument(help="URL of a running OpenAI-compatible engine, without /v1.")],
    model: Annotated[str, typer.Option(help="The name the engine serves its model under.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 0,
    engine_key: Annotated[str, typer.Option(help="The key the engine asks for.", envvar="ENGINE_KEY")] = "",
    context_tokens: Annotated[int, typer.Option(min=64)] = 2048,
) -> None:
    """Serve a gateway with a ready key in front of any engine, for a load generator; prints one line of JSON."""
    from serving.main import run_bench_target

    run_bench_target(engine, model=model, port=port, engine_key=engine_key, context_tokens=context_tokens)


def _mount_packages() -> None:
    from quotas import cli as people_and_money
    from scheduler import cli as work
    from serving import cli as models

    app.add_typer(people_and_money.app)
    app.add_typer(work.app)
    for name in ("model", "adapter", "deploy", "replica"):
        app.add_typer(getattr(models, name), name=name)


def _use_home(home: Path | None) -> None:
    if home is not None:
        os.environ["HELIU_HOME"] = str(home.resolve())


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except HeliuError as error:
        fail(error.message, hint=error.hint)
