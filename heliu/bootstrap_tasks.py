"""Long set-up steps, side by side and seen: commands whose output goes to a log and their last word to one line.

Standard library only, as everything that runs before there is a virtual environment.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

STOP_SECONDS = 10.0


class Refusal(Exception):
    """Set-up cannot go on; the message says what was wrong, what was expected and what to do."""


class Task:
    """A long step: its commands' output goes to a log, its last word to the progress line."""

    def __init__(self, title: str, log: Path, venv: Path | None = None) -> None:
        self.title = title
        self.log = log
        self.venv = venv
        self.word = "starting"
        self.error: Refusal | None = None
        self.started = time.monotonic()
        self.seconds: float | None = None
        self.process: subprocess.Popen[str] | None = None

    def install(self, *arguments: str) -> None:
        """Install into this task's environment. No bytecode is compiled ahead: most modules are never imported."""
        self.pip("install", "--no-compile", "--progress-bar", "off", *arguments)

    def pip(self, *arguments: str) -> None:
        """Run the pip of this task's environment."""
        assert self.venv, "this task has an environment"
        self.run(
            [
                str(self.venv / "bin" / "python"),
                "-m",
                "pip",
                "--disable-pip-version-check",
                *arguments,
            ]
        )

    def run(self, command: list[str], env: dict[str, str] | None = None) -> None:
        """Run a command to its end. Raises Refusal with its complaint when it fails."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        with (
            self.log.open("a") as log,
            subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches it through `signal`, once
            ) as process,
        ):
            self.process = process
            assert process.stdout
            for line in process.stdout:
                log.write(line)
                lines = [*lines[-30:], line.strip()]
                self.word = self._reduced(line.strip()) or self.word
        code = process.returncode
        if code < 0:
            lines.append(f"it was ended by signal {-code}")
        if code:
            said = [line for line in lines if line and not line.startswith("WARNING")]
            complaints = [line for line in said if line.startswith(("ERROR", "E:"))] or said[-3:]
            raise Refusal(f"{self.title} failed: {' · '.join(complaints)[:600]} (whole log: {self.log})")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the running command and everything it started."""
        if self.process and self.seconds is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def _reduced(self, line: str) -> str:
        """The part of a line of output worth a glance; empty for noise."""
        if line.startswith("Installing collected packages"):
            return "installing"
        if found := re.match(
            r"(Collecting|Downloading|Processing|Building wheel for) (?:\S+/)?([\w.-]+)",
            line,
        ):
            return f"{found[1].lower()} {re.split('-[0-9]', found[2])[0]}"
        return "" if self.venv else line[:80]

    def glance(self) -> str:
        """One line: title, time, what it does at the moment."""
        elapsed = f"{int(self.seconds or time.monotonic() - self.started)} s"
        word = "done" if self.seconds else self.word
        if word == "installing" and self.venv:
            count = sum(1 for _ in self.venv.glob("lib/python3*/site-packages/*.dist-info"))
            word = f"installing, {count} packages in place"
        return f"{self.title}: {elapsed}, {word}"


def run_tasks(work: Sequence[tuple[Task, Callable[[], None]]]) -> None:
    """Do (task, action) pairs side by side and show how far they are. Raises the first Refusal once all ended."""
    threads = [threading.Thread(target=_carry_out, args=pair, daemon=True) for pair in work]
    for thread in threads:
        thread.start()
    try:
        _watch([task for task, _ in work], threads)
    except KeyboardInterrupt:
        stop(list(zip((task for task, _ in work), threads, strict=True)))
        raise
    for task, _ in work:
        if task.error:
            raise task.error
        note("ok", f"{task.title} ({task.seconds:.0f} s)")


def stop(running: Sequence[tuple[Task, threading.Thread]]) -> None:
    """Interrupt what runs, so that it tidies up as after Ctrl-C; what does not heed that is killed."""
    for number in (signal.SIGINT, signal.SIGKILL):
        for task, _ in running:
            task.signal(number)
        deadline = time.monotonic() + STOP_SECONDS
        for _, thread in running:
            thread.join(max(0.0, deadline - time.monotonic()))


def _carry_out(task: Task, action: Callable[[], None]) -> None:
    try:
        action()
    except Refusal as refusal:
        task.error = refusal
    task.seconds = time.monotonic() - task.started


def _watch(tasks: list[Task], threads: list[threading.Thread]) -> None:
    terminal = sys.stdout.isatty()
    due = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        if time.monotonic() >= due:
            line = "   ·  ".join(task.glance() for task in tasks)
            if terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r{f'  ..  {line}'[:width]:<{width}}", end="", flush=True)
            else:
                print(f"  ..  {line}", flush=True)
            due = time.monotonic() + (0.5 if terminal else 15)
        for thread in threads:
            thread.join(0.1)
    if terminal and tasks:
        print("\r\033[K", end="")


def note(mark: str, sentence: str) -> None:
    """Print one line of the report."""
    print(f"  {mark:<3} {sentence}", flush=True)
