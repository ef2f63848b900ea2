"""Every route, the internal ones too, × a foreign firm's key: what is there looks like what is not."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from sqlalchemy import text

from kit.db import Database
from quotas.cash import record_topup
from quotas.vocabulary import FirmId, Scope
from tests.api.quotas.conftest import client
from tests.api.quotas.test_isolation import ABOUT_THE_CALLER, PUBLIC, Victim, a_victim
from tests.api.serving.conftest import City
from tests.api.serving.test_adapter_routes import trained
from tests.support.money import yuan

_TABLES = text(
    "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('quotas','scheduler','serving')"
)
_OF_RUNNERS: dict[str, Any] = {
    "started": {},
    "heartbeat": {"log": [{"seq": 1, "text": "a line that is not theirs"}]},
    "finished": {"outcome": "succeeded", "cause": "done", "ran_ms": 1},
    "sync": {
        "state": "ready", "engine_start": "eng_of_mallory", "url": "http://127.0.0.1:1", "engine_key": "k" * 40,
        "adapters_loaded": [], "adapters_failed": [], "metrics": {},
    },
}  # fmt: skip
"""Bodies of the internal routes, by the last word of their path."""
NAMES_OF_ALL = {"name", "centre", "node_id"}
"""Path parameters that name what every firm may see: base models, centres, nodes."""


def every_route(city: City) -> list[tuple[str, str]]:
    """(method, path) of every route of ours, whether the documentation shows it or not."""
    ours = [route for route in _below(city.app.router) if route.path.startswith(("/api/", "/internal/"))]
    return sorted({(method, route.path) for route in ours for method in route.methods or ()})


def _below(router: APIRouter) -> Iterator[APIRoute]:
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        elif isinstance(inside := getattr(route, "original_router", None), APIRouter):
            yield from _below(inside)


@dataclass
class Everything:
    """A victim with one of everything, and callers of another firm."""

    victim: Victim
    key: httpx.AsyncClient
    runner: httpx.AsyncClient
    db: Database

    async def of_the_victim(self) -> list[str]:
        """Every row that names the victim."""
        async with self.db.transaction() as tx:
            tables = sorted((await tx.execute(_TABLES)).scalars())
            rows = [row for t in tables for row in (await tx.execute(text(f"SELECT t::text FROM {t} t"))).scalars()]
        return sorted(row for row in rows if self.victim.studio.firm_id in row)

    def request(self, city: City, method: str, path: str) -> dict[str, Any]:
        """A call of this route that aims at the victim's things."""
        operation = city.app.openapi()["paths"].get(path, {}).get(method.lower())
        json_body = (operation or {}).get("requestBody", {}).get("content", {}).get("application/json")
        if operation is not None and (json_body or "requestBody" not in operation):
            return self.victim.request(city.app, method, path, operation)
        url = re.sub(r"{(\w+)(?::path)?}", lambda match: self.victim.ids.get(match[1], "adapter_config.json"), path)
        body = _OF_RUNNERS.get(path.rpartition("/")[2]) if method == "POST" else None
        return {"method": method, "url": url, "json": body}


def for_absent_things(request: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    """The same call about things that are not there."""
    written = json.dumps(request)
    for value in set(ids.values()):
        if "_" in value:
            written = written.replace(value, f"{value[:-4]}0000")
    return json.loads(written)


@pytest.fixture
async def everything(city: City) -> Everything:
    studio, mallory = await city.world.studio(), await city.world.studio()
    for one in (studio, mallory):
        await city.give_quota(one.firm_id, 1)
        async with city.db.transaction() as tx:
            await record_topup(
                tx, key=one.firm_id, firm_id=FirmId(one.firm_id), amount=yuan(100), evidence="slip", by="test",
                now=city.clock.now(),
            )  # fmt: skip
    deployment = await city.deploy(studio.owner, kind="dedicated")
    await city.deploy(mallory.owner, kind="dedicated")
    job = await trained(city, studio)
    await city.pass_time()
    (adapter,) = (await studio.owner.get("/api/adapters")).json()
    artifact = (await studio.owner.get(f"/api/jobs/{job}/artifacts")).json()[0]
    announced = {"name": "secret.jsonl", "size_bytes": 5, "sha256": "ab" * 32}
    upload = (await studio.owner.post("/api/uploads", json=announced)).json()
    victim = await a_victim(city.world, studio)
    hosts = {await _firm_of(city.db, host.attempt_id): host for host in await city.hosts()}
    victim.ids |= {
        "deployment_id": deployment["id"], "job_id": job, "adapter": adapter["id"], "artifact_id": artifact["id"],
        "upload_id": upload["id"], "attempt_id": hosts[studio.firm_id].attempt_id,
    }  # fmt: skip
    victim.private += [deployment["id"], job, adapter["id"], adapter["sha256"], artifact["id"], upload["id"]]
    issued = await city.world.key(mallory, scopes=[scope.value for scope in Scope if scope is not Scope.USAGE_INGEST])
    key = city.world.as_token(issued["token"])
    await key.get("/api/jobs")  # its first use is on record
    return Everything(victim, key, hosts[mallory.firm_id].http, city.db)


async def _firm_of(db: Database, attempt_id: str) -> str:
    async with db.transaction() as tx:
        query = text("SELECT firm_id FROM scheduler.attempt WHERE id = :id")
        return (await tx.execute(query, {"id": attempt_id})).scalar_one()


async def test_a_foreign_key_gets_the_answer_for_absent_things_everywhere_and_changes_nothing(
    city: City, everything: Everything
) -> None:
    before, aimed = await everything.of_the_victim(), set[str]()
    assert len(before) > 15
    for method, path in every_route(city):
        if (method, path) in PUBLIC | ABOUT_THE_CALLER:
            continue
        foreign = everything.request(city, method, path)
        absent = for_absent_things(foreign, everything.victim.ids)
        for caller in (everything.key, everything.runner):
            answers = [await caller.request(**one) for one in (foreign, absent)]
            where = f"{method} {path}: {[(one.status_code, one.text[:200]) for one in answers]}"
            assert all(one.status_code < 500 for one in answers), where
            sent = json.dumps(foreign)
            assert not [w for w in everything.victim.private if w in answers[0].text and w not in sent], where
            named = {name.partition(":")[0] for name in re.findall(r"{([\w:]+)}", path)} - NAMES_OF_ALL
            if named & everything.victim.ids.keys():
                assert answers[0].status_code in (401, 403, 404, 422), where
                assert _same(answers, foreign, absent), where
                aimed.add(f"{method} {path}")
    assert len([one for one in aimed if "/internal/" in one]) >= 6, sorted(aimed)
    assert len(aimed) >= 40, sorted(aimed)
    assert await everything.of_the_victim() == before


def _same(answers: list[httpx.Response], foreign: dict[str, Any], absent: dict[str, Any]) -> bool:
    """Whether both answers say the same, but for the ids that were sent."""
    ids = [re.findall(r"[a-z]{2,6}_[0-9a-z]{20,}", json.dumps(one)) for one in (foreign, absent)]
    texts = [answer.text for answer in answers]
    for position, known in enumerate(ids):
        for one in known:
            texts[position] = texts[position].replace(one, "ID")
    return answers[0].status_code == answers[1].status_code and texts[0] == texts[1]


async def test_nobody_without_a_bearer_reaches_a_route_that_is_not_public(city: City, everything: Everything) -> None:
    async with client(city.app) as anonymous:
        for method, path in every_route(city):
            if (method, path) in PUBLIC or path.startswith("/api/downloads"):
                continue
            answer = await anonymous.request(**everything.request(city, method, path))
            assert answer.status_code == 401, (method, path, answer.text)
