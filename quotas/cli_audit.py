"""`heliu audit`: who did what, as a list, as a file, and its proof."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import httpx
import typer

from kit.cli import REFUSED, JsonFlag, call, console, remote, show, tell, unreachable, unwrap
from quotas.cli_options import FirmOption
from quotas.vocabulary import ExportFormat

app = typer.Typer()
audit = typer.Typer(help="The audit log.", no_args_is_help=True)
app.add_typer(audit, name="audit")


@audit.command("list")
def list_audit(
    firm_id: FirmOption = None,
    subject: Annotated[str | None, typer.Option(help="Id of what it happened to.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this, e.g. firm.approve.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many at most.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List who did what, newest first."""
    asked = {"firm_id": firm_id, "subject": subject, "action": action, "limit": limit}
    rows = call("GET", "/api/audit", params={name: value for name, value in asked.items() if value is not None})
    columns = {"at": "when", "actor_id": "who", "origin": "from", "action": "what", "subject": "to", "reason": "why"}
    show(rows, as_json=as_json, columns=columns)


@audit.command("verify")
def verify(as_json: JsonFlag = False) -> None:
    """Prove that nothing that was sealed has been changed since; exit code 1 when something was."""
    report = call("GET", "/api/audit/verify")
    if as_json:
        show(report, as_json=True)
    else:
        counted = f"{report['entries']} entries, {report['unsealed']} not sealed yet, {report['blocks']} blocks, "
        counted += f"{report['heads']} of them compared with the heads kept outside the database"
        console.print(f"{counted}: {'something was changed' if report['findings'] else 'all is as it was written'}.")
        if report["findings"]:
            show(report["findings"], as_json=False)
    if report["findings"]:
        raise typer.Exit(REFUSED)


@audit.command("export")
def export(
    out: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
    format: Annotated[ExportFormat, typer.Option(help="JSON lines are the text that is hashed.")] = ExportFormat.JSONL,
    firm_id: FirmOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Take the whole log away, oldest first. With --json it says where it is; the log has its own --format."""
    params = {"format": format.value} | ({"firm_id": firm_id} if firm_id else {})
    try:
        with remote() as client, client.stream("GET", "/api/audit/export", params=params) as answer:
            if not answer.is_success:
                answer.read()
                unwrap(answer)
            with out.open("wb") if out else nullcontext(sys.stdout.buffer) as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)
    except httpx.TransportError as error:
        unreachable(error)
    if out is not None:
        tell(f"written: {out}", as_json=as_json, file=str(out), format=format.value, size_bytes=out.stat().st_size)
