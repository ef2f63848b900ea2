"""A whole platform of its own for a test session: `heliu up` with a fresh home, free ports and the prepared model."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from heliu.supervisor import records
from heliu.supervisor.records import RunFolder, ServiceRecord
from kit.postgres import embedded_pid
from kit.settings import Settings
from tests.support.machine_lock import ENGINE_LOCK, RAY_LOCK, machine_locks
from tests.support.needs import need
from tests.support.sources import ROOT

START_SECONDS = 300
STOP_SECONDS = 120
PORTS = (
    "HELIU_API_PORT",
    "HELIU_GATEWAY_PORT",
    "HELIU_GATEWAY_METRICS_PORT",
    "HELIU_RAY_GCS_PORT",
    "HELIU_RAY_DASHBOARD_PORT",
)


@dataclass(frozen=True)
class Listener:
    """A TCP port that a process of a platform listens on."""

    ip: str
    port: int
    command: str

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.ip.startswith("127.") or self.ip == "::1"


class RunningPlatform:
    """What `heliu up` started: its settings, its processes, and its command line."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HELIU_")}
        self.environment |= {name: str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}
        self.environment |= {
            "HELIU_HOME": str(home),
            "HELIU_MODELS_DIR": str(prepared_models()),
            "HELIU_NODE_VENV": str(ROOT / ".venv-node"),
        }
        self.settings = Settings.model_validate(
            {
                name.removeprefix("HELIU_").lower(): value
                for name, value in self.environment.items()
                if name.startswith("HELIU_")
            }
        )

    def heliu(self, *arguments: str, seconds: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the `heliu` command against this platform; `variables` are added to its environment."""
        return subprocess.run(
            [sys.executable, "-m", "heliu", *arguments],
            cwd=ROOT,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start(self) -> None:
        """Start everything and return when it is ready. Raises AssertionError with what it said when it does not."""
        done = self.heliu("up", "--detach", seconds=START_SECONDS)
        assert done.returncode == 0, f"heliu up: {done.stdout}\n{done.stderr}\n{self.logs()}"

    def stop(self) -> None:
        """Stop everything; no process of it may be left."""
        done = self.heliu("down", seconds=STOP_SECONDS)
        assert done.returncode == 0, f"heliu down: {done.stdout}\n{done.stderr}"

    def service(self, name: str) -> ServiceRecord:
        """The record of a service (`api`, `gateway`, `controller`, `postgres`, `ray-head`, `ray-node`)."""
        return next(record for record in RunFolder(self.home).services() if record.name == name)

    def process(self, name: str) -> psutil.Process:
        """The running process of a service. Raises AssertionError when it does not run."""
        found = self.service(name).process.find()
        assert found is not None, f"{name} does not run"
        return found

    def kill(self, name: str) -> psutil.Process:
        """`kill -9` a service and return what was killed; the supervisor is to start it again."""
        victim = self.process(name)
        victim.send_signal(signal.SIGKILL)
        return victim

    def below_ray(self, *words: str) -> list[psutil.Process]:
        """Processes below the Ray node whose command line has all these words."""
        below = self.process("ray-node").children(recursive=True)
        return [process for process in below if all(word in command_of(process) for word in words)]

    def processes(self) -> list[psutil.Process]:
        """The supervisor and all that runs because of it, PostgreSQL included."""
        instance = RunFolder(self.home).instance()
        assert instance is not None, "the platform is down"
        supervisor = instance.supervisor.find()
        assert supervisor is not None, "the supervisor does not run"
        found = [supervisor, *supervisor.children(recursive=True)]
        found += [process for ref in records.marked(instance.id) if (process := ref.find()) is not None]
        postmaster = embedded_pid(self.home / "postgres")
        if postmaster is not None:
            found += [psutil.Process(postmaster), *psutil.Process(postmaster).children()]
        return list({process.pid: process for process in found}.values())

    def listeners(self) -> list[Listener]:
        """All that its processes listen on over TCP."""
        commands = {process.pid: command_of(process) for process in self.processes()}
        return [
            Listener(str(one.laddr[0]).removeprefix("::ffff:"), int(one.laddr[1]), commands[one.pid])
            for one in psutil.net_connections("inet")
            if one.status == psutil.CONN_LISTEN and one.pid in commands and one.laddr
        ]

    def logs(self, lines: int = 15) -> str:
        """The end of every log."""
        ends = []
        for log in sorted((self.home / "logs").glob("*.log")):
            text = log.read_text(errors="replace").splitlines()[-lines:]
            ends.append("\n".join([f"== {log.name}", *text]))
        return "\n".join(ends)


def command_of(process: psutil.Process) -> str:
    """Its command line; empty when it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def prepared_models() -> Path:
    """Folder of the models `make setup` prepared; the state of a test's own platform is elsewhere."""
    return Path(os.environ.get("HELIU_MODELS_DIR", ROOT / os.environ.get("HELIU_HOME", ".heliu") / "models")).resolve()


def free_ports(count: int) -> list[int]:
    """So many different ports nobody listens on, each with a free one above it, which a Ray head takes too."""
    with ExitStack() as probes:
        ports: list[int] = []
        while len(ports) < count:
            port = probes.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            with suppress(OSError, OverflowError):
                probes.enter_context(socket.create_server(("127.0.0.1", port + 1)))
                ports.append(port)
        return ports


@contextmanager
def running_platform() -> Iterator[RunningPlatform]:
    """A started platform, stopped and removed afterwards. One test session on a machine has one at a time."""
    need((ROOT / ".venv-node" / "bin" / "ray").exists(), "Ray in .venv-node", "run `make setup`")
    need((prepared_models() / "smollm2-135m-instruct").is_dir(), "the prepared model", "run `make setup`")
    with machine_locks(RAY_LOCK, ENGINE_LOCK):
        # A short path, for Ray puts Unix sockets deep below it; walkable, for PostgreSQL may be another user.
        folder = Path(tempfile.mkdtemp(prefix="hp-"))
        folder.chmod(0o755)
        platform = RunningPlatform(folder / "home")
        try:
            platform.start()
            yield platform
        finally:
            platform.stop()
            shutil.rmtree(folder, ignore_errors=True)
