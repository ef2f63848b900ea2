"""Jobs on a real Ray, through the real runner, API and ledger: they finish once and are charged once, whatever dies."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from kit.blobs import Blobs
from kit.clock import SystemClock
from kit.db import Database
from kit.secret_files import load_or_create
from kit.settings import Settings
from kit.web import create_app
from quotas import api as quotas
from scheduler.main import routers, terms_from
from tests.support.money import publish_prices
from tests.support.needs import need
from tests.support.real_ray import RealRay, real_ray
from tests.support.scheduling import UNLIMITED, City, Firm, job
from tests.support.until import until_async

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500, func_only=True)]

# Counts to N a third of a second apart, then leaves a file.
PROGRAM = b"""
import sys, time
for i in range(int(sys.argv[1])):
    print(f"shot {i}", flush=True)
    time.sleep(0.3)
open("outputs/film.txt", "w").write("the end")
"""
# As some programs do: takes SIGTERM for a good reason to end with 0, whatever is left to do.
POLITE = b"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n" + PROGRAM


@dataclass
class Platform:
    """A control plane on a port, a controller process and a Ray head, all real."""

    city: City
    ray: RealRay
    url: str
    environment: dict[str, str]
    controller: subprocess.Popen[bytes] | None = None

    def start_controller(self) -> None:
        """Start a controller; its log goes beside Ray's."""
        with (self.ray.folder / "controller.log").open("ab") as log:
            command = [sys.executable, "-m", "tests.support.controller_process"]
            self.controller = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def kill_controller(self) -> None:
        """kill -9."""
        if self.controller is not None:
            self.controller.send_signal(signal.SIGKILL)
            self.controller.wait(timeout=10)
            self.controller = None

    async def submit(self, firm: Firm, shots: int, program: bytes = PROGRAM) -> str:
        """A script that takes `shots` thirds of a second."""
        upload = await self.city.upload(firm, "shoot.py", program)
        params = {"command": ["python3", "shoot.py", str(shots)], "runtime_seconds_max": 300}
        inputs = [{"name": "shoot.py", "source_id": upload}]
        answer = await firm.http.post("/api/jobs", json=job(params=params, inputs=inputs, max_runtime_seconds=300))
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    async def becomes(self, firm: Firm, job_id: str, *states: str, seconds: float = 150) -> dict[str, Any]:
        """The job once it is in one of these states."""
        seen: dict[str, Any] = {}

        async def there() -> bool:
            seen.update(await self.city.view(firm, job_id))
            return seen["state"] in states

        try:
            await until_async(there, seconds=seconds, what=f"{job_id} being {states}")
        except AssertionError as error:
            log = (self.ray.folder / "controller.log").read_text()[-3000:]
            raise AssertionError(f"{error}\n{json.dumps(seen, indent=1)}\n{log}") from None
        return seen

    async def logged(self, firm: Firm, job_id: str, text: str) -> None:
        """Wait for a line of the job's log."""

        async def there() -> bool:
            lines = (await firm.http.get(f"/api/jobs/{job_id}/logs")).json()["lines"]
            return any(text in line["text"] for line in lines)

        await until_async(there, seconds=120, what=f"{text!r} in the log of {job_id}")

    async def assert_settled(self, firm: Firm, job_id: str) -> None:
        """One charge, no hold, a ledger in order."""
        seen = await self.city.view(firm, job_id)
        async with self.city.db.transaction() as tx:
            charges = await quotas.charges_of(tx, job_id)
        *lost, paid = [charge.amount for charge in charges]  # lines of nothing say what the platform lost
        assert (sum(lost), paid) == (0, seen["charged_micro_yuan"])
        assert await self.city.open_holds(job_id) == 0
        await self.city.assert_ledger()


@pytest.fixture(scope="module")
def ray_head() -> Iterator[RealRay]:
    need(shutil.which("bwrap") is not None, "bubblewrap", "install it: apt-get install -y bubblewrap")
    with real_ray() as head:
        yield head


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """The app on a port of its own, in this process."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=2))
    serving = asyncio.create_task(server.serve())
    await until_async(lambda: _started(server), seconds=20, what="the control plane listening")
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


async def _started(server: uvicorn.Server) -> bool:
    return server.started


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The platform's folder; a script's user must be able to walk there."""
    tmp_path.chmod(0o755)
    return tmp_path / "home"


@pytest.fixture
async def platform(ray_head: RealRay, database_url: str, home: Path) -> AsyncIterator[Platform]:
    clock, db = SystemClock(), Database(database_url)
    settings = Settings(home=home, database_url=database_url, lease_seconds=8, heartbeat_seconds=2)
    settings.secret_file("ray_token").parent.mkdir(parents=True, mode=0o700)
    settings.secret_file("ray_token").write_text(ray_head.token)
    assert load_or_create(settings.secret_file("ray_token")) == ray_head.token
    blobs = Blobs(settings.blobs)
    app = create_app(
        "test", "0", routers(db, blobs, clock, settings), body_limit_bytes=1 << 20, unlimited_prefixes=UNLIMITED
    )
    app.state.db, app.state.clock = db, clock
    await publish_prices(db, now=clock.now())
    async with served(app) as url:
        environment = os.environ | {
            "HELIU_HOME": str(home),
            "HELIU_DATABASE_URL": database_url,
            "HELIU_CONTROL_URL": url,
            "HELIU_RAY_DASHBOARD_PORT": str(ray_head.dashboard_port),
            "HELIU_LEASE_SECONDS": "8",
            "HELIU_HEARTBEAT_SECONDS": "2",
        }
        city = City(db, clock, blobs, app, terms_from(settings))  # pyright: ignore[reportArgumentType]
        made = Platform(city, ray_head, url, environment)
        made.start_controller()
        try:
            await until_async(lambda: _has_pool(city), seconds=60, what="the controller seeing Ray's node")
            yield made
        finally:
            made.kill_controller()
    await db.close()


async def _has_pool(city: City) -> bool:
    firm = await city.firm()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(city.app), base_url="http://heliu.test") as http:
        pools = await http.get("/api/pools", headers=dict(firm.http.headers))
    return any(pool["gpu_milli"] for pool in pools.json())


async def test_a_job_runs_on_ray_streams_its_log_and_leaves_its_artifact(platform: Platform) -> None:
    firm = await platform.city.firm()
    job_id = await platform.submit(firm, 5)
    seen = await platform.becomes(firm, job_id, "succeeded", "failed")
    assert seen["state"] == "succeeded", seen
    lines = [line["text"] for line in (await firm.http.get(f"/api/jobs/{job_id}/logs")).json()["lines"]]
    assert [line for line in lines if line.startswith("shot")] == [f"shot {i}" for i in range(5)]
    (film,) = seen["artifacts"]
    assert (await firm.http.get(f"/api/artifacts/{film['id']}/content")).content == b"the end"
    assert 1_000 < seen["charged_micro_yuan"] < 60_000, "about a second and a half, at one micro-yuan per millisecond"
    await platform.assert_settled(firm, job_id)


async def test_a_running_job_is_cancelled_for_real(platform: Platform) -> None:
    firm = await platform.city.firm()
    job_id = await platform.submit(firm, 900)
    await platform.logged(firm, job_id, "shot 2")
    assert (await firm.http.post(f"/api/jobs/{job_id}/cancel")).status_code == 200
    seen = await platform.becomes(firm, job_id, "cancelled", seconds=60)
    assert seen["charged_micro_yuan"] > 0 and seen["artifacts"] == []
    await platform.assert_settled(firm, job_id)


async def test_a_controller_killed_while_a_job_runs_is_followed_by_one_that_goes_on(platform: Platform) -> None:
    firm = await platform.city.firm()
    job_id = await platform.submit(firm, 30)
    await platform.logged(firm, job_id, "shot 1")
    platform.kill_controller()
    second = await platform.submit(firm, 1)
    await platform.logged(firm, job_id, "shot 20")
    platform.start_controller()
    for name in (job_id, second):
        seen = await platform.becomes(firm, name, "succeeded", "failed")
        assert (seen["state"], len(seen["attempts"])) == ("succeeded", 1)
        await platform.assert_settled(firm, name)


async def test_an_attempt_that_ray_ends_by_itself_is_run_again_even_if_its_program_ends_with_0(
    platform: Platform,
) -> None:
    firm = await platform.city.firm()
    job_id = await platform.submit(firm, 30, POLITE)
    await platform.logged(firm, job_id, "shot 1")
    (attempt,) = (await platform.city.view(firm, job_id))["attempts"]
    headers = {"Authorization": f"Bearer {platform.ray.token}"}
    async with httpx.AsyncClient(base_url=platform.ray.url, headers=headers) as ray:
        assert (await ray.post(f"/api/jobs/{attempt['id']}/stop")).status_code == 200
    seen = await platform.becomes(firm, job_id, "succeeded", "failed", "cancelled")
    assert (seen["state"], len(seen["attempts"])) == ("succeeded", 2), seen
    assert seen["attempts"][0]["cause"] == "platform", seen
    assert "ended it (SIGTERM)" in seen["attempts"][0]["message"]
    await platform.assert_settled(firm, job_id)


async def test_a_ray_head_that_dies_and_comes_back_with_nothing_makes_the_job_run_again(platform: Platform) -> None:
    firm = await platform.city.firm()
    job_id = await platform.submit(firm, 60)  # longer than Ray takes to end what its dead head left behind
    await platform.logged(firm, job_id, "shot 1")
    platform.ray.kill()
    platform.ray.start()
    seen = await platform.becomes(firm, job_id, "succeeded", "failed", seconds=240)
    assert (seen["state"], len(seen["attempts"])) == ("succeeded", 2), seen
    assert seen["attempts"][0]["cause"] in ("lease_lost", "node_lost")
    await platform.assert_settled(firm, job_id)


async def test_the_commands_bring_a_file_quote_submit_follow_explain_and_fetch(platform: Platform) -> None:
    firm = await platform.city.firm()
    token = firm.http.headers["Authorization"].removeprefix("Bearer ")
    folder = platform.ray.folder / "cli"
    folder.mkdir()
    (folder / "shoot.py").write_bytes(PROGRAM)

    async def heliu(*arguments: str) -> str:
        command = [sys.executable, "-c", "from scheduler.cli import app; app()", *arguments]
        environment = os.environ | {"HELIU_API_URL": platform.url, "HELIU_TOKEN": token, "PYTHONPATH": str(Path.cwd())}
        options: dict[str, Any] = {"env": environment, "cwd": folder, "capture_output": True, "text": True}
        done = await asyncio.to_thread(subprocess.run, command, timeout=120, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    upload = json.loads(await heliu("upload", "shoot.py", "--json"))
    what = ["script", "--pool", "optics-valley/cpu-slot", "--input", f"shoot.py={upload['id']}", "--max-runtime", "60"]
    what += ["--param", 'command=["python3", "shoot.py", "2"]', "--param", "runtime_seconds_max=60"]
    quote = json.loads(await heliu("quote", *what, "--json"))
    assert "¥0.06" in await heliu("quote", *what)
    made = json.loads(await heliu("job", "submit", *what, "--quote", quote["id"], "--key", "once", "--json"))
    assert "shot 1" in await heliu("job", "logs", "-f", made["id"])
    assert made["id"] in await heliu("job", "list", "--json")
    assert "It is over: succeeded" in await heliu("job", "why", made["id"])
    seen = json.loads(await heliu("job", "show", made["id"], "--json"))
    await heliu("artifact", "get", seen["artifacts"][0]["id"], "--to", "film.txt")
    assert (folder / "film.txt").read_text() == "the end"
    assert "0 waiting" in await heliu("queue")
    for command in (["node", "list"], ["pool", "list"], ["artifact", "list"], ["job", "show", made["id"]]):
        assert await heliu(*command)
