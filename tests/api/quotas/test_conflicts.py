"""A conflict in the database that reaches a caller over HTTP: busy, and the same request again does it once."""

import pytest

from kit.db import Database
from tests.api.quotas.conftest import World
from tests.support.conflicts import DEADLOCK, refuse_writes


@pytest.mark.parametrize("code", [DEADLOCK, "40001"], ids=["deadlock", "serialization failure"])
async def test_a_conflict_is_no_fault_of_ours_and_may_be_sent_again(world: World, db: Database, code: str) -> None:
    studio = await world.studio()
    await refuse_writes(db, "quotas.project", code=code)
    answer = await studio.owner.post("/api/projects", json={"name": "lore"})
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "busy", True)
    answer = await studio.owner.post("/api/projects", json={"name": "lore"})
    assert answer.status_code == 201, answer.text
    names = [project["name"] for project in (await studio.owner.get("/api/projects")).json()]
    assert names.count("lore") == 1
