"""A program's checkpoint: a folder packed into one file, kept by the control plane, unpacked for the next attempt.

The program writes into `checkpoint/` and says that it is whole: a platform recipe by `Task.save`, a script by writing
the step into `checkpoint/SAVE`, which disappears once the folder was taken. The folder is packed at that call, so
whatever the program does next cannot change what was kept; the upload goes on beside it. Of a script's folder nothing
is believed: only regular files are taken, and no link is followed.
"""

import hashlib
import os
import stat
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, sleep_using_event, stop_when_event_set, wait_random_exponential

from scheduler.node.cache import Cache
from scheduler.node.client import Away, ControlPlane, Denied
from scheduler.node.protocol import plain_name

CALL = "SAVE"
FILES_MAX = 10_000
STEP_MAX = 2**53
KEEP_SECONDS_MAX = 60
"""How long the end of an attempt waits for its last checkpoint to arrive."""


class NotPacked(Exception):
    """The folder cannot be kept; the message says why, and what was kept before stays."""


def pack(folder: Path, saved: Path, step: int, *, bytes_max: int) -> Path:
    """`saved/<step>.tar` with every file below `folder`; the same files give the same bytes. Raises NotPacked."""
    target = saved / f"{step}.tar"
    draft = target.with_suffix(".part")
    try:
        with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as archive:
            _add_all(archive, folder, bytes_max)
    except NotPacked:
        draft.unlink(missing_ok=True)
        raise
    draft.replace(target)
    return target


def unpack(archive: Path, folder: Path, *, bytes_max: int) -> None:
    """The files of a packed checkpoint below `folder`. Raises NotPacked when it holds anything but plain files."""
    total = 0
    with tarfile.open(archive, "r:") as packed:
        for member in packed:
            content = packed.extractfile(member) if member.isreg() else None
            if content is None:
                raise NotPacked(f"{member.name} is not a regular file")
            total += member.size
            if total > bytes_max:
                raise NotPacked(f"it holds more than {bytes_max} bytes")
            target = folder / plain_name(member.name)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with target.open("xb") as out:
                while chunk := content.read(1 << 20):
                    out.write(chunk)


def called_step(folder: Path) -> int | None:
    """The step a script wrote into `SAVE`; None when it has not called. Raises NotPacked for what is no step."""
    try:
        fd = os.open(folder / CALL, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:
        raise NotPacked(f"checkpoint/{CALL} is not a plain file") from None
    with os.fdopen(fd, "rb") as file:
        said = file.read(32).strip() if stat.S_ISREG(os.fstat(fd).st_mode) else b"no file"
    if not said:
        return None  # it is being written
    if not (said.isdigit() and int(said) <= STEP_MAX):
        raise NotPacked(f"checkpoint/{CALL} holds the number of a step, from 0 to {STEP_MAX}")
    return int(said)


def _add_all(archive: tarfile.TarFile, folder: Path, bytes_max: int) -> None:
    files, total = 0, 0
    for path, folders, names, at in os.fwalk(folder, follow_symlinks=False):
        folders.sort()
        for name in sorted(names):
            below = str(Path(path, name).relative_to(folder))
            if below == CALL:
                continue
            files += 1
            total += _add(archive, below, name, at, bytes_max - total)
            if files > FILES_MAX:
                raise NotPacked(f"a checkpoint has {FILES_MAX} files at most")


def _add(archive: tarfile.TarFile, below: str, name: str, at: int, bytes_left: int) -> int:
    """Add one file, found by its name in an open folder; its size."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    except OSError as error:
        raise NotPacked(f"{below} cannot be read: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_nlink > 1:
            raise NotPacked(f"{below} is not a regular file")
        if seen.st_size > bytes_left:
            raise NotPacked("it is larger than a checkpoint may be")
        try:
            entry = tarfile.TarInfo(plain_name(below))
        except ValueError as error:
            raise NotPacked(str(error)) from None
        entry.size, entry.mode = seen.st_size, 0o600
        try:
            archive.addfile(entry, file)
        except OSError:
            raise NotPacked(f"{below} became shorter while it was read") from None
    return seen.st_size


@dataclass(frozen=True, slots=True)
class _Saved:
    path: Path
    step: int
    ran_ms: int


class Keeper:
    """Sends packed checkpoints up, the newest first, in a thread of its own. The node's cache keeps the last one."""

    def __init__(self, control: ControlPlane, saved: Path, cache: Cache, *, say: Callable[[str], None]) -> None:
        self._control = control
        self._folder = saved
        self._cache = cache
        self._cached: str | None = None
        self._say = say
        self._changed = threading.Condition()
        self._next: _Saved | None = None
        self._sending = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, step: int, ran_ms: int) -> None:
        """A checkpoint lies packed in `saved/`; one that was not sent yet is superseded."""
        with self._changed:
            if self._next is not None and self._next.step != step:
                self._next.path.unlink(missing_ok=True)
            self._next = _Saved(self._folder / f"{step}.tar", step, ran_ms)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, name="checkpoints", daemon=True)
                self._thread.start()

    def flush(self, seconds: float = KEEP_SECONDS_MAX) -> bool:
        """Wait until the newest has arrived or was refused; whether that happened in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._next is None and not self._sending, timeout=seconds)

    def close(self) -> None:
        """Send no more."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._stop.is_set())
                if self._stop.is_set() or self._next is None:
                    return
                saved, self._next, self._sending = self._next, None, True
            try:
                self._send(saved)
            finally:
                with self._changed:
                    if self._next is None or self._next.path != saved.path:
                        saved.path.unlink(missing_ok=True)
                    self._sending = False
                    self._changed.notify_all()

    def _send(self, saved: _Saved) -> None:
        try:
            with saved.path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return  # its program never packed it, or the attempt's folder is gone
        patience = Retrying(
            retry=retry_if_exception_type(Away),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop_when_event_set(self._stop),
            sleep=sleep_using_event(self._stop),
            reraise=True,
        )
        try:
            patience(
                self._control.put_checkpoint,
                saved.path,
                sha256=sha256,
                step=saved.step,
                ran_ms=saved.ran_ms,
                stop=self._stop,
            )
        except Away:
            return
        except Denied as refusal:
            self._say(f"the checkpoint of step {saved.step} was refused: {refusal}")
            return
        if self._cached is not None and self._cached != sha256:
            self._cache.drop(self._cached)
        self._cache.keep(sha256, saved.path)
        self._cached = sha256
        self._say(f"kept the checkpoint of step {saved.step} (sha256 {sha256})")
