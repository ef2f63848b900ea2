"""Who on the network could knock at this machine: only Ray, at ports that ask for its token."""

import os
import subprocess

import httpx
import pytest

from tests.e2e.platform.conftest import Telling
from tests.support.running_platform import Listener, RunningPlatform
from tests.support.sources import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(240, func_only=True)]

BEYOND_LOOPBACK = {
    "gcs_server": "Ray's control store",
    "raylet": "Ray's node",
    "ray::DashboardAgent": "Ray's dashboard agent",
    "ray::RuntimeEnvAgent": "Ray's environment agent",
    "ray.util.client.server": "Ray's client server",
}
WHILE_A_JOB_RUNS = {"ray::JobSupervisor": "Ray's workers"}
"""What listens beyond loopback, by a word of its command line, and its name in ARCHITECTURE.md."""

HEALTH = "/api/local_raylet_healthz", "success"
"""What Ray's agents tell anybody: that they are well."""
EVERY_ADDRESS = ("::", "0.0.0.0")

CALLS_OF_RAY = """
import sys
from ray._raylet import GcsClient
print(len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)))
"""


def beyond_loopback(platform: RunningPlatform) -> list[Listener]:
    """All that listens where other machines may reach it."""
    return [one for one in platform.listeners() if not one.is_loopback]


def gcs_address(platform: RunningPlatform) -> str:
    """The control store's address as Ray's own processes use it."""
    (host,) = {
        word.partition("=")[2]
        for process in platform.below_ray("raylet/raylet")
        for word in process.cmdline()
        if word.startswith("--node_ip_address=")
    }
    return f"{host}:{platform.settings.ray_gcs_port}"


def test_only_the_parts_of_ray_that_the_documentation_names_listen_beyond_loopback(telling: Telling) -> None:
    found = beyond_loopback(telling.platform)
    allowed = BEYOND_LOOPBACK | WHILE_A_JOB_RUNS
    unexpected = [one for one in found if not any(word in one.command for word in allowed)]
    assert unexpected == []
    documented = " ".join((ROOT / "ARCHITECTURE.md").read_text().split())
    for word, name in BEYOND_LOOPBACK.items():
        assert any(word in one.command for one in found), f"{name} listens no more: strike it from ARCHITECTURE.md"
    assert [name for name in allowed.values() if name not in documented] == []


@pytest.mark.parametrize(("token", "answers"), [("own", True), ("wrong", False), (None, False)])
def test_ray_answers_calls_with_its_token_only(telling: Telling, token: str | None, answers: bool) -> None:
    platform = telling.platform
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = platform.settings.secret_file("ray_token").read_text().strip()
    if token is not None:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": own if token == "own" else "f" * len(own)}
    python = str(ROOT / ".venv-node" / "bin" / "python")
    done = subprocess.run(
        [python, "-c", CALLS_OF_RAY, gcs_address(platform)], env=environment, capture_output=True, text=True, timeout=90
    )
    assert (done.returncode == 0) is answers, done.stdout + done.stderr[-2000:]


def test_no_open_port_that_speaks_http_tells_more_than_its_health_without_the_token(telling: Telling) -> None:
    spoke: list[str] = []
    own_address = gcs_address(telling.platform).partition(":")[0]
    for one in beyond_loopback(telling.platform):
        host = own_address if one.ip in EVERY_ADDRESS else one.ip
        for path in ("/", "/metrics", "/api/job_agent/jobs/", HEALTH[0]):
            try:
                answer = httpx.get(f"http://{host}:{one.port}{path}", timeout=5)
            except httpx.HTTPError:
                continue  # gRPC, which the test above is about
            if answer.status_code not in (401, 403, 404) and (path, answer.text) != HEALTH:
                spoke.append(f"{one} {path}: HTTP {answer.status_code} {answer.text[:60]}")
    assert spoke == []
