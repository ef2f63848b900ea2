"""`heliu document`: what a firm sends with its application."""

from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from kit.cli import JsonFlag, call, remote, show, tell, unreachable, unwrap
from quotas.cli_options import FirmOption
from quotas.documents import DocumentKind

app = typer.Typer()
document = typer.Typer(help="Documents of applications.", no_args_is_help=True)
app.add_typer(document, name="document")

COLUMNS = {"id": "document", "kind": "kind", "name": "name", "size_bytes": "bytes", "sha256": "SHA-256"}


@document.command("add")
def add(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A PDF, PNG or JPEG of 10 MiB at most.")],
    kind: Annotated[DocumentKind, typer.Option(help="What it proves.")] = DocumentKind.OTHER,
    as_json: JsonFlag = False,
) -> None:
    """Send a document of your firm; also while it waits for approval."""
    params = {"name": file.name, "kind": kind.value}
    show(call("POST", "/api/documents", params=params, content=file.read_bytes()), as_json=as_json, columns=COLUMNS)


@document.command("list")
def list_documents(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List a firm's documents."""
    rows: Any = call("GET", "/api/documents", params={"firm_id": firm_id} if firm_id else {})
    show(rows, as_json=as_json, columns=COLUMNS)


@document.command("get")
def get(
    document_id: Annotated[str, typer.Argument(help="A document's id (doc_…).")],
    to: Annotated[Path, typer.Argument(help="Where to save it.")],
    as_json: JsonFlag = False,
) -> None:
    """Save a document's file."""
    try:
        with remote() as client:
            answer = client.get(f"/api/documents/{document_id}/content")
    except httpx.TransportError as error:
        unreachable(error)
    if not answer.is_success:
        unwrap(answer)
    to.write_bytes(answer.content)
    tell(f"saved {to} ({len(answer.content):,} bytes)", as_json=as_json, path=str(to), size_bytes=len(answer.content))
