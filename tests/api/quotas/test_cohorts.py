"""The tree of cohorts over HTTP."""

import asyncio
from datetime import timedelta

from kit.clock import FixedClock
from kit.db import Database
from quotas.cohort_tree import cohort_tree
from quotas.cohorts import ancestors
from quotas.quota_versions import quota_limits
from quotas.vocabulary import FirmId, PoolName
from tests.api.quotas.conftest import World

POOL = "optics-valley/cpu-slot"


async def test_an_administrator_builds_the_tree_and_moves_a_firm_on_a_day_to_come(
    world: World, db: Database, clock: FixedClock
) -> None:
    studio = await world.studio()
    day = clock.now() + timedelta(days=2)
    for node, parent, start in (
        ("city", None, None),
        ("games", "city", None),
        ("films", "city", None),
        (studio.firm_id, "games", None),
        (studio.firm_id, "films", day.isoformat()),
    ):
        answer = await world.admin.put(f"/api/cohorts/{node}", json={"parent": parent, "effective_from": start})
        assert answer.status_code == 200, answer.text
    async with db.transaction() as tx:
        today = await cohort_tree(tx, at=clock.now())
        then = await cohort_tree(tx, at=day)
    assert ancestors(today, FirmId(studio.firm_id)) == ("games", "city")
    assert ancestors(then, FirmId(studio.firm_id)) == ("films", "city")
    shown = (await world.admin.get("/api/cohorts", params={"at": day.isoformat()})).json()
    assert {row["node"]: row["parent"] for row in shown}[studio.firm_id] == "films"
    log = (await world.admin.get(f"/api/audit?subject={studio.firm_id}&action=cohort.place")).json()
    assert [row["before"] for row in log] == [{"parent": "games", "weight_milli": 1000}, None]


async def test_two_moves_at_once_cannot_close_a_loop(world: World) -> None:
    for node in ("games", "films"):
        assert (await world.admin.put(f"/api/cohorts/{node}", json={})).status_code == 200
    answers = await asyncio.gather(
        world.admin.put("/api/cohorts/games", json={"parent": "films"}),
        world.admin.put("/api/cohorts/films", json={"parent": "games"}),
    )
    assert sorted(one.status_code for one in answers) == [200, 409]


async def test_bad_placements_are_refused_and_the_tree_stays(world: World) -> None:
    studio = await world.studio()
    for node, body, status in (
        ("games", {"parent": "nowhere"}, 409),
        ("games", {"parent": "Not A Slug"}, 422),
        ("Games", {}, 422),
        ("games", {"weight_milli": 0}, 422),
        ("games", {"weight_milli": 10**12}, 422),
        ("games", {"colour": "red"}, 422),
        ("games", {"effective_from": "2026-01-01T00:00:00Z"}, 422),
        ("firm_none", {}, 404),
    ):
        answer = await world.admin.put(f"/api/cohorts/{node}", json=body)
        assert answer.status_code == status, (node, body, answer.text)
    assert (await world.admin.get("/api/cohorts")).json() == []
    assert (await studio.owner.get("/api/cohorts")).status_code == 403
    assert (await studio.owner.put("/api/cohorts/games", json={})).status_code == 403


async def test_the_scheduler_reads_borrowing_and_lending_with_the_quota(
    world: World, db: Database, clock: FixedClock
) -> None:
    studio = await world.studio()
    body = {"firm_id": studio.firm_id, "pool": POOL, "nominal_gpu_milli": 2000, "borrowing_gpu_milli": 0}
    assert (await world.admin.post("/api/quotas", json=body)).status_code == 201
    async with db.transaction() as tx:
        limits = (await quota_limits(tx, at=clock.now()))[FirmId(studio.firm_id), PoolName(POOL)]
    assert (limits.nominal, limits.borrowing, limits.lending) == (2000, 0, None)
