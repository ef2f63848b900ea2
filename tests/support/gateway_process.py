"""A gateway as a process of its own, over a real database: to be killed, drained and started again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.databases import ROOT
from tests.support.until import until

_RUN = "from kit.settings import Settings; from serving.main import run_gateway; run_gateway(Settings())"


@dataclass
class GatewayProcess:
    """A running gateway; `folder` outlives it."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self, *, seconds: float = 20) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def gateway_process(database_url: str, folder: Path, **settings: object) -> Iterator[GatewayProcess]:
    """Start one and wait until it admits requests; ended afterwards, however it went."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"log-{len(list(folder.glob('log-*')))}.json"
    environment = os.environ | {
        "HELIU_DATABASE_URL": database_url,
        "HELIU_GATEWAY_PORT": "0",
        "HELIU_GATEWAY_FOLDER": str(folder),
        "HELIU_GATEWAY_METRICS_PORT": "0",
        **{f"HELIU_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()},
    }
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN], env=environment, cwd=ROOT, stderr=sink, stdout=subprocess.DEVNULL
        )
    try:
        port = until(lambda: _port(process, log), seconds=60, what="the gateway to listen")
        until(lambda: _ready(port), seconds=30, what="the gateway to know what is served")
        yield GatewayProcess(process, port, folder, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _ready(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200


def _port(process: subprocess.Popen[bytes], log: Path) -> int | None:
    text = log.read_text()
    assert process.poll() is None, f"the gateway ended: {text[-2000:]}"
    for line in text.splitlines():
        if line.startswith("{") and json.loads(line).get("message") == "the gateway listens":
            return int(json.loads(line)["port"])
    return None
