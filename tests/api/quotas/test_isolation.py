"""Every route of quotas, called by somebody of another firm: nothing is shown and nothing changes."""

import json
import logging
import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from kit.db import Database
from tests.api.quotas.conftest import PASSWORD, Studio, World

PUBLIC = {
    ("POST", "/api/firms"),
    ("POST", "/api/sessions"),
    ("POST", "/api/invitations/accept"),
    ("POST", "/api/admin/claim"),
}
"""What people without an account may call; each has tests of its own."""

TABLES = text("SELECT tablename FROM pg_tables WHERE schemaname = 'quotas'")

ABOUT_THE_CALLER = {("GET", "/api/me"), ("POST", "/api/me/password"), ("DELETE", "/api/sessions/current")}


def routes(app: FastAPI) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation) of every route under /api."""
    return [
        (method.upper(), path, operation)
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    ]


class Victim:
    """A firm with one of everything, and a request against each route that aims at it."""

    def __init__(self, studio: Studio, ids: dict[str, str], private: list[str]) -> None:
        self.studio = studio
        self.ids = ids | {"period": "2026-11"}
        self.private = private

    def request(self, app: FastAPI, method: str, path: str, operation: dict[str, Any]) -> dict[str, Any]:
        parameters = {one["name"]: one for one in operation.get("parameters", [])}

        def fill(match: re.Match[str]) -> str:
            return self.ids.get(match[1]) or str(example(app, parameters[match[1]]["schema"], self.ids))

        request: dict[str, Any] = {"method": method, "url": re.sub(r"{(\w+)}", fill, path)}
        request["params"] = {
            name: self.ids[name] if name in self.ids else example(app, one["schema"], self.ids)
            for name, one in parameters.items()
            if one["in"] == "query" and (name in self.ids or one.get("required"))
        }
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            request["json"] = example(app, schema, self.ids)
        return request


def example(app: FastAPI, schema: dict[str, Any], ids: dict[str, str]) -> Any:
    """A valid body for a schema, with the victim's ids wherever one fits."""
    if "$ref" in schema:
        return example(app, app.openapi()["components"]["schemas"][schema["$ref"].split("/")[-1]], ids)
    if "properties" in schema:
        names = [name for name in schema["properties"] if name in schema.get("required", []) or name in ids]
        return {name: ids[name] if name in ids else example(app, schema["properties"][name], ids) for name in names}
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][-1]
    if "anyOf" in schema:
        return example(app, schema["anyOf"][0], ids)
    match schema.get("type"):
        case "array":
            return [example(app, schema["items"], ids)]
        case "integer":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case _ if "@" in schema.get("pattern", ""):
            return "thief@studio2.example"
        case _ if schema.get("format") == "date-time":
            return "2026-12-01T00:00:00Z"
        case _ if "/" in schema.get("pattern", ""):
            return "optics-valley/cpu-slot"
        case _:
            return "a-text-of-length"


async def a_victim(world: World, studio: Studio | None = None) -> Victim:
    """A firm with one of everything that quotas knows."""
    studio = studio or await world.studio()
    dev = await world.member(studio.owner, "secret.dev@studio1.example", "firm_developer")
    key = await world.key(studio, name="secret-key-name")
    project = (await studio.owner.post("/api/projects", json={"name": "secret-project"})).json()
    body = {"email": "secret.guest@studio1.example", "roles": ["firm_developer"]}
    invitation = (await studio.owner.post("/api/invitations", json=body)).json()
    ask = {"pool": "optics-valley/cpu-slot", "nominal_gpu_milli": 1, "reason": "secret-reason"}
    request = (await studio.owner.post("/api/quota-requests", json=ask)).json()
    quota = {"firm_id": studio.firm_id, "pool": "secret-centre/slot", "nominal_gpu_milli": 2000}
    assert (await world.admin.post("/api/quotas", json=quota)).status_code == 201
    budget = (await studio.owner.post("/api/budgets", json={"amount_micro_yuan": 7})).json()
    hook = {"kind": "webhook", "target": "https://secret.example/hook"}
    channel = (await studio.owner.post("/api/alert-channels", json=hook)).json()
    ids = {
        "budget_id": budget["id"],
        "channel_id": channel["id"],
        "firm_id": studio.firm_id,
        "node": studio.firm_id,
        "member_id": (await dev.get("/api/me")).json()["id"],
        "key_id": key["key"]["id"],
        "project_id": project["id"],
        "invitation_id": invitation["invitation"]["id"],
        "request_id": request["id"],
    }
    me = (await studio.owner.get("/api/me")).json()
    private = ["secret", me["firm"]["name"], me["firm"]["uscc"], me["id"], "王晓", studio.email]
    return Victim(studio, ids, private)


@pytest.fixture
async def victim(world: World) -> Victim:
    return await a_victim(world)


async def snapshot(db: Database) -> str:
    """Everything in the database that a route could change, but for the callers' own sessions."""
    passing = {"session", "sign_in_attempt", "block", "audit_block"}
    async with db.transaction() as tx:
        tables = set((await tx.execute(TABLES)).scalars()) - passing
        rows = {
            table: [list(row) for row in await tx.execute(text(f"SELECT t::text FROM quotas.{table} t ORDER BY 1"))]
            for table in sorted(tables)
        }
    return json.dumps(rows)


@pytest.mark.parametrize("caller", ["owner", "developer", "key"])
async def test_no_route_shows_or_changes_anything_of_another_firm(
    world: World, victim: Victim, app: FastAPI, db: Database, caller: str
) -> None:
    thief = await world.studio()
    http: httpx.AsyncClient = thief.owner
    if caller == "developer":
        http = await world.member(thief.owner, "dev@studio2.example", "firm_developer")
    if caller == "key":
        scopes = ["inference", "jobs:write", "artifacts:write", "deployments:write", "billing:read", "quotas:read"]
        http = world.as_token((await world.key(thief, scopes=scopes))["token"])
        await http.get("/api/quotas")  # its first use is noted before the snapshot
    before, tried = await snapshot(db), 0
    for method, path, operation in routes(app):
        if (method, path) in PUBLIC | ABOUT_THE_CALLER:
            continue
        request = victim.request(app, method, path, operation)
        aimed = any(one in json.dumps(request) for one in victim.ids.values() if len(one) > 10)
        answer = await http.request(**request)
        where = f"{method} {path}: {answer.status_code} {answer.text}"
        if aimed:
            assert answer.status_code in {403, 404}, where
            tried += 1
        assert answer.status_code != 500, where
        sent = json.dumps(request)
        assert not [one for one in victim.private if one in answer.text and one not in sent], where
    assert tried >= 15
    assert await snapshot(db) == before


async def test_the_answer_for_a_foreign_thing_is_the_one_for_an_absent_thing(
    world: World, victim: Victim, app: FastAPI
) -> None:
    thief = await world.studio()
    compared = 0
    for method, path, operation in routes(app):
        names = [name for name in re.findall(r"{(\w+)}", path) if name in victim.ids]
        if not names:
            continue
        foreign = victim.request(app, method, path, operation)
        absent_ids = {name: victim.ids[name][:-4] + "0000" for name in names}
        absent = {**foreign, "url": foreign["url"].replace(victim.ids[names[0]], absent_ids[names[0]])}
        answers = [(await thief.owner.request(**one)) for one in (foreign, absent)]
        if all(answer.status_code == 403 for answer in answers):
            continue
        texts = [answer.text for answer in answers]
        for name in names:
            texts[0] = texts[0].replace(victim.ids.get(name, "missing"), "ID")
            texts[1] = texts[1].replace(absent_ids[name], "ID")
        assert texts[0] == texts[1], (method, path)
        compared += 1
    assert compared >= 6


async def test_every_route_but_the_public_ones_needs_an_account(world: World, victim: Victim, app: FastAPI) -> None:
    for method, path, operation in routes(app):
        if (method, path) in PUBLIC:
            continue
        answer = await world.anonymous.request(**victim.request(app, method, path, operation))
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), (method, path)


async def test_no_secret_reaches_the_logs_or_the_database_in_the_clear(
    world: World, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    studio = await world.studio()
    made = await world.key(studio)
    body = {"email": "dev@studio1.example", "roles": ["firm_developer"]}
    invited = (await studio.owner.post("/api/invitations", json=body)).json()
    session = studio.owner.headers["authorization"].removeprefix("Bearer ")
    await world.anonymous.post("/api/sessions", json={"email": studio.email, "password": PASSWORD + "!", "x": 1})
    secrets = [made["token"].split("_", 2)[2], invited["token"], session, PASSWORD]
    async with db.transaction() as tx:
        tables = (await tx.execute(TABLES)).scalars().all()
        kept = [row[0] for table in tables for row in await tx.execute(text(f"SELECT t::text FROM quotas.{table} t"))]
        kept += [row[0] for row in await tx.execute(text("SELECT t::text FROM kit.event t"))]
    everything = caplog.text + "\n".join(kept)
    assert not [secret for secret in secrets if secret in everything]
