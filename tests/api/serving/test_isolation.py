"""Every route of serving, called by somebody of another firm: nothing is shown and nothing changes."""

import re
from typing import Any

from sqlalchemy import text

from tests.api.serving.conftest import City
from tests.api.serving.test_adapter_routes import trained
from tests.support.adapters import BASE
from tests.support.money import POOL

OURS = ("/api/models", "/api/adapters", "/api/deployments", "/api/replicas", "/api/engines")
TABLES = ("model", "adapter", "deployment", "replica", "adapter_load", "engine_count")


async def _everything(city: City) -> dict[str, list[Any]]:
    async with city.db.transaction() as tx:
        return {
            table: [row[0] for row in await tx.execute(text(f"SELECT t::text FROM serving.{table} t ORDER BY 1"))]
            for table in TABLES
        }


def _body(path: str, ids: dict[str, str]) -> dict[str, Any] | None:
    bodies: dict[str, dict[str, Any]] = {
        "/api/adapters": {"job_id": ids["job"], "name": "stolen"},
        "/api/deployments/{deployment_id}/scale": {"replicas": 3, "replicas_max": 3},
        "/api/models/{name}": {"owner": "mallory"},
        "/api/models": {
            "name": "stolen", "display_name": "x", "owner": "x", "licence": "x", "context_tokens": 64,
            "capabilities": ["chat"], "source": "x", "revision": "1",
        },
    }  # fmt: skip
    return bodies.get(path)


async def test_no_route_shows_or_changes_what_is_another_firms(city: City) -> None:
    victim, mallory = await city.world.studio(), await city.world.studio()
    await city.give_quota(victim.firm_id)
    mine = await city.deploy(victim.owner, kind="dedicated")
    job = await trained(city, victim)
    await city.pass_time()
    (adapter,) = (await victim.owner.get("/api/adapters")).json()
    (replica,) = await city.replicas()
    ids = {"deployment_id": mine["id"], "adapter": adapter["id"], "name": BASE, "job": job}
    private = [mine["id"], adapter["id"], adapter["sha256"], "lore", replica["id"], job, victim.firm_id]
    made = await city.world.key(mallory, scopes=["inference", "deployments:write", "deployments:read", "models:read"])
    key = city.world.as_token(next(value for value in made.values() if str(value).startswith("hl_")))
    before = await _everything(city)
    tried = 0
    for path, operations in city.app.openapi()["paths"].items():
        if not path.startswith(OURS):
            continue
        for method, operation in operations.items():
            url = re.sub(r"{(\w+)}", lambda match: ids[match[1]], path)
            if (method, path) == ("post", "/api/deployments"):
                continue  # its own firm's to make; a foreign project is tried below
            queries: list[dict[str, str]] = [{}]
            names = {one["name"] for one in operation.get("parameters", []) if one["in"] == "query"}
            queries += [{"firm_id": victim.firm_id}] if "firm_id" in names else []
            queries += [{"deployment_id": mine["id"]}] if "deployment_id" in names else []
            for caller in (mallory.owner, key):
                for query in queries:
                    answer = await caller.request(method, url, params=query, json=_body(path, ids))
                    tried += 1
                    assert answer.status_code in (200, 403, 404), (method, url, answer.status_code, answer.text)
                    sent = " ".join([url, *query.values(), job])
                    shown = [word for word in private if word in answer.text and word not in sent]
                    assert shown == [], (method, url, answer.text)
                    if answer.status_code == 200 and path != "/api/models/{name}" and path != "/api/models":
                        assert answer.json() == [], (method, url, answer.text)
    assert tried > 25
    async with city.db.transaction() as tx:
        project = (
            await tx.execute(text("SELECT id FROM quotas.project WHERE firm_id = :f"), {"f": victim.firm_id})
        ).scalar_one()
    body = {"model": BASE, "kind": "dedicated", "pool": POOL, "project_id": project}
    assert (await mallory.owner.post("/api/deployments", json=body)).status_code == 404
    assert await _everything(city) == before
