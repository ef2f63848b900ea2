"""A program under the runner that does what its parameters say, in order."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from scheduler.node.outputs import ManifestEntry, write_manifest
from scheduler.node.protocol import Cause, OutputKind
from scheduler.node.report import Report


def main() -> int:
    folder = Path(sys.argv[1])
    report = Report.from_environment()
    steps = json.loads((folder / "plan.json").read_text())["params"]["steps"]
    for step, *arguments in steps:
        match step, *arguments:
            case "start",:
                report.started()
            case "say", text:
                print(text, flush=True)
            case "say_many", count:
                for number in range(count):
                    print(f"line {number}")
                sys.stdout.flush()
            case "progress", done, total, loss:
                report.progress(done, total, loss=loss)
            case "read", name:
                print((folder / "inputs" / name).read_text(), flush=True)
            case "environment",:
                print(json.dumps(dict(os.environ)), flush=True)
            case "write", name, text:
                (folder / "outputs" / name).write_text(text)
            case "manifest", *names:
                entries = [ManifestEntry(name=name, kind=OutputKind.FILE, meta={"note": "雪"}) for name in names]
                write_manifest(folder / "outputs", entries)
            case "sleep", seconds:
                time.sleep(seconds)
            case "wait_for", path:
                while not Path(path).exists():
                    time.sleep(0.02)
            case "ignore_sigterm",:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case "say_pid", name:
                print(f"{name} {os.getpid()}", flush=True)
            case "child",:
                child = subprocess.Popen(["sleep", "600"])
                print(f"child {child.pid}", flush=True)
            case "fail", cause, message:
                report.failed(Cause(cause), message)
                return 1
            case "exit", code:
                return code
            case "signal_self", number:
                os.kill(os.getpid(), number)
            case "rank",:
                print({name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}, flush=True)
            case _:
                raise ValueError(step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
