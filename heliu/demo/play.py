"""`heliu demo`: the whole story against a real platform. It leaves the platform running unless told to stop it."""

import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from heliu.client import Client
from heliu.demo.act1_platform import platform_is_up
from heliu.demo.act2_firm import firm_is_let_in
from heliu.demo.act3_terms import terms_are_set
from heliu.demo.act4_quote import LORE, quote_then_submit
from heliu.demo.act5_training import training_runs
from heliu.demo.act6_model import base_model_is_wanted, model_is_served
from heliu.demo.act7_openai import sdk_works
from heliu.demo.act8_batch import PROMPTS, batch_runs
from heliu.demo.act9_money import money_adds_up
from heliu.demo.actors import Memory
from heliu.demo.stage import Broken, Stage
from heliu.demo.story import BASE_MODEL, Story
from heliu.front import addresses
from heliu.supervisor import preflight
from heliu.supervisor.down import take_down
from kit.cli import console as terminal
from kit.cli import show
from kit.errors import Unavailable
from kit.settings import Settings

WIDTH = 118
"""Of what is printed into a file or a log; a terminal has its own."""
INTERRUPTED = 130
INTRODUCTION = """\
A game studio brings its lore and leaves with a model of its own and a bill.
Everything is real: PostgreSQL, Ray, peft, vLLM, weights, money in micro-yuan (of a demo)."""


def play(*, stop_after: bool, as_json: bool = False) -> int:
    """Tell the story; returns the exit code: 0 when every promise held, 130 when it was interrupted."""
    settings = Settings()
    _need_what_it_plays_with(settings)
    console = Console(width=None if terminal.is_terminal else WIDTH, stderr=as_json)
    stage = Stage(console)
    ran_before = preflight.running_instance(settings.home) is not None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.print(f"[bold]Heliu 合流[/bold]\n{INTRODUCTION}")
    try:
        _tell_all(settings, stage, stop_after=stop_after)
    except KeyboardInterrupt:
        console.print("\n[yellow]Interrupted.[/yellow] The next run goes on with the same firm.")
        if not ran_before:
            take_down(settings.home, stage.did)
            stage.did("what this demo started is stopped; the state is kept")
        return INTERRUPTED
    code = stage.ending()
    runs = preflight.running_instance(settings.home) is not None
    if as_json:
        told = {"held": stage.held, "failed": stage.failed, "seconds": stage.seconds, "running": runs}
        show(told | {"addresses": addresses(settings)}, as_json=True)
    elif runs:
        _where_to_look(settings, console)
    return code


def _need_what_it_plays_with(settings: Settings) -> None:
    """Raises Unavailable when the model or an example is not on this machine."""
    wanted = {
        settings.models / BASE_MODEL / "config.json": "make setup prepares it; HELIU_MODELS_DIR names its folder",
        LORE: "it comes with Heliu: install it again",
        PROMPTS: "it comes with Heliu: install it again",
    }
    for file, hint in wanted.items():
        if not file.exists():
            raise Unavailable(f"the demo needs {file.resolve()}, and it is not there", code="demo_lacks", hint=hint)


def _tell_all(settings: Settings, stage: Stage, *, stop_after: bool) -> None:
    try:
        with stage.step(1, "The platform starts"):
            platform_is_up(settings, stage)
        _tell(settings, stage)
    except Broken as end:
        stage.console.print(f"[red]The story cannot go on: {escape(str(end))}[/red]")
    except KeyboardInterrupt:
        stop_after = False  # `play` knows what an interrupt stops
        raise
    finally:
        if stop_after:
            with suppress(Broken), stage.step(10, "Everything stops"):
                take_down(settings.home, stage.did)
                stage.did("stopped; the state is kept")


def _tell(settings: Settings, stage: Stage) -> None:
    with Client(settings.api_url) as anyone:
        story = Story(settings, stage, Memory(settings.home), anyone)
        story.cast.runs += 1
        story.memory.save()
        with stage.step(2, "A firm applies and is let in"):
            firm_is_let_in(story)
        with stage.step(3, "Quota, voucher, prices"):
            terms_are_set(story)
            if story.cast.deployment_id:
                base_model_is_wanted(story)
        with stage.step(4, "A quote, then a job"):
            tune = quote_then_submit(story)
        with stage.step(5, "A real fine-tune"):
            trained = training_runs(story, tune)
        with stage.step(6, "The adapter is in the catalogue, the model is served"):
            model_is_served(story, tune.adapter)
        with stage.step(7, "The OpenAI SDK, with another base_url and api_key"):
            sdk_works(story, tune.adapter)
        with stage.step(8, "Twenty prompts as a job"):
            batch = batch_runs(story)
        with stage.step(9, "The statement and the ledger"):
            money_adds_up(story, {trained.id: "lora-finetune", batch.id: "text-batch"})


def _where_to_look(settings: Settings, console: Console) -> None:
    command = _how_to_call_heliu()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, where in {
        "  the API, to try out": f"[cyan]{settings.api_url}/docs[/cyan]",
        "  the gateway": f"[cyan]{settings.gateway_url}/v1[/cyan]",
        "  Ray's dashboard": f"[cyan]http://127.0.0.1:{settings.ray_dashboard_port}[/cyan]",
        "  its token": str(settings.secret_file("ray_token")),
        "  who plays": f"{settings.home / 'demo.json'} (e-mail addresses, passwords, the API key)",
        "  what runs": f"{command} status",
        "  stop it": "make down" if Path("Makefile").exists() else f"{command} down",
    }.items():
        table.add_row(what, where)
    console.print("\nThe platform stays up:")
    console.print(table, highlight=False)


def _how_to_call_heliu() -> str:
    """`heliu` where the shell finds it, else where it lies."""
    if shutil.which("heliu"):
        return "heliu"
    beside = Path(sys.executable).parent / "heliu"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)
