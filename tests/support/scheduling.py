"""A city with a simulated cluster: the real control plane, store and ledger, and runners that a test plays itself."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from kit.auth import SYSTEM
from kit.blobs import Blobs
from kit.clock import FixedClock
from kit.db import Database
from kit.settings import Settings
from kit.units import GpuMilli
from kit.web import create_app
from quotas import api as quotas
from quotas.keys import KeySpec, issue_key
from quotas.main import routers as quota_routers
from quotas.vocabulary import FirmId, Scope
from scheduler import loop
from scheduler.adapters import store
from scheduler.adapters.simulated_runtime import SimulatedRuntime
from scheduler.adapters.tables import AttemptRow, WorkloadRow
from scheduler.admission import attempt_token
from scheduler.loop import Controller
from scheduler.main import routers_for
from scheduler.ports import NodeReport
from scheduler.retries import RetryPolicy
from scheduler.terms import Terms
from scheduler.vocabulary import AttemptId, NodeId
from scheduler.web.edge import Edge
from tests.support.money import POOL, open_firm, publish_prices, yuan
from tests.support.serving import add_project

KEY = b"attempt key of the tests"
UNLIMITED = ("/api/uploads", "/internal/v1/attempts")
SCOPES = frozenset({Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.ARTIFACTS_READ, Scope.ARTIFACTS_WRITE})
TERMS = Terms(retry=RetryPolicy(pause_seconds=2))


@dataclass
class Firm:
    """An active firm with a project, a quota, money and an API key."""

    id: FirmId
    project_id: str
    http: httpx.AsyncClient


@dataclass
class City:
    """Everything but Ray is real. Time stands still until a test moves it."""

    db: Database
    clock: FixedClock
    blobs: Blobs
    app: FastAPI
    terms: Terms = TERMS
    runtime: SimulatedRuntime = field(default_factory=SimulatedRuntime)

    @property
    def controller(self) -> Controller:
        """A controller, as it is right after its start."""
        return Controller(self.db, self.blobs, self.clock, self.runtime, self.runtime, self.terms, KEY)

    async def step(self, rounds: int = 1) -> None:
        """Let the controller do so many rounds."""
        for _ in range(rounds):
            await loop.step(self.controller)

    async def pass_time(self, seconds: float) -> None:
        """Move the clock, then let the controller look."""
        self.clock.advance(timedelta(seconds=seconds))
        await self.step()

    def add_node(self, name: str = "n1", slots: int = 2, *, address: str | None = None) -> None:
        """A machine with CPU slots joins the cluster."""
        labels = {"heliu.io/centre": "optics-valley", "heliu.io/accelerator": "cpu-slot"}
        self.runtime.machines[NodeId(name)] = NodeReport(NodeId(name), address or name, {"slot": slots}, labels)

    async def firm(self, *, quota: int = 2, paid_in: int = yuan(100)) -> Firm:
        """A new firm."""
        now = self.clock.now()
        async with self.db.transaction() as tx:
            firm_id = await open_firm(tx, now=now, paid_in=paid_in)
            project = await add_project(tx, firm_id, now=now)
            key = await issue_key(tx, firm_id, KeySpec("test", SCOPES), by=SYSTEM, now=now)
            if quota:
                await quotas.set_quota(tx, firm_id, POOL, GpuMilli(quota * 1000), by=SYSTEM, now=now)
        return Firm(firm_id, project, self.client(key.token))

    def client(self, token: str | None = None) -> httpx.AsyncClient:
        """A caller with a token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://heliu.test", headers=headers)

    async def submit(self, firm: Firm, *, key: str | None = None, **changes: Any) -> str:
        """Submit a job that must be taken; returns its id."""
        answer = await firm.http.post("/api/jobs", json=job(**changes), headers={"Idempotency-Key": key} if key else {})
        assert answer.status_code in (200, 201), answer.text
        return answer.json()["id"]

    async def view(self, firm: Firm, job_id: str) -> dict[str, Any]:
        """The job as its owner sees it."""
        answer = await firm.http.get(f"/api/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def workload(self, workload_id: str) -> WorkloadRow:
        """The row itself."""
        async with self.db.transaction() as tx:
            row = await store.workload(tx, workload_id)
        assert row is not None
        return row

    async def attempt(self, workload_id: str) -> AttemptRow:
        """The live attempt of a workload."""
        async with self.db.transaction() as tx:
            row = await store.live_attempt(tx, workload_id)
        assert row is not None, "it has no live attempt"
        return row

    async def runner(self, workload_id: str) -> "Runner":
        """A runner of the live attempt, as the cluster would have started it."""
        attempt = await self.attempt(workload_id)
        return Runner(self, AttemptId(attempt.id), attempt_token(KEY, attempt.id, attempt.fence))

    async def open_holds(self, subject: str) -> int:
        """How many holds of a workload are open."""
        async with self.db.transaction() as tx:
            return sum(hold.subject == subject for hold in await quotas.open_holds(tx))

    async def assert_ledger(self) -> None:
        """Every invariant of the ledger holds."""
        async with self.db.transaction() as tx:
            assert await quotas.check_ledger(tx) == []

    async def upload(self, firm: Firm, name: str, content: bytes) -> str:
        """A complete upload; returns its id."""
        body = {"name": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        made = await firm.http.post("/api/uploads", json=body)
        assert made.status_code == 201, made.text
        path = f"/api/uploads/{made.json()['id']}"
        sent = await firm.http.patch(path, content=content, headers={"Upload-Offset": "0"})
        assert sent.status_code == 200, sent.text
        done = await firm.http.post(f"{path}/complete")
        assert done.status_code == 200, done.text
        return made.json()["id"]


@dataclass
class Runner:
    """The node's side of the protocol, one call at a time."""

    city: City
    attempt_id: AttemptId
    token: str
    name: str = "runner-1"

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One call with this runner's token."""
        async with self.city.client(self.token) as http:
            return await http.request(method, f"/internal/v1/attempts/{self.attempt_id}{path}", **options)

    async def plan(self) -> httpx.Response:
        return await self.call("GET", "/plan", headers={"X-Runner": self.name})

    async def started(self) -> httpx.Response:
        return await self.call("POST", "/started", json={})

    async def heartbeat(self, *, step: int = 0, total: int = 10, log: list[str] | None = None, seq: int = 1) -> Any:
        """Beat once."""
        lines = [{"seq": seq + i, "text": text} for i, text in enumerate(log or [])]
        progress = {"step": step, "total_steps": total, "metrics": {"loss": 1.0}} if step else None
        return await self.call("POST", "/heartbeat", json={"progress": progress, "log": lines})

    async def tells(self, *inventories: dict[str, Any]) -> httpx.Response:
        """Say what the nodes of workers have."""
        return await self.call("POST", "/heartbeat", json={"inventories": list(inventories)})

    async def put(self, name: str, content: bytes, *, kind: str = "file", **meta: Any) -> httpx.Response:
        headers = {
            "X-Sha256": hashlib.sha256(content).hexdigest(),
            "X-Kind": kind,
            "X-Meta": json.dumps(meta, ensure_ascii=True),
        }
        return await self.call("PUT", f"/outputs/{name}", content=content, headers=headers)

    async def keep(self, content: bytes, *, step: int, ran_ms: int) -> httpx.Response:
        """Send a packed checkpoint."""
        headers = {"X-Sha256": hashlib.sha256(content).hexdigest(), "X-Step": str(step), "X-Ran-Ms": str(ran_ms)}
        return await self.call("PUT", "/checkpoint", content=content, headers=headers)

    async def finished(
        self, *, ran_ms: int, outcome: str = "succeeded", cause: str = "done", message: str = ""
    ) -> httpx.Response:
        body = {"outcome": outcome, "cause": cause, "message": message, "exit_code": 0, "ran_ms": ran_ms}
        return await self.call("POST", "/finished", json=body)

    async def begin(self) -> None:
        """Claim and start."""
        for answer in (await self.plan(), await self.started()):
            assert answer.status_code == 200, answer.text

    def again(self, name: str) -> "Runner":
        """Another process with the same token."""
        return replace(self, name=name)


def job(**changes: Any) -> dict[str, Any]:
    """A script that may run 100 seconds on one slot: at most 0.1 yuan."""
    body: dict[str, Any] = {
        "recipe": "script",
        "params": {"command": ["true"], "runtime_seconds_max": 100},
        "pools": [str(POOL)],
        "max_runtime_seconds": 100,
    }
    return body | changes


async def make_city(db: Database, clock: FixedClock, folder: Path, terms: Terms = TERMS) -> City:
    """A city with prices and no nodes yet."""
    await publish_prices(db, now=clock.now())
    blobs = Blobs(f"file://{folder}/blobs")
    settings = Settings(home=folder)
    parts = [*quota_routers(db, clock, settings), *routers_for(Edge(blobs, terms, b"signing key"))]
    app = create_app("test", "0", parts, body_limit_bytes=1 << 20, unlimited_prefixes=UNLIMITED)
    app.state.db, app.state.clock = db, clock
    return City(db, clock, blobs, app, terms)


def later(city: City, seconds: float) -> datetime:
    """An instant after now."""
    return city.clock.now() + timedelta(seconds=seconds)
