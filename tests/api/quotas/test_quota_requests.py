"""A firm asks for quota; an administrator decides."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from kit.clock import FixedClock
from tests.api.quotas.conftest import Studio, World

POOL = "optics-valley/cpu-slot"


async def asked(studio: Studio, amount: int = 4000, **changes: Any) -> dict[str, Any]:
    body = {"pool": POOL, "nominal_gpu_milli": amount, "reason": "贺岁片", **changes}
    answer = await studio.owner.post("/api/quota-requests", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def in_force(studio: Studio) -> list[int]:
    return [row["nominal_gpu_milli"] for row in (await studio.owner.get("/api/quotas")).json()]


async def test_a_request_granted_whole_becomes_the_quota(world: World) -> None:
    studio = await world.studio()
    request = await asked(studio)
    assert await in_force(studio) == []
    granted = await world.admin.post(f"/api/quota-requests/{request['id']}/grant", json={})
    assert (granted.json()["state"], granted.json()["granted_gpu_milli"]) == ("granted", 4000)
    assert await in_force(studio) == [4000]
    version = (await studio.owner.get("/api/quotas/history")).json()[0]
    assert (version["request_id"], version["reason"]) == (request["id"], "贺岁片")


async def test_a_request_may_be_granted_in_part_later_and_under_a_condition(world: World, clock: FixedClock) -> None:
    studio = await world.studio()
    request = await asked(studio)
    path = f"/api/quota-requests/{request['id']}/grant"
    cut: dict[str, Any] = {"nominal_gpu_milli": 1000, "condition": "nights only until December"}
    silent = await world.admin.post(path, json=cut)
    assert (silent.status_code, silent.json()["code"]) == (422, "reason_missing")
    day = clock.now() + timedelta(days=3)
    terms = {**cut, "reason": "the pool is full", "effective_from": day.isoformat(), "borrowing_gpu_milli": 500}
    granted = (await world.admin.post(path, json=terms)).json()
    assert (granted["state"], granted["granted_gpu_milli"]) == ("partly_granted", 1000)
    assert granted["condition"] == "nights only until December"
    assert await in_force(studio) == []
    clock.advance(timedelta(days=3))
    again = await world.sign_in(studio.email)
    row = (await again.get("/api/quotas")).json()[0]
    assert (row["nominal_gpu_milli"], row["borrowing_gpu_milli"], row["lending_gpu_milli"]) == (1000, 500, None)


async def test_a_refusal_says_why_and_changes_nothing(world: World) -> None:
    studio = await world.studio()
    request = await asked(studio)
    path = f"/api/quota-requests/{request['id']}/refuse"
    assert (await world.admin.post(path, json={})).status_code == 422
    refused = (await world.admin.post(path, json={"reason": "no use of the last quota"})).json()
    assert (refused["state"], refused["decision_reason"]) == ("refused", "no use of the last quota")
    assert await in_force(studio) == []


async def test_a_request_is_decided_once_whoever_is_first(world: World) -> None:
    studio = await world.studio()
    request = await asked(studio)
    path = f"/api/quota-requests/{request['id']}"
    answers = await asyncio.gather(
        world.admin.post(f"{path}/grant", json={}),
        world.admin.post(f"{path}/refuse", json={"reason": "no"}),
        studio.owner.post(f"{path}/withdraw"),
    )
    assert sorted(one.status_code for one in answers) == [200, 409, 409]
    assert len((await studio.owner.get("/api/quotas/history")).json()) == (answers[0].status_code == 200)


async def test_one_open_request_per_pool_until_it_is_withdrawn(world: World) -> None:
    studio = await world.studio()
    first = await asked(studio)
    body = {"pool": POOL, "nominal_gpu_milli": 1, "reason": "more"}
    second = await studio.owner.post("/api/quota-requests", json=body)
    assert (second.status_code, second.json()["code"]) == (409, "request_open")
    await studio.owner.post(f"/api/quota-requests/{first['id']}/withdraw")
    await asked(studio)
    queue = (await world.admin.get("/api/quota-requests?state=open")).json()
    assert [one["firm_id"] for one in queue] == [studio.firm_id]


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"nominal_gpu_milli": 4001}, "grant_above_request"),
        ({"nominal_gpu_milli": -1}, "invalid_input"),
        ({"lending_gpu_milli": 4001}, "lending_above_quota"),
        ({"effective_from": "2026-01-01T00:00:00Z"}, "quota_backdated"),
    ],
)
async def test_an_impossible_grant_is_refused_and_the_request_stays_open(
    world: World, terms: dict[str, Any], code: str
) -> None:
    studio = await world.studio()
    request = await asked(studio)
    answer = await world.admin.post(f"/api/quota-requests/{request['id']}/grant", json=terms)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert (await studio.owner.get("/api/quota-requests")).json()[0]["state"] == "open"
    assert await in_force(studio) == []


async def test_only_an_administrator_decides_and_another_firm_sees_nothing(world: World) -> None:
    studio, other = await world.studio(), await world.studio()
    request = await asked(studio)
    path = f"/api/quota-requests/{request['id']}"
    assert (await studio.owner.post(f"{path}/grant", json={})).status_code == 403
    for step in ("grant", "withdraw"):
        foreign = await other.owner.post(f"{path}/{step}", json={})
        assert (foreign.status_code, foreign.json()["code"]) == (404, "quota_request_not_found")
    assert (await other.owner.get("/api/quota-requests")).json() == []
