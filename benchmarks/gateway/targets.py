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
CACHE = ROOT / ".venv-bench"
"""Each router has an environment of its own in here."""
GATEWAY_CORE, LOAD_CORE = 0, 1
SHIPPED_SECONDS = 1.5
"""Longer than the pause after which a gateway ships usage again."""
MODEL = "mock-model"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a load generator sends, and what it says. `pid`: the process that answers; 0 for the engine itself."""

    name: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    pid: int = 0

    def cpu_seconds(self) -> float:
        """What its process has computed so far."""
        times = psutil.Process(self.pid).cpu_times() if self.pid else None
        return 0.0 if times is None else times.user + times.system

    def settle(self) -> None:
        """Wait until nothing is left to charge, so that it takes nothing from whoever is measured next."""
        children = psutil.Process(self.pid).children() if self.pid else []
        charging = [child for child in children if "serving.gateway.ledger_process" in child.cmdline()]
        before, now = -1.0, 0.0
        while charging and now != before:
            time.sleep(SHIPPED_SECONDS)
            before, now = now, sum(sum(child.cpu_times()[:2]) for child in charging)


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
def heliu(*engines: str, model: str = MODEL, engine_key: str = "", alone: bool = True) -> Iterator[Target]:
    """Our gateway with everything on. `alone`: its process has the gateway's core, its helpers the other."""
    asked = f"*{engines!r}, model={model!r}, engine_key={engine_key!r}"
    run = f"from serving.gateway.bench_target import run; run({asked})"
    with _started([sys.executable, "-c", run], LOAD_CORE if alone else None) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        target = Target("heliu", said["url"], {"authorization": f"Bearer {said['api_key']}"}, process.pid)
        _warm(target, model)
        time.sleep(SHIPPED_SECONDS)  # the first usage is shipped, so the process that charges has been started
        target.settle()
        if alone:
            os.sched_setaffinity(process.pid, {GATEWAY_CORE})
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {GATEWAY_CORE})
            for child in psutil.Process(process.pid).children(recursive=True):
                os.sched_setaffinity(child.pid, {LOAD_CORE})
        yield target


@contextmanager
def vllm_router(engine: str) -> Iterator[Target]:
    """vLLM's own router (Rust)."""
    folder = _installed("vllm-router", "vllm-router==0.1.17")
    if folder is None:
        raise SystemExit("vllm-router is what this is measured against, and pip could not install it")
    command = [str(folder / "bin" / "vllm-router"), "--worker-urls", engine, "--policy", "cache_aware"]
    with _router("vllm_router", command) as target:
        yield target


@contextmanager
def sglang_router(engine: str) -> Iterator[Target | None]:
    """SGLang's router (Rust); None where it cannot be installed."""
    folder = _installed("sglang-router", "sglang-router==0.3.2")
    if folder is None:
        yield None
        return
    command = [str(folder / "bin" / "python"), "-m", "sglang_router.launch_router", "--worker-urls", engine]
    metrics = ["--prometheus-port", str(_free_port())]  # by default it wants vllm-router's
    with _router("sglang_router", [*command, "--policy", "cache_aware", *metrics]) as target:
        yield target


@contextmanager
def litellm(engine: str) -> Iterator[Target | None]:
    """LiteLLM's proxy (Python), without a database; None where it cannot be installed."""
    folder = _installed("litellm", "litellm[proxy]==1.103.0")
    if folder is None:
        yield None
        return
    # JSON is YAML too.
    served = {"model": f"openai/{MODEL}", "api_base": f"{engine}/v1", "api_key": "none"}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": served}]}))
    with _router("litellm", [str(folder / "bin" / "litellm"), "--config", str(config)]) as target:
        yield target


@contextmanager
def _router(name: str, command: list[str]) -> Iterator[Target]:
    port = _free_port()
    with _started(
        [*command, "--host", "127.0.0.1", "--port", str(port)], GATEWAY_CORE, stdout=subprocess.DEVNULL
    ) as process:
        target = Target(name, f"http://127.0.0.1:{port}", pid=process.pid)
        _warm(target, MODEL)
        yield target


def _installed(name: str, requirement: str) -> Path | None:
    """An environment with just this in it; None, and a line that says so, where pip cannot make it."""
    folder = CACHE / name
    done = folder / "installed"
    if done.exists() and done.read_text() == requirement:
        return folder
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = subprocess.run([str(folder / "bin" / "pip"), "install", "-q", requirement], capture_output=True, text=True)
    if pip.returncode != 0:
        sys.stderr.write(f"{requirement} is left out, pip could not install it: {pip.stderr.strip()[-300:]}\n")
        return None
    done.write_text(requirement)
    return folder


@contextmanager
def _started(command: list[str], core: int | None, *, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """`stdout`: a pipe for who says its port there and then no more; what logs into one stops when it is full."""
    pinned = command if core is None else ["taskset", "-c", str(core), *command]
    process = subprocess.Popen(pinned, cwd=ROOT, text=True, stdout=stdout, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=90)
        process.kill()
        process.wait()


def _warm(target: Target, model: str) -> None:
    """Return once it answers."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).encode()
    headers = {"content-type": "application/json"} | target.headers
    deadline = time.monotonic() + 180
    while True:
        asked = urllib.request.Request(f"{target.url}/v1/chat/completions", body, headers)
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
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
