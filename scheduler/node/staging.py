"""Bring an attempt's inputs to the node: complete, of the stated size, under the stated hash."""

import hashlib
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)

from scheduler.node.cache import Cache
from scheduler.node.client import Away, ControlPlane, Denied
from scheduler.node.protocol import Cause, InputFile

FETCH_SECONDS_MAX = 900
"""How long one input is insisted on while the control plane does not answer."""
WRONG_HASH_MAX = 3
_SPARE_BYTES = 256 << 20


class Stopped(Exception):
    """Told to stop in the middle of it."""


class NotReady(Exception):
    """An attempt cannot start; `cause` says whose fault it is."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message


def stage_inputs(
    control: ControlPlane,
    files: Sequence[InputFile],
    folder: Path,
    *,
    cache: Cache,
    stop: threading.Event,
    say: Callable[[str], None],
) -> None:
    """Put every input below `folder`: copied from the node's cache, or fetched. Raises NotReady or Stopped."""
    _check_names(files)
    needed = sum(file.bytes for file in files) + _SPARE_BYTES
    cache.make_room(needed)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NotReady(Cause.SETUP_FAILED, f"the node has {free >> 20} MiB of disk left; {needed >> 20} MiB are needed")
    for file in files:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if cache.copy_to(file.sha256, target):
            continue
        for turn in range(1, WRONG_HASH_MAX + 1):
            if _fetch(control, file, target, stop) == file.sha256:
                cache.keep(file.sha256, target)
                break
            say(f"input {file.name} arrived with a wrong hash (try {turn} of {WRONG_HASH_MAX})")
        else:
            raise NotReady(Cause.INPUT_UNAVAILABLE, f"input {file.name} does not have the hash it was stored under")


def _check_names(files: Sequence[InputFile]) -> None:
    """One input may not be the folder of another."""
    names = {file.name for file in files}
    for name in names:
        if any(parent in names for parent in (str(path) for path in Path(name).parents)):
            raise NotReady(Cause.BAD_INPUT, f"input {name} lies below another input of that name")
    if len(names) != len(files):
        raise NotReady(Cause.BAD_INPUT, "two inputs have the same name")


def _fetch(control: ControlPlane, file: InputFile, target: Path, stop: threading.Event) -> str:
    """Download, resuming where a broken connection left off; the SHA-256 of what arrived."""
    part = target.with_name(target.name + ".part")
    part.write_bytes(b"")
    patience = Retrying(
        retry=retry_if_exception_type(Away),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        stop=stop_any(stop_after_delay(FETCH_SECONDS_MAX), stop_when_event_set(stop)),
        sleep=sleep_using_event(stop),
    )
    try:
        patience(_fetch_rest, control, file, part, stop)
    except RetryError as error:
        if stop.is_set():
            raise Stopped from None
        reason = error.last_attempt.exception()
        raise NotReady(Cause.INPUT_UNAVAILABLE, f"input {file.name} could not be fetched: {reason}") from None
    except Denied as refusal:
        raise NotReady(Cause.INPUT_UNAVAILABLE, f"input {file.name} was refused: {refusal}") from None
    part.replace(target)
    with target.open("rb") as stored:
        return hashlib.file_digest(stored, "sha256").hexdigest()


def _fetch_rest(control: ControlPlane, file: InputFile, part: Path, stop: threading.Event) -> None:
    """Append what is missing; a server that starts over makes us start over. Raises Away when it ends early."""
    with part.open("r+b") as out:
        out.seek(0, 2)
        for position, chunk in control.read_input(file, out.tell()):
            if stop.is_set():
                raise Stopped
            if position + len(chunk) > file.bytes:
                raise NotReady(
                    Cause.INPUT_UNAVAILABLE, f"input {file.name} is longer than the {file.bytes} bytes stated"
                )
            if position != out.tell():
                out.seek(position)
                out.truncate()
            out.write(chunk)
        if out.tell() != file.bytes:
            raise Away(f"only {out.tell()} of {file.bytes} bytes came")
