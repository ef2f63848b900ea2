"""One program of an attempt: its process group, its output, its report. It never outlives who started it."""

import codecs
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scheduler.node.lease import boottime
from scheduler.node.report import REPORT_FD, Event, parse_event

_READ_BYTES = 1 << 16
_LINE_CHARS_MAX = 1 << 16
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


def die_with_parent(parent_pid: int) -> None:
    """Be killed by the kernel when the thread that started this process ends: prctl(2), PR_SET_PDEATHSIG."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before the line above
        os._exit(1)


@dataclass(frozen=True, slots=True)
class Line:
    """One line the program printed."""

    rank: int
    text: str


@dataclass(frozen=True, slots=True)
class Told:
    """One event the program reported."""

    rank: int
    event: Event
    at: float  # boottime seconds


@dataclass(frozen=True, slots=True)
class Exited:
    """The program and all of its process group are over. `exit_code` is negative for a signal."""

    rank: int
    exit_code: int
    at: float


Notice = Line | Told | Exited


class ProgramProcess:
    """Started on creation, by a thread that must live as long as the program. Notices arrive from other threads."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        notice: Callable[[Notice], None],
        rank: int = 0,
    ) -> None:
        self._notice = notice
        self._rank = rank
        self._signals = threading.Lock()
        self._reaped = False  # its process id may belong to somebody else
        report_read, report_write = os.pipe()
        parent = os.getpid()
        try:
            self._process = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**environment, REPORT_FD: str(report_write)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(report_write,),
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - one system call, resolved before
            )
        except OSError:
            os.close(report_read)
            raise
        finally:
            os.close(report_write)
        assert self._process.stdout is not None
        readers = [
            threading.Thread(target=self._read_lines, args=(self._process.stdout.fileno(),), daemon=True),
            threading.Thread(target=self._read_report, args=(report_read,), daemon=True),
        ]
        for reader in readers:
            reader.start()
        threading.Thread(target=self._wait, args=(readers,), daemon=True).start()

    @property
    def pid(self) -> int:
        """Also the id of its process group."""
        return self._process.pid

    def terminate(self) -> None:
        """Ask it, and every process of its group, to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it, and every process of its group, now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with self._signals, suppress(ProcessLookupError, PermissionError):
            if not self._reaped:
                os.killpg(self._process.pid, number)

    def _wait(self, readers: list[threading.Thread]) -> None:
        # WNOWAIT keeps the process id taken, so that the group killed below cannot be somebody else's.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        at = boottime()
        self._signal(signal.SIGKILL)
        with self._signals:
            exit_code = self._process.wait()
            self._reaped = True
        for reader in readers:
            reader.join(timeout=5)
        self._notice(Exited(self._rank, exit_code, at))

    def _read_lines(self, fd: int) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        rest = ""
        while chunk := _read(fd):
            *lines, rest = (rest + decoder.decode(chunk)).replace("\r", "\n").split("\n")
            if len(rest) > _LINE_CHARS_MAX:
                lines, rest = [*lines, rest], ""
            for line in lines:
                if line.strip():
                    self._notice(Line(self._rank, line))
        if rest.strip():
            self._notice(Line(self._rank, rest))

    def _read_report(self, fd: int) -> None:
        rest = b""
        while chunk := _read(fd):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                try:
                    event = parse_event(line)
                except ValueError:
                    self._notice(Line(self._rank, "(the program sent a report that is not understood)"))
                else:
                    self._notice(Told(self._rank, event, boottime()))
        os.close(fd)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _READ_BYTES)
    except OSError:
        return b""
