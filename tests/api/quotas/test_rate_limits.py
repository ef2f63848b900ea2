"""How fast /v1 may be used, over HTTP: by a firm, by every firm at a model, by one firm at one model."""

from kit.clock import FixedClock
from kit.db import Database
from quotas import api
from quotas.vocabulary import FirmId, KeyId, RateLimits
from tests.api.quotas.conftest import World

LIMITS = {"requests_per_minute": 600, "tokens_per_minute": None, "requests_at_once": 20}


async def test_rate_limits_are_set_by_administrators_and_seen_by_whom_they_concern(world: World) -> None:
    one, other = await world.studio(), await world.studio()
    for whose in ({"firm_id": one.firm_id}, {"model": "city-model"}, {"firm_id": one.firm_id, "model": "city-model"}):
        answer = await world.admin.post("/api/limits/rates", json=whose | LIMITS | {"reason": "pilot"})
        assert answer.status_code == 201, answer.text
        assert {name: answer.json()[name] for name in LIMITS} == LIMITS
        assert (await one.owner.post("/api/limits/rates", json=whose | LIMITS)).status_code == 403
    rows = (await one.owner.get("/api/limits/rates")).json()
    assert [(row["firm_id"], row["model"]) for row in rows] == [
        (one.firm_id, None), (one.firm_id, "city-model"), (None, "city-model"),
    ]  # fmt: skip
    assert [row["model"] for row in (await other.owner.get("/api/limits/rates")).json()] == ["city-model"]
    assert (await other.owner.get("/api/limits/rates", params={"firm_id": one.firm_id})).status_code == 404
    newest = (await world.admin.get("/api/audit?action=rate_limit.set")).json()[0]
    assert newest["after"] == LIMITS | {"model": "city-model"}
    refused = await world.admin.post("/api/limits/rates", json=LIMITS)
    assert (refused.status_code, refused.json()["code"]) == (422, "rate_limit_over_nothing")


async def test_a_key_is_granted_with_its_firm_s_limits_and_a_firm_s_own_at_a_model_before_every_firm_s(
    world: World, db: Database, clock: FixedClock
) -> None:
    studio = await world.studio()
    body = {"name": "app", "scopes": ["inference"], "requests_at_once": 3}
    key = (await studio.owner.post("/api/keys", json=body)).json()["key"]
    assert key["requests_at_once"] == 3
    for whose, limit in (
        ({"firm_id": studio.firm_id}, 9),
        ({"model": "a"}, 1),
        ({"model": "b"}, 2),
        ({"firm_id": studio.firm_id, "model": "b"}, None),
    ):
        await world.admin.post("/api/limits/rates", json=whose | {"requests_per_minute": limit})
    async with db.transaction() as tx:
        grant = await api.key_limits(tx, KeyId(key["id"]), now=clock.now())
    assert grant is not None
    assert (grant.firm_id, grant.requests_at_once) == (FirmId(studio.firm_id), 3)
    assert dict(grant.rates) == {"": RateLimits(9), "a": RateLimits(1)}, "at b the firm has no limit"


async def test_many_keys_are_read_at_once_as_each_alone_and_those_that_open_nothing_are_told(
    world: World, db: Database, clock: FixedClock
) -> None:
    one, other = await world.studio(), await world.studio()
    film = (await one.owner.post("/api/projects", json={"name": "film"})).json()["id"]
    of_one = [(await world.key(one, project_id=project))["key"]["id"] for project in (None, film, film)]
    of_other = [(await world.key(other))["key"]["id"] for _ in range(2)]
    await world.admin.post("/api/limits/rates", json={"firm_id": one.firm_id, "requests_per_minute": 9})
    await world.admin.post("/api/limits/rates", json={"model": "a", "requests_per_minute": 1})
    for whose in ({"key_id": of_one[0]}, {"project_id": film}):
        body = {"amount_micro_yuan": 10**6, "hard_stop": True, **whose}
        made = await one.owner.post("/api/budgets", json=body)
        assert made.status_code == 201, made.text
    every = [KeyId(key_id) for key_id in (*of_one, *of_other)]
    async with db.transaction() as tx:
        found = await api.keys_limits(tx, [*every, KeyId("key_none")], now=clock.now())
        alone = [await api.key_limits(tx, key_id, now=clock.now()) for key_id in every]
        assert await api.keys_over(tx, every, now=clock.now()) == set()
    assert list(map(found.get, every)) == alone and len(found) == 5
    assert [len(found[key_id].own_purse) for key_id in every] == [2, 1, 1, 0, 0]
    assert [dict(found[key_id].rates).get("") for key_id in every] == [RateLimits(9)] * 3 + [None] * 2
    await one.owner.post(f"/api/keys/{of_one[1]}/revoke", json={})
    await world.admin.post(f"/api/firms/{other.firm_id}/review", json={"step": "suspend", "reason": "unpaid"})
    async with db.transaction() as tx:
        assert await api.keys_over(tx, every, now=clock.now()) == {of_one[1], *of_other}
