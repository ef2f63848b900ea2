"""A program under the runner that does what its parameters say, in order."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scheduler.node.outputs import ManifestEntry, write_manifest
from scheduler.node.protocol import Cause, OutputKind
from scheduler.node.report import Report

FOLDER = Path(sys.argv[1])
REPORT = Report.from_environment()


def say(text: str) -> None:
    print(text, flush=True)


def say_many(count: int) -> None:
    say("\n".join(f"line {number}" for number in range(count)))


def manifest(*names: str) -> None:
    entries = [ManifestEntry(name=name, kind=OutputKind.FILE, meta={"note": "雪"}) for name in names]
    write_manifest(FOLDER / "outputs", entries)


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.02)


def fail(cause: str, message: str) -> None:
    REPORT.failed(Cause(cause), message)
    sys.exit(1)


def first_fails(folder: str) -> None:
    """Whoever comes first waits for the second, which goes on, and then fails."""
    try:
        (Path(folder) / "first").touch(exist_ok=False)
    except FileExistsError:
        (Path(folder) / "second").touch()
        return
    wait_for(f"{folder}/second")
    fail("bad_input", "the first one")


def rank() -> None:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    say(json.dumps({name: os.environ.get(name) for name in names}))


STEPS: dict[str, Callable[..., Any]] = {
    "start": REPORT.started,
    "say": say,
    "say_many": say_many,
    "progress": lambda done, total, loss: REPORT.progress(done, total, loss=loss),
    "read": lambda name: say((FOLDER / "inputs" / name).read_text()),
    "environment": lambda: say(json.dumps(dict(os.environ))),
    "write": lambda name, text: (FOLDER / "outputs" / name).write_text(text),
    "manifest": manifest,
    "sleep": time.sleep,
    "wait_for": wait_for,
    "ignore_sigterm": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "done_on_sigterm": lambda: signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)),
    "say_pid": lambda name: say(f"{name} {os.getpid()}"),
    "child": lambda: say(f"child {subprocess.Popen(['sleep', '600']).pid}"),
    "fail": fail,
    "exit": sys.exit,
    "signal_self": lambda number: os.kill(os.getpid(), number),
    "rank": rank,
    "first_fails": first_fails,
}

if __name__ == "__main__":
    for step, *arguments in json.loads((FOLDER / "plan.json").read_text())["params"]["steps"]:
        STEPS[step](*arguments)
