"""Limits beyond nominal quota, over HTTP: dated, per firm and project, asked for at any instant."""

from datetime import timedelta

import pytest

from kit.clock import FixedClock
from tests.api.quotas.conftest import World

NONE = {"gpu_milli_at_once": None, "jobs_at_once": None, "gpu_ms_per_period": None, "tokens_per_period": None}


async def test_limits_count_from_their_day_and_any_instant_can_be_asked_for(world: World, clock: FixedClock) -> None:
    studio = await world.studio()
    project = (await studio.owner.post("/api/projects", json={"name": "film"})).json()["id"]
    start, later = clock.now(), clock.now() + timedelta(days=5)
    of_firm = {"firm_id": studio.firm_id, "jobs_at_once": 9, "tokens_per_period": 1000}
    assert (await world.admin.post("/api/limits", json=of_firm)).status_code == 201
    of_project = {"firm_id": studio.firm_id, "project_id": project, "jobs_at_once": 3, "gpu_milli_at_once": 2000}
    assert (await studio.owner.post("/api/limits", json=of_project)).status_code == 201
    raised = of_firm | {"jobs_at_once": 2, "effective_from": later.isoformat()}
    assert (await world.admin.post("/api/limits", json=raised)).status_code == 201

    async def seen(at: str, **more: str) -> dict[str, int | None]:
        answer = await studio.owner.get("/api/limits", params={"at": at, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()["effective"]

    assert await seen((start - timedelta(seconds=1)).isoformat()) == NONE
    assert await seen(start.isoformat()) == NONE | {"jobs_at_once": 9, "tokens_per_period": 1000}
    both = NONE | {"jobs_at_once": 3, "tokens_per_period": 1000, "gpu_milli_at_once": 2000}
    assert await seen(start.isoformat(), project_id=project) == both
    assert await seen(later.isoformat(), project_id=project) == both | {"jobs_at_once": 2}
    history = (await studio.owner.get("/api/limits/history")).json()
    assert [row["jobs_at_once"] for row in history] == [2, 3, 9]
    newest = (await world.admin.get("/api/audit?action=limit.set")).json()[0]
    assert (newest["before"]["jobs_at_once"], newest["after"]["jobs_at_once"]) == (9, 2)


async def test_a_firms_limits_are_the_administrators_to_set(world: World) -> None:
    one, other = await world.studio(), await world.studio()
    project = (await other.owner.post("/api/projects", json={"name": "film"})).json()["id"]
    body = {"firm_id": one.firm_id, "jobs_at_once": 1}
    assert (await one.owner.post("/api/limits", json=body)).status_code == 403
    assert (await one.owner.post("/api/limits", json=body | {"project_id": project})).status_code == 404
    assert (await world.admin.post("/api/limits", json=body | {"project_id": project})).status_code == 404
    assert (await other.owner.get("/api/limits", params={"firm_id": one.firm_id})).status_code == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"jobs_at_once": -1},
        {"jobs_at_once": 2**31},
        {"tokens_per_period": 1.5},
        {"gpu_milli_at_once": 10**18},
        {"effective_from": "2021-01-01T00:00:00Z"},
        {"unknown": 1},
    ],
)
async def test_a_bad_limit_is_refused_and_nothing_changes(world: World, changes: dict[str, object]) -> None:
    studio = await world.studio()
    body = {"firm_id": studio.firm_id, "jobs_at_once": 1, **changes}
    assert (await world.admin.post("/api/limits", json=body)).status_code == 422
    assert (await studio.owner.get("/api/limits/history")).json() == []
