"""API keys and projects over HTTP."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import cast

import pytest

from kit.clock import FixedClock
from kit.db import Database
from kit.errors import Unauthenticated
from quotas.authentication import key_limits, load_key
from quotas.vocabulary import KeyId
from tests.api.quotas.conftest import World


async def test_a_key_is_shown_once_and_never_listed(world: World) -> None:
    studio = await world.studio()
    made = await world.key(studio)
    token = made["token"]
    assert token.startswith("hl_") and made["key"]["id"] == "key_" + token.split("_")[1]
    secret = token.split("_", 2)[2]
    assert len(secret) == 43
    for path in ("/api/keys", f"/api/keys/{made['key']['id']}", "/api/audit"):
        answer = await studio.owner.get(path)
        assert answer.status_code == 200
        assert secret not in answer.text and "secret" not in answer.text and "hash" not in answer.text


async def test_a_gateway_learns_what_a_key_allows(world: World, db: Database, clock: FixedClock) -> None:
    studio = await world.studio()
    made = await world.key(
        studio,
        models=["smollm2-135m-instruct"],
        ip_ranges=["203.0.113.0/24"],
        requests_per_minute=60,
        tokens_per_minute=10_000,
    )
    async with db.transaction() as tx:
        grant = await load_key(tx, made["token"], now=clock.now())
    assert (grant.firm_id, grant.models) == (studio.firm_id, frozenset({"smollm2-135m-instruct"}))
    assert (grant.requests_per_minute, grant.tokens_per_minute) == (60, 10_000)
    assert grant.ip_ranges == ("203.0.113.0/24",) and grant.usable(now=clock.now())


async def test_revocation_reaches_a_listener_within_two_seconds(world: World, db: Database, clock: FixedClock) -> None:
    studio = await world.studio()
    made = await world.key(studio)
    heard = cast(AsyncGenerator[tuple[str, str], None], db.listen(["heliu_keys"]))
    assert await anext(heard) == ("", "")
    revoked = await studio.owner.post(f"/api/keys/{made['key']['id']}/revoke", json={"reason": "laptop lost"})
    assert revoked.json()["revoked_why"] == "laptop lost"
    assert await asyncio.wait_for(anext(heard), 2) == ("heliu_keys", made["key"]["id"])
    await heard.aclose()
    async with db.transaction() as tx:
        with pytest.raises(Unauthenticated):
            await load_key(tx, made["token"], now=clock.now())
        grant = await key_limits(tx, KeyId(made["key"]["id"]))
    assert grant is not None and not grant.usable(now=clock.now())


async def test_expired_revoked_unknown_and_garbled_keys_get_one_answer(world: World, clock: FixedClock) -> None:
    studio = await world.studio()
    expires = (clock.now() + timedelta(hours=1)).isoformat()
    expiring = (await world.key(studio, expires_at=expires, scopes=["quotas:read"]))["token"]
    revoked = await world.key(studio)
    await studio.owner.post(f"/api/keys/{revoked['key']['id']}/revoke", json={})
    assert (await world.as_token(expiring).get("/api/quotas")).status_code == 200
    clock.advance(timedelta(hours=1))
    bad = [
        expiring,
        revoked["token"],
        revoked["token"][:-1] + ("A" if revoked["token"][-1] != "A" else "B"),
        "hl_" + "0" * 26 + "_" + "A" * 43,
        "hl__",
        "hl_x",
        "hs_" + "A" * 43,
        "sk-something-else",
        "Bearer",
    ]
    answers = [await world.as_token(token).get("/api/quotas") for token in bad]
    assert {one.status_code for one in answers} == {401}
    assert len({one.text for one in answers}) == 1


async def test_a_key_bound_to_addresses_is_refused_elsewhere(world: World) -> None:
    studio = await world.studio()
    token = (await world.key(studio, scopes=["quotas:read"], ip_ranges=["203.0.113.0/24", "2001:db8::/32"]))["token"]
    assert (await world.as_token(token, ip="203.0.113.200").get("/api/quotas")).status_code == 200
    assert (await world.as_token(token, ip="2001:db8::5").get("/api/quotas")).status_code == 200
    assert (await world.as_token(token, ip="::ffff:203.0.113.7").get("/api/quotas")).status_code == 200
    refused = await world.as_token(token, ip="198.51.100.1").get("/api/quotas")
    assert (refused.status_code, refused.json()["code"]) == (403, "ip_not_allowed")


async def test_a_key_does_only_what_its_scopes_say(world: World) -> None:
    studio = await world.studio()
    program = world.as_token((await world.key(studio, scopes=["quotas:read"]))["token"])
    assert (await program.get("/api/quotas")).status_code == 200
    for method, path, body in (
        ("GET", "/api/keys", None),
        ("GET", "/api/members", None),
        ("POST", "/api/keys", {"name": "more", "scopes": ["inference"]}),
        ("POST", "/api/projects", {"name": "film"}),
        ("POST", "/api/me/password", {"old": "x", "new": "a long enough one"}),
    ):
        answer = await program.request(method, path, json=body)
        assert answer.status_code == 403, (path, answer.text)
    me = (await program.get("/api/me")).json()
    assert (me["kind"], me["scopes"], me["email"]) == ("api_key", ["quotas:read"], None)


async def test_rotation_keeps_the_old_key_for_the_overlap_only(world: World, clock: FixedClock) -> None:
    studio = await world.studio()
    old = await world.key(studio, scopes=["quotas:read"], requests_per_minute=7)
    path = f"/api/keys/{old['key']['id']}/rotate"
    new = (await studio.owner.post(path, json={"overlap_seconds": 3600})).json()
    assert (new["key"]["scopes"], new["key"]["requests_per_minute"]) == (["quotas:read"], 7)
    assert new["token"] != old["token"]
    for token in (old["token"], new["token"]):
        assert (await world.as_token(token).get("/api/quotas")).status_code == 200
    again = await studio.owner.post(path, json={"overlap_seconds": 3600})
    assert (again.status_code, again.json()["code"]) == (409, "key_over")
    clock.advance(timedelta(hours=1))
    assert (await world.as_token(old["token"]).get("/api/quotas")).status_code == 401
    assert (await world.as_token(new["token"]).get("/api/quotas")).status_code == 200

    at_once = f"/api/keys/{new['key']['id']}/rotate"
    last = (await studio.owner.post(at_once, json={"overlap_seconds": 0})).json()
    assert (await world.as_token(new["token"]).get("/api/quotas")).status_code == 401
    assert (await world.as_token(last["token"]).get("/api/quotas")).status_code == 200


async def test_last_use_is_noted_coarsely(world: World, clock: FixedClock) -> None:
    studio = await world.studio()
    made = await world.key(studio, scopes=["quotas:read"])
    program, path = world.as_token(made["token"]), f"/api/keys/{made['key']['id']}"
    assert (await studio.owner.get(path)).json()["last_used_at"] is None
    await program.get("/api/quotas")
    first = (await studio.owner.get(path)).json()["last_used_at"]
    clock.advance(timedelta(minutes=9))
    await program.get("/api/quotas")
    assert (await studio.owner.get(path)).json()["last_used_at"] == first
    clock.advance(timedelta(minutes=2))
    await program.get("/api/quotas")
    assert (await studio.owner.get(path)).json()["last_used_at"] > first


async def test_a_key_belongs_to_a_project_of_its_own_firm(world: World) -> None:
    one, other = await world.studio(), await world.studio()
    film = (await one.owner.post("/api/projects", json={"name": "流浪 II"})).json()
    made = await world.key(one, project_id=film["id"])
    assert made["key"]["project_id"] == film["id"]
    body = {"name": "thief", "scopes": ["inference"], "project_id": film["id"]}
    stolen = await other.owner.post("/api/keys", json=body)
    absent = await other.owner.post("/api/keys", json={**body, "project_id": "prj_none"})
    assert stolen.status_code == absent.status_code == 404
    assert stolen.json()["code"] == absent.json()["code"] == "project_not_found"
    taken = await one.owner.post("/api/projects", json={"name": "流浪 II"})
    assert (taken.status_code, taken.json()["code"]) == (409, "project_taken")


@pytest.mark.parametrize(
    "changes",
    [
        {"scopes": []},
        {"scopes": ["everything"]},
        {"scopes": "inference"},
        {"requests_per_minute": 0},
        {"requests_per_minute": -1},
        {"requests_per_minute": 10**400},
        {"requests_per_minute": "60"},
        {"tokens_per_minute": 2**63},
        {"tokens_per_minute": 1.5},
        {"ip_ranges": ["203.0.113.1/24"]},
        {"ip_ranges": ["everywhere"]},
        {"models": []},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": "9999-12-31T23:59:59Z"},
        {"expires_at": "2027-01-01T00:00:00"},
        {"secret": "mine"},
        {"name": None},
    ],
)
async def test_a_key_with_bad_input_is_refused_and_none_is_made(world: World, changes: dict[str, object]) -> None:
    studio = await world.studio()
    body = {"name": "render farm", "scopes": ["inference"], **changes}
    if changes.get("requests_per_minute") == 10**400:
        content = '{"name": "n", "scopes": ["inference"], "requests_per_minute": 1' + "0" * 400 + "}"
        answer = await studio.owner.post("/api/keys", content=content, headers={"content-type": "application/json"})
    else:
        answer = await studio.owner.post("/api/keys", json=body)
    assert answer.status_code == 422, answer.text
    assert (await studio.owner.get("/api/keys")).json() == []
