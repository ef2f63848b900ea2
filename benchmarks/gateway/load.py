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
from urllib.parse import urlsplit

from benchmarks.gateway.targets import LOAD_CORE, MODEL, Target

PROMPT = "Tell me something about the Yangtze at Wuhan."
PATH = "/v1/chat/completions"
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What one measurement saw."""

    per_second: float
    p50_ms: float


def wrk(target: Target, connections: int, seconds: int, *, stream_tokens: int = 0) -> Load:
    """Requests per second and median latency over so many connections. Raises SystemExit on any failed request."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write('wrk.method = "POST"\n')
        script.write(f"wrk.body = {json.dumps(_body(stream_tokens))}\n")
        for name, value in ({"content-type": "application/json"} | target.headers).items():
            script.write(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}\n")
        script.flush()
        command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
        done = subprocess.run(
            [*command, "-s", script.name, target.url + PATH], capture_output=True, text=True, check=True
        )
    if "Non-2xx" in done.stdout:
        raise SystemExit(f"{target.name} refused requests:\n{done.stdout}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    middle = re.search(r"50%\s+([\d.]+)(us|ms|s|m)", done.stdout)
    assert rate and middle, done.stdout
    return Load(float(rate[1]), float(middle[1]) * _MS[middle[2]])


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
