"""A real Ray head on ports of its own: with a token, one node of two CPU slots, killed and started at will."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.support.machine_lock import RAY_LOCK, machine_locks
from tests.support.needs import need
from tests.support.until import until

ROOT = Path(__file__).resolve().parents[2]
RAY = ROOT / ".venv-node" / "bin" / "ray"
CENTRE, ACCELERATOR = "optics-valley", "cpu-slot"
START_SECONDS = 90


class RealRay:
    """One head with its node. Its folder's path is short: Ray puts Unix sockets deep below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(32)
        self.gcs_port, self.dashboard_port, self.client_port = (_free_port() for _ in range(3))
        self._head: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The dashboard, where the Jobs API answers."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start(self) -> None:
        """Start the head and wait until it lists its node."""
        options = {
            "--port": self.gcs_port,
            "--ray-client-server-port": self.client_port,
            "--include-dashboard": "true",
            "--dashboard-host": "127.0.0.1",
            "--dashboard-port": self.dashboard_port,
            "--dashboard-agent-listen-port": 0,
            "--node-ip-address": "127.0.0.1",
            "--temp-dir": self.folder / "ray",
            "--num-cpus": 2,
            "--num-gpus": 0,
            "--resources": '{"slot": 2}',
            "--labels": f"heliu.io/centre={CENTRE},heliu.io/accelerator={ACCELERATOR}",
            "--object-store-memory": 128 << 20,
        }
        flags = [f"{name}={value}" for name, value in options.items()]
        environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_open_telemetry": "0",
            "RAY_prestart_worker_first_driver": "0",
        }
        with (self.folder / "ray.log").open("ab") as log:
            self._head = subprocess.Popen(
                [str(RAY), "start", "--head", "--block", "--disable-usage-stats", *flags],
                env=environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self.lists_its_node, seconds=START_SECONDS, what="Ray listing its node")

    def lists_its_node(self) -> bool:
        """Whether the dashboard answers and knows the node."""
        try:
            headers = {"Authorization": f"Bearer {self.token}"}
            answer = httpx.get(f"{self.url}/api/v0/nodes", params={"detail": "true"}, headers=headers, timeout=5)
            return answer.is_success and any(
                row["state"] == "ALIVE" and "slot" in (row["resources_total"] or {})
                for row in answer.json()["data"]["result"]["result"]
            )
        except (httpx.HTTPError, KeyError, ValueError):
            return False

    def kill(self) -> None:
        """End everything of it at once, as a power cut would. Only its own session of processes."""
        if self._head is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._head.pid, signal.SIGKILL)
            self._head.wait(timeout=20)
            self._head = None


@contextmanager
def real_ray() -> Iterator[RealRay]:
    """A running head. Only one test session on a machine has one at a time."""
    need(RAY.exists(), "Ray in .venv-node", "run `make setup`")
    with machine_locks(RAY_LOCK):
        folder = Path(tempfile.mkdtemp(prefix="hr-"))
        cluster = RealRay(folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.kill()
            shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
