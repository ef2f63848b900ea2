"""What an attempt leaves behind: found, checked and sent up.

A platform recipe names its outputs in `outputs/manifest.json`. Of a script nothing is believed: every regular file
below outputs/ counts, and a link or a special file refuses the whole. All its processes are over by then, so
nothing changes under the walk.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError
from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_random_exponential,
)

from scheduler.node.client import Away, ControlPlane, Denied
from scheduler.node.protocol import Cause, FileName, OutputKind, Plan, Wire, plain_name
from scheduler.node.staging import NotReady, Stopped

MANIFEST = "manifest.json"


class ManifestEntry(Wire):
    name: FileName
    kind: OutputKind
    meta: dict[str, str | int | float | bool | None] = Field(default={})


_MANIFEST: TypeAdapter[list[ManifestEntry]] = TypeAdapter(list[ManifestEntry])


@dataclass(frozen=True, slots=True)
class Output:
    path: Path
    name: str
    kind: OutputKind
    meta: Mapping[str, Any]


def write_manifest(outputs: Path, entries: list[ManifestEntry]) -> None:
    """Name the files a recipe wrote below `outputs`."""
    (outputs / MANIFEST).write_bytes(_MANIFEST.dump_json(entries))


def collect(folder: Path, plan: Plan, *, prefix: str = "") -> list[Output]:
    """The outputs below `folder`, named in order. Raises NotReady(OUTPUT_REFUSED)."""
    found = _walked(folder, plan.output_files_max) if plan.sandboxed else _listed(folder)
    if len(found) > plan.output_files_max:
        raise _refused(f"it left more than {plan.output_files_max} files in outputs/")
    total = 0
    for output in found:
        total += _regular_size(output)
    if total > plan.output_bytes_max:
        raise _refused(f"it left {total} bytes in outputs/; {plan.output_bytes_max} are allowed")
    return [Output(o.path, prefix + o.name, o.kind, o.meta) for o in found]


def _regular_size(output: Output) -> int:
    status = output.path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise _refused(f"{output.name} in outputs/ is not a regular file")
    if status.st_nlink > 1:
        raise _refused(f"{output.name} in outputs/ is a hard link")
    return status.st_size


def _listed(folder: Path) -> list[Output]:
    manifest = folder / MANIFEST
    if not manifest.exists():
        return []
    try:
        entries = _MANIFEST.validate_json(manifest.read_bytes())
    except ValidationError as error:
        raise NotReady(Cause.PROGRAM_FAILED, f"the recipe's manifest is wrong: {error.error_count()} errors") from None
    for entry in entries:
        if not (folder / entry.name).is_file():
            raise NotReady(Cause.PROGRAM_FAILED, f"the recipe's manifest names {entry.name}, which is not there")
    return [Output(folder / entry.name, entry.name, entry.kind, entry.meta) for entry in entries]


def _walked(folder: Path, files_max: int) -> list[Output]:
    found: list[Output] = []
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                    continue
                found.append(Output(path, _name_below(folder, path), OutputKind.FILE, {}))
                if len(found) > files_max:
                    return found
    return sorted(found, key=lambda output: output.name)


def _name_below(folder: Path, path: Path) -> str:
    try:
        return plain_name(os.fsencode(path.relative_to(folder)).decode())
    except ValueError as error:
        raise _refused(f"a name in outputs/ is refused: {error}") from None


def _refused(message: str) -> NotReady:
    return NotReady(Cause.OUTPUT_REFUSED, message)


def upload(control: ControlPlane, outputs: list[Output], *, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Send every output up, insisting until `stop`. Raises NotReady or Stopped."""
    for output in outputs:
        with output.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        patience = Retrying(
            retry=retry_if_exception_type(Away),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop_when_event_set(stop),
            sleep=sleep_using_event(stop),
            reraise=True,
        )
        try:
            stored = patience(
                control.put_output,
                output.path,
                output.name,
                sha256=sha256,
                kind=output.kind,
                meta=output.meta,
                stop=stop,
            )
        except Away:
            raise Stopped from None
        except Denied as refusal:
            fault = Cause.OUTPUT_REFUSED if refusal.status in (400, 413, 422) else Cause.UPLOAD_FAILED
            raise NotReady(fault, f"output {output.name} was refused: {refusal}") from None
        if stored.sha256 != sha256:
            raise NotReady(Cause.UPLOAD_FAILED, f"output {output.name} arrived with a wrong hash")
        say(f"stored {output.name} ({stored.bytes} bytes, sha256 {sha256})")
