"""What is measured: each started, warmed, and kept to its core."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
BENCH_VENV = ROOT / ".venv-bench"
ROUTER = "vllm-router==0.1.17"
GATEWAY_CORE, LOAD_CORE = 0, 1
MODEL = "mock-model"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a load generator sends, and what it says."""

    name: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def mock() -> Iterator[str]:
    """The instant engine, on the load's core; its URL."""
    with _started([sys.executable, "-m", "tests.support.mock_engine", "--model", MODEL], LOAD_CORE) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"


def nothing(engine: str) -> Target:
    """The engine itself."""
    return Target("nothing", engine)


@contextmanager
def heliu(engine: str) -> Iterator[Target]:
    """Our gateway with everything on; only its own process is on the gateway's core."""
    run = f"from serving.gateway.bench_target import run; run({engine!r}, model={MODEL!r})"
    with _started([sys.executable, "-c", run], LOAD_CORE) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        target = Target("heliu", said["url"], {"authorization": f"Bearer {said['api_key']}"})
        _warm(target)
        time.sleep(1)  # the first usage is shipped, so the process that charges runs
        os.sched_setaffinity(process.pid, {GATEWAY_CORE})
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {GATEWAY_CORE})
        for child in psutil.Process(process.pid).children(recursive=True):
            os.sched_setaffinity(child.pid, {LOAD_CORE})
        yield target


@contextmanager
def vllm_router(engine: str) -> Iterator[Target]:
    """vLLM's own router (Rust), from PyPI, in an environment of its own."""
    router = BENCH_VENV / "bin" / "vllm-router"
    if not router.exists():
        subprocess.run([sys.executable, "-m", "venv", str(BENCH_VENV)], check=True)
        subprocess.run([str(BENCH_VENV / "bin" / "pip"), "install", "-q", ROUTER], check=True)
    port = _free_port()
    command = [str(router), "--worker-urls", engine, "--host", "127.0.0.1", "--port", str(port)]
    with _started([*command, "--policy", "cache_aware"], GATEWAY_CORE):
        target = Target("vllm_router", f"http://127.0.0.1:{port}")
        _warm(target)
        yield target


@contextmanager
def _started(command: list[str], core: int) -> Iterator[subprocess.Popen[str]]:
    pinned = ["taskset", "-c", str(core), *command]
    process = subprocess.Popen(pinned, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=90)
        process.kill()
        process.wait()


def _warm(target: Target) -> None:
    """Return once it answers."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).encode()
    headers = {"content-type": "application/json"} | target.headers
    deadline = time.monotonic() + 60
    while True:
        asked = urllib.request.Request(f"{target.url}/v1/chat/completions", body, headers)
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
