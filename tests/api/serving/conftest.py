"""The control plane's routes over a real database, the real scheduler on a cluster in memory, and people to call it."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from kit.blobs import Blobs
from kit.clock import FixedClock
from kit.db import Database
from kit.settings import Settings
from kit.web import create_app
from quotas import main as quotas
from quotas.members import issue_admin_link
from scheduler import loop
from scheduler.adapters.simulated_runtime import SimulatedRuntime
from scheduler.main import routers_for
from scheduler.ports import NodeReport
from scheduler.terms import Terms
from scheduler.vocabulary import AttemptId, NodeId
from scheduler.web.edge import Edge
from serving import controller, registrar
from serving import main as serving
from serving.replicas import Policy
from tests.api.quotas.conftest import PASSWORD, World, client
from tests.support.adapters import BASE
from tests.support.money import POOL, publish_prices

ENGINE_KEY = "engine-key-that-nobody-may-see-0123456789"
MODEL = {
    "name": BASE,
    "display_name": "SmolLM2 135M Instruct",
    "owner": "Hugging Face",
    "licence": "Apache-2.0",
    "context_tokens": 2048,
    "capabilities": ["chat", "completions"],
    "source": BASE,
    "revision": "1",
    "engine_arguments": {"enforce_eager": True},
    "max_loras": 2,
}


class City:
    """The platform with a centre of `slots` slots; time moves only in `pass_time`."""

    def __init__(self, app: FastAPI, db: Database, blobs: Blobs, clock: FixedClock, world: World) -> None:
        self.app, self.db, self.blobs, self.clock, self.world = app, db, blobs, clock, world
        self.admin = world.admin
        self.terms = Terms()
        self.cluster = SimulatedRuntime()
        self.loop = loop.Controller(db, blobs, clock, self.cluster, self.cluster, self.terms, b"k" * 32)
        self.policy = Policy()
        self.engines = 0

    async def give_quota(self, firm_id: str, slots: int = 2) -> None:
        body = {"firm_id": firm_id, "pool": POOL, "nominal_gpu_milli": slots * 1000}
        answer = await self.admin.post("/api/quotas", json=body)
        assert answer.status_code == 201, answer.text

    def add_node(self, name: str = "node-1", slots: int = 2) -> None:
        centre, accelerator = POOL.split("/")
        labels = {"heliu.io/centre": centre, "heliu.io/accelerator": accelerator}
        self.cluster.machines[NodeId(name)] = NodeReport(NodeId(name), "127.0.0.1", {"slot": float(slots)}, labels)

    async def pass_time(self, seconds: float = 1) -> None:
        """The clock moves, and every controller takes one turn."""
        self.clock.advance(timedelta(seconds=seconds))
        await registrar.register_new(self.db, self.blobs, now=self.clock.now())
        await controller.tend(self.db, self.policy, self.terms, now=self.clock.now())
        await loop.step(self.loop)
        await controller.tend(self.db, self.policy, self.terms, now=self.clock.now())

    async def hosts(self) -> list["ReplicaHost"]:
        """A replica host for every replica attempt whose runner runs, oldest first."""
        async with self.db.transaction() as tx:
            rows = await tx.execute(
                text("""SELECT a.id FROM scheduler.attempt a JOIN scheduler.workload w ON w.id = a.workload_id
                        WHERE w.kind = 'replica' AND a.state <> 'ended' ORDER BY a.id""")
            )
            ids = [AttemptId(row[0]) for row in rows]
        return [await ReplicaHost(self, one).begin() for one in ids if one in self.cluster.orders]

    async def replicas(self, **query: Any) -> list[dict[str, Any]]:
        answer = await self.admin.get("/api/replicas", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def deploy(self, caller: httpx.AsyncClient | None = None, **changes: Any) -> dict[str, Any]:
        body = {"model": BASE, "kind": "shared", "pool": POOL} | changes
        answer = await (caller or self.admin).post("/api/deployments", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()


class ReplicaHost:
    """A runner and its replica host, speaking HTTP with the attempt's token."""

    def __init__(self, city: City, attempt_id: AttemptId) -> None:
        self.city, self.attempt_id = city, attempt_id
        self.http = client(city.app, city.cluster.orders[attempt_id].token)
        self.engine_start = f"eng_{attempt_id.removeprefix('att_')}"

    async def begin(self) -> "ReplicaHost":
        answer = await self.http.get(
            f"/internal/v1/attempts/{self.attempt_id}/plan", headers={"X-Runner": f"runner-of-{self.attempt_id}"}
        )
        assert answer.status_code == 200, answer.text
        self.params = answer.json()["params"]
        return self

    async def sync(self, state: str = "ready", **changes: Any) -> dict[str, Any]:
        answer = await self.try_sync(state, **changes)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def try_sync(self, state: str = "ready", **changes: Any) -> httpx.Response:
        body = {
            "state": state,
            "engine_start": self.engine_start,
            "url": "http://127.0.0.1:40001",
            "engine_key": ENGINE_KEY,
            "adapters_loaded": [],
            "adapters_failed": [],
            "metrics": {"prompt_tokens_total": 10, "generation_tokens_total": 1},
        } | changes
        return await self.http.post(f"/internal/v1/replicas/{self.attempt_id}/sync", json=body)

    async def runs(self) -> None:
        """The runner reports that its program started."""
        answer = await self.http.post(f"/internal/v1/attempts/{self.attempt_id}/started", json={})
        assert answer.status_code == 200, answer.text

    async def finished(self, outcome: str, cause: str) -> None:
        body = {"outcome": outcome, "cause": cause, "message": "", "exit_code": 0, "ran_ms": 1000}
        answer = await self.http.post(f"/internal/v1/attempts/{self.attempt_id}/finished", json=body)
        assert answer.status_code == 200, answer.text
        self.city.cluster.exit(self.attempt_id)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """An object store of this test's own."""
    return Blobs(f"file://{tmp_path}")


@pytest.fixture
def app(db: Database, blobs: Blobs, clock: FixedClock) -> FastAPI:
    """Every route of quotas, scheduler and serving."""
    routers = [
        *quotas.routers(db, clock, Settings()),
        *routers_for(Edge(blobs, Terms(), b"s" * 32)),
        *serving.routers(db, blobs, clock, Settings()),
    ]
    app = create_app("test", "0", routers, body_limit_bytes=1 << 20)
    app.state.db, app.state.clock = db, clock
    return app


@pytest.fixture
async def city(app: FastAPI, db: Database, blobs: Blobs, clock: FixedClock) -> City:
    """A platform with an administrator, prices, quota for itself, one node of two slots, and the base model."""
    async with db.transaction() as tx:
        token = await issue_admin_link(tx, clock.now())
    body = {"token": token, "email": "admin@heliu.example", "name": "管理员", "password": PASSWORD}
    async with client(app) as anonymous:
        claimed = await anonymous.post("/api/admin/claim", json=body)
    assert claimed.status_code == 201, claimed.text
    await publish_prices(db, now=clock.now())
    built = City(app, db, blobs, clock, World(app, client(app, claimed.json()["token"])))
    await built.give_quota("firm_platform")
    built.add_node()
    answer = await built.admin.post("/api/models", json=MODEL)
    assert answer.status_code == 201, answer.text
    return built


def secrets_in(text_: str) -> list[str]:
    """Anything in an answer that nobody but the gateway may see."""
    return re.findall(rf"{ENGINE_KEY}|engine_key|127\.0\.0\.1:40001|h[als]_[a-z0-9_]+_[A-Za-z0-9_-]{{20,}}", text_)
