"""`heliu usage`: what ran elsewhere, as files and as events."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from kit.cli import JsonFlag, call, console, show, wrong_usage
from kit.units import format_yuan
from quotas.vocabulary import QoS

app = typer.Typer()
usage = typer.Typer(help="Usage from elsewhere.", no_args_is_help=True)
app.add_typer(usage, name="usage")

IMPORT_SECONDS = 900
EVENTS_AT_ONCE = 500


@usage.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What `sacct -P -X` printed.")],
    source: Annotated[str, typer.Option(help="The cluster's name; with the job's id it names a job for ever.")],
    account: Annotated[list[str], typer.Option(help="ACCOUNT=FIRM or ACCOUNT=FIRM/PROJECT; may be repeated.")],
    partition: Annotated[list[str], typer.Option(help="PARTITION=POOL; may be repeated.")],
    qos: Annotated[QoS, typer.Option(help="The QoS it is priced at.")] = QoS.STANDARD,
    timezone: Annotated[str, typer.Option(help="The zone of the file's times; or UTC.")] = "Asia/Shanghai",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be charged, and charge nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Charge the jobs of a Slurm cluster: the whole file or, if one line is bad, nothing. Each job once."""
    for pair in (*account, *partition):
        if pair.count("=") != 1:
            wrong_usage(f"{pair!r} is no mapping; write it as NAME=VALUE")
    params = httpx.QueryParams(
        {"source": source, "account": account, "partition": partition, "qos": qos.value, "timezone": timezone}
    ).set("dry_run", dry_run)
    content = file.read_bytes()
    done = call("POST", "/api/usage-imports", params=params, content=content, timeout=IMPORT_SECONDS)
    if as_json:
        show(done, as_json=True)
        return
    skipped = ", ".join(f"{count:,} {why.replace('_', ' ')}" for why, count in done["skipped"].items()) or "none"
    console.print(
        f"{'would import' if dry_run else 'imported'} {done['imported']:,} jobs, {done['duplicates']:,} known before, "
        f"skipped: {skipped}\n"
        f"amount {format_yuan(done['amount_micro_yuan'])} = voucher {format_yuan(done['voucher_micro_yuan'])} "
        f"+ cash {format_yuan(done['cash_micro_yuan'])}; nobody paid {format_yuan(done['loss_micro_yuan'])}",
        highlight=False,
    )


@usage.command("events")
def send_events(
    file: Annotated[Path, typer.Argument(help="A JSON array of CloudEvents, or one a line; - for standard input.")],
    as_json: JsonFlag = False,
) -> None:
    """Charge usage that something else measured, in batches of 500, each all or none. Sent again, it is charged once.

    With HELIU_TOKEN a key of the platform with the scope usage:ingest will do.
    """
    events = _events(sys.stdin.read() if str(file) == "-" else _text_of(file))
    done = {"accepted": 0, "duplicates": 0}
    for start in range(0, len(events), EVENTS_AT_ONCE):
        answer = call("POST", "/api/usage-events", json=events[start : start + EVENTS_AT_ONCE])
        done = {name: done[name] + answer[name] for name in done}
        if not as_json:
            last = min(start + EVENTS_AT_ONCE, len(events))
            console.print(
                f"events {start + 1:,} to {last:,}: {answer['accepted']:,} taken, {answer['duplicates']:,} known",
                highlight=False,
            )
    if as_json:
        show(done, as_json=True)


def _text_of(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        wrong_usage(f"{file} cannot be read: {error}")


def _events(text: str) -> list[Any]:
    try:
        events = json.loads(text) if text.lstrip().startswith("[") else _by_line(text)
    except ValueError as error:
        wrong_usage(f"these are no events: {error}")
    if not events:
        wrong_usage("there is no event in it")
    return events


def _by_line(text: str) -> list[Any]:
    events: list[Any] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            events += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return events
