"""`heliu usage`: what ran elsewhere, as files."""

from pathlib import Path
from typing import Annotated

import httpx
import typer

from kit.cli import JsonFlag, call, console, show, wrong_usage
from kit.units import format_yuan
from quotas.vocabulary import QoS

app = typer.Typer()
usage = typer.Typer(help="Usage from elsewhere.", no_args_is_help=True)
app.add_typer(usage, name="usage")

IMPORT_SECONDS = 900


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
