"""The load: Debian's wrk for rates, and one plain socket for the time to the first chunk."""

import json
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.gateway.targets import LOAD_CORE, MODEL, Target

PROMPT = "Tell me something about the Yangtze at Wuhan."
PATH = "/v1/chat/completions"
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What one measurement saw."""

    per_second: float
    p50_ms: float
    cpu_us: float
    """Processor time of the gateway or router for each request."""
    idle: float
    """Share of the time in which the load's core had nothing to do: with none left, the load is what is measured."""
    answered: int
    failed: int


def wrk(target: Target, connections: int, seconds: int, *, stream_tokens: int = 0) -> Load:
    """The same request over and over. Raises SystemExit on any failed one, and when none was answered."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write('wrk.method = "POST"\n')
        script.write(f"wrk.body = {json.dumps(_body(stream_tokens))}\n")
        for name, value in ({"content-type": "application/json"} | target.headers).items():
            script.write(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}\n")
        script.flush()
        load = run_wrk(target, connections, seconds, Path(script.name))
    if load.failed:
        raise SystemExit(f"{target.name} refused {load.failed} of {load.failed + load.answered} requests")
    if not load.answered:
        raise SystemExit(f"{target.name} answered nothing in {seconds} s")
    return load


def run_wrk(target: Target, connections: int, seconds: int, script: Path) -> Load:
    """What wrk sees of a target, and what it costs there."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    cpu, core = target.cpu_seconds(), psutil.cpu_times(percpu=True)[LOAD_CORE]
    done = subprocess.run([*command, "-s", str(script), target.url + PATH], capture_output=True, text=True, check=True)
    cpu, after = target.cpu_seconds() - cpu, psutil.cpu_times(percpu=True)[LOAD_CORE]
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    middle = re.search(r"50%\s+([\d.]+)(us|ms|s|m)", done.stdout)
    count = re.search(r"(\d+) requests in", done.stdout)
    assert rate and middle and count, done.stdout
    idle = (_waited(after) - _waited(core)) / (sum(after) - sum(core))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    failed = int(refused[1]) if refused else 0
    every = int(count[1])
    each = cpu / max(1, every) * 1e6
    return Load(float(rate[1]), float(middle[1]) * _MS[middle[2]], each, idle, every - failed, failed)


def _waited(core: Any) -> float:
    """Linux counts waiting for a disk apart; psutil's types do not know of it."""
    return core.idle + core.iowait


def first_chunk_ms(target: Target, count: int = 100) -> float:
    """Median time from sending a streamed request to the first byte of its body's first chunk, one at a time."""
    where = urlsplit(target.url)
    body = _body(20).encode()
    headers = {"host": "bench", "content-type": "application/json", "content-length": str(len(body))} | target.headers
    head = f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    times: list[float] = []
    with socket.create_connection((where.hostname or "", where.port or 80)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(head.encode() + body)
            seen = b""
            while b"data:" not in seen:
                seen += connection.recv(65_536)
            times.append(time.perf_counter() - began)
            while not seen.endswith(b"0\r\n\r\n"):
                seen += connection.recv(65_536)
    return statistics.median(times) * 1000


def _body(stream_tokens: int) -> str:
    asked: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
    return json.dumps(asked | ({"max_tokens": stream_tokens, "stream": True} if stream_tokens else {"max_tokens": 16}))
