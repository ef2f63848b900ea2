"""A control plane for one attempt, over real HTTP in this process, and the real runner as a subprocess against it."""

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.support.needs import need
from tests.support.until import until

REPOSITORY = Path(__file__).parents[2]
NODE_PYTHON = REPOSITORY / ".venv-node" / "bin" / "python"
ATTEMPT = "att_01test00000000000000000000"
TOKEN = f"ha_{ATTEMPT}_very-secret-token"


def node_python() -> str:
    """The node environment's interpreter; skips the test where it is not installed."""
    need(NODE_PYTHON.exists(), "the node environment", "run `make setup`")
    return str(NODE_PYTHON)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Stored:
    content: bytes
    kind: str
    meta: dict[str, Any]


@dataclass
class ControlPlaneStandIn:
    """Speaks the node protocol for one attempt. Its fields are what it was told and how it behaves."""

    plan: dict[str, Any]
    inputs: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    # How it behaves
    away: bool = False  # answers 503 to everything
    fence_lost: bool = False
    stop: bool = False
    grace_seconds: int = 5
    cut_inputs_after: int | None = None  # bytes sent before the connection breaks, once per request
    spoil_inputs: int = 0  # how many downloads still arrive with a wrong byte
    failing_outputs: int = 0  # how many uploads are still answered 503
    failing_finished: int = 0
    # What it was told
    plans: int = 0
    started: int = 0
    heartbeats: int = 0
    progress: list[dict[str, Any]] = field(default_factory=list)
    log: dict[int, str] = field(default_factory=dict)
    outputs: dict[str, Stored] = field(default_factory=dict)
    kept: list[tuple[int, int, bytes]] = field(default_factory=list)  # step, ran_ms and packed folder
    finished: dict[str, Any] | None = None
    ranges: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)  # inputs and "checkpoint", as often as they were asked for
    inventories: list[dict[str, Any]] = field(default_factory=list)
    unauthorized: int = 0
    extra_routes: dict[str, Any] = field(default_factory=dict)  # (method path) → callable(body) → (status, bytes)

    @property
    def text(self) -> str:
        """The log so far."""
        return "\n".join(self.log[seq] for seq in sorted(self.log))

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        """Status and JSON (or bytes) for one request."""
        if headers.get("authorization") != f"Bearer {TOKEN}":
            self.unauthorized += 1
            return 401, _problem("unauthenticated")
        if self.away:
            return 503, _problem("unavailable")
        if self.fence_lost:
            return 409, _problem("fence_lost")
        route = self.extra_routes.get(f"{method} {path}")
        if route is not None:
            return route(body)
        name = path.removeprefix(f"/internal/v1/attempts/{ATTEMPT}/")
        match method, name.split("/", 1)[0]:
            case "GET", "plan":
                self.plans += 1
                return 200, self.plan
            case "POST", "started":
                self.started += 1
                return 200, {"lease_seconds": self.plan["lease_seconds"]}
            case "POST", "heartbeat":
                return 200, self._heartbeat(json.loads(body))
            case "PUT", "outputs":
                return self._output(unquote(name.split("/", 1)[1]), headers, body)
            case "PUT", "checkpoint":
                return self._checkpoint(headers, body)
            case "GET", "checkpoint":
                self.fetched.append("checkpoint")
                return 200, self.kept[-1][2]
            case "POST", "finished":
                return self._finished(json.loads(body))
            case _:
                return 404, _problem("not_found")

    def _heartbeat(self, beat: dict[str, Any]) -> dict[str, Any]:
        self.heartbeats += 1
        if beat["progress"] is not None:
            self.progress.append(beat["progress"])
        self.inventories += beat["inventories"]
        for line in beat["log"]:
            assert self.log.setdefault(line["seq"], line["text"]) == line["text"], "a number means one line"
        return {
            "lease_seconds": self.plan["lease_seconds"],
            "command": "stop" if self.stop else "run",
            "grace_seconds": self.grace_seconds,
        }

    def _output(self, name: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if self.failing_outputs:
            self.failing_outputs -= 1
            return 503, _problem("unavailable")
        assert headers["x-sha256"] == sha256(body)
        self.outputs[name] = Stored(body, headers["x-kind"], json.loads(headers["x-meta"]))
        return 200, {"artifact_id": f"art_{len(self.outputs)}", "sha256": sha256(body), "bytes": len(body)}

    def _checkpoint(self, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        assert headers["x-sha256"] == sha256(body)
        self.kept.append((int(headers["x-step"]), int(headers["x-ran-ms"]), body))
        return 200, {"sha256": sha256(body), "bytes": len(body)}

    def again(self) -> None:
        """The next attempt begins: it is given what the one before kept."""
        self.stop, self.finished, self.log, self.started = False, None, {}, 0
        if self.kept:
            step, _, packed = self.kept[-1]
            self.plan["checkpoint"] = {"step": step, "sha256": sha256(packed), "bytes": len(packed)}

    def _finished(self, report: dict[str, Any]) -> tuple[int, Any]:
        if self.failing_finished:
            self.failing_finished -= 1
            return 503, _problem("unavailable")
        self.finished = self.finished or report
        return 200, {}


def _problem(code: str) -> dict[str, Any]:
    return {"title": code, "detail": f"it is {code}", "code": code}


@contextmanager
def serving(stand_in: ControlPlaneStandIn, port: int = 0) -> Iterator[ControlPlaneStandIn]:
    """It listens on a port of loopback until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            prefix = f"/internal/v1/attempts/{ATTEMPT}/inputs/"
            if self.command == "GET" and self.path.startswith(prefix) and not stand_in.away:
                self._input(unquote(self.path.removeprefix(prefix)), headers)
                return
            status, reply = stand_in.answer(self.command, self.path, headers, body)
            content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _input(self, name: str, headers: dict[str, str]) -> None:
            content = stand_in.inputs[name]
            stand_in.fetched.append(name)
            if stand_in.spoil_inputs:
                stand_in.spoil_inputs -= 1
                content = bytes(content[:-1]) + bytes([content[-1] ^ 1])
            start = 0
            if "range" in headers:
                stand_in.ranges.append(headers["range"])
                start = int(headers["range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if stand_in.cut_inputs_after is not None and len(content) - start > stand_in.cut_inputs_after:
                self.wfile.write(content[start : start + stand_in.cut_inputs_after])
                self.close_connection = True
                return
            self.wfile.write(content[start:])

        do_GET = do_POST = do_PUT = _handle

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a runner that was killed breaks its connection

    server = Server(("127.0.0.1", port), Handler)
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def plan(program: str, *, inputs: dict[str, bytes] | None = None, **changes: Any) -> ControlPlaneStandIn:
    """A stand-in with a plan for `program`; `changes` are fields of the plan."""
    inputs = inputs or {}
    return ControlPlaneStandIn(
        plan={
            "attempt_id": ATTEMPT,
            "workload_id": "job_01test00000000000000000000",
            "kind": "job",
            "program": program,
            "params": {},
            "inputs": [
                {
                    "name": name,
                    "url": f"/internal/v1/attempts/{ATTEMPT}/inputs/{name}",
                    "sha256": sha256(content),
                    "bytes": len(content),
                }
                for name, content in inputs.items()
            ],
            "sandboxed": False,
            "lease_seconds": 10,
            "heartbeat_seconds": 1,
            "grace_seconds": 5,
            "gpu_milli": 1000,
            "firm_id": "firm_01test0000000000000000000",
            **changes,
        },
        inputs=inputs,
    )


@dataclass
class RunningAttempt:
    """The runner's process and where it works."""

    process: subprocess.Popen[bytes]
    home: Path
    control: ControlPlaneStandIn
    stderr: Path

    def wait(self, seconds: float = 60) -> int:
        """The runner's exit code."""
        return self.process.wait(timeout=seconds)

    def said(self) -> str:
        """What the runner itself wrote."""
        return self.stderr.read_text(errors="replace")

    def until_log(self, text: str, *, seconds: float = 30) -> None:
        """Wait until the program's log holds `text`."""
        until(lambda: text in self.control.text, seconds=seconds, what=f"{text!r} in the log")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The node's HELIU_HOME."""
    return tmp_path / "home"


@contextmanager
def running(
    control: ControlPlaneStandIn, home: Path, *, environment: dict[str, str] | None = None
) -> Iterator[RunningAttempt]:
    """The real runner, killed at the end of the block when it still runs."""
    home.mkdir(exist_ok=True)
    stderr = home / "runner.log"
    with stderr.open("wb") as log:
        process = subprocess.Popen(
            [node_python(), "-m", "scheduler.node.runner"],
            cwd=REPOSITORY,
            env={
                "PATH": os.environ["PATH"],
                "HOME": os.environ.get("HOME", "/root"),
                "PYTHONPATH": str(REPOSITORY),
                "HELIU_HOME": str(home),
                "HELIU_MODELS_DIR": str(home / "models"),
                "HELIU_CONTROL_URL": control.url,
                "HELIU_ATTEMPT_ID": ATTEMPT,
                "HELIU_ATTEMPT_TOKEN": TOKEN,
                "RAY_AUTH_TOKEN": "the-cluster-secret",
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield RunningAttempt(process, home, control, stderr)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def is_alive(pid: int) -> bool:
    """Whether a process runs under this id (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
