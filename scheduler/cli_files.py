"""`heliu upload`, `heliu artifact`: bring files, take what jobs made."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.progress import Progress

from kit.cli import UNREACHABLE, JsonFlag, call, complaints, fail, remote, show, tell, unwrap

app = typer.Typer()
artifact = typer.Typer(help="What jobs made: list, show, get, link.", no_args_is_help=True)
app.add_typer(artifact, name="artifact")

PART_BYTES = 8 << 20
UPLOAD_COLUMNS = {
    "id": "Upload", "name": "Name", "size_bytes": "Bytes", "received_bytes": "Arrived", "state": "State",
    "sha256": "SHA-256",
}  # fmt: skip
ARTIFACT_COLUMNS = {
    "id": "Artifact", "name": "Name", "kind": "Kind", "size_bytes": "Bytes", "workload_id": "From job", "meta": "About",
    "sha256": "SHA-256",
}  # fmt: skip

ArtifactId = Annotated[str, typer.Argument(help="An artifact's id (art_…).")]


@app.command("upload")
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The file to send.")],
    name: Annotated[str | None, typer.Option(help="Its name on the platform; default: the file's own.")] = None,
    resume: Annotated[str | None, typer.Option(help="Continue this upload (up_…).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Send a file. What breaks off is continued with --resume."""
    with file.open("rb") as content:
        sha256, size = hashlib.file_digest(content, "sha256").hexdigest(), file.stat().st_size
    if resume:
        made = call("GET", f"/api/uploads/{resume}")
        if (made["sha256"], made["size_bytes"]) != (sha256, size):
            fail(f"{file} is not the file that {resume} began with", code="another_file")
    else:
        made = call("POST", "/api/uploads", json={"name": name or file.name, "size_bytes": size, "sha256": sha256})
    _send(made, file, quiet=as_json)
    show(call("POST", f"/api/uploads/{made['id']}/complete"), as_json=as_json, columns=UPLOAD_COLUMNS)


@artifact.command("list")
def list_artifacts(
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List your firm's artifacts, newest first."""
    show(call("GET", "/api/artifacts", params={"limit": limit}), as_json=as_json, columns=ARTIFACT_COLUMNS)


@artifact.command("show")
def show_artifact(artifact_id: ArtifactId, as_json: JsonFlag = False) -> None:
    """Show an artifact's name, size and hash."""
    show(call("GET", f"/api/artifacts/{artifact_id}"), as_json=as_json, columns=ARTIFACT_COLUMNS)


@artifact.command("get")
def get(
    artifact_id: ArtifactId,
    to: Annotated[Path | None, typer.Option("--to", "-o", help="Where to; default: its own name, here.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Download an artifact and check its hash."""
    known = call("GET", f"/api/artifacts/{artifact_id}")
    target = to or Path(known["name"].rpartition("/")[2])
    if target.exists():
        fail(f"{target} exists already", hint="choose another place with --to", code="file_exists")
    digest, draft = hashlib.sha256(), target.with_name(f"{target.name}.part")
    try:
        with remote(timeout_seconds=300) as http, http.stream("GET", f"/api/artifacts/{artifact_id}/content") as answer:
            if not answer.is_success:
                answer.read()
                unwrap(answer)
            with draft.open("wb") as file:
                for chunk in answer.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
    except httpx.TransportError as error:
        draft.unlink(missing_ok=True)
        fail(f"the download broke off ({error})", hint="try again", code="broke_off", exit_code=UNREACHABLE)
    if digest.hexdigest() != known["sha256"]:
        draft.unlink()
        fail("what arrived has another SHA-256 than the artifact", hint="try again", code="wrong_hash")
    draft.rename(target)
    sentence = f"{target}  {known['size_bytes']:,} bytes, SHA-256 {known['sha256']}"
    tell(sentence, as_json=as_json, file=str(target), size_bytes=known["size_bytes"], sha256=known["sha256"])


@artifact.command("link")
def link(artifact_id: ArtifactId, as_json: JsonFlag = False) -> None:
    """A link to this one object for a few minutes, for a program without your keys."""
    show(
        call("POST", f"/api/artifacts/{artifact_id}/link"),
        as_json=as_json,
        columns={"url": "Link", "expires_at": "Until"},
    )


def _send(made: dict[str, Any], file: Path, *, quiet: bool) -> None:
    offset, size = made["received_bytes"], made["size_bytes"]
    try:
        with (
            remote(timeout_seconds=300) as http,
            file.open("rb") as content,
            Progress(console=complaints, disable=quiet) as progress,
        ):
            task = progress.add_task(file.name, total=size, completed=offset)
            while offset < size:
                content.seek(offset)
                part = content.read(PART_BYTES)
                headers = {"Upload-Offset": str(offset), "Content-Type": "application/octet-stream"}
                answer = http.patch(f"/api/uploads/{made['id']}", content=part, headers=headers)
                offset = unwrap(answer)["received_bytes"]
                progress.update(task, completed=offset)
    except httpx.TransportError as error:
        hint = f"continue it with --resume {made['id']}"
        fail(f"the upload broke off ({error})", hint=hint, code="broke_off", exit_code=UNREACHABLE)
