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
