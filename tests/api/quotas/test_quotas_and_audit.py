"""Quotas as a history and the audit log, over HTTP."""

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from kit.clock import FixedClock
from kit.db import Database
from quotas.quota_versions import quota_nominal
from tests.api.quotas.conftest import World

POOL = "optics-valley/cpu-slot"


async def test_a_quota_counts_from_its_day_and_the_past_stays_as_it_was(
    world: World, db: Database, clock: FixedClock
) -> None:
    studio = await world.studio()
    start = clock.now()
    later = start + timedelta(days=5)
    for amount, day in ((2000, None), (4000, later.isoformat())):
        body = {"firm_id": studio.firm_id, "pool": POOL, "nominal_gpu_milli": amount, "effective_from": day}
        answer = await world.admin.post("/api/quotas", json=body)
        assert answer.status_code == 201, answer.text

    async def seen(at: str) -> list[int]:
        rows = (await studio.owner.get("/api/quotas", params={"at": at})).json()
        return [row["nominal_gpu_milli"] for row in rows]

    assert await seen((start - timedelta(seconds=1)).isoformat()) == []
    assert await seen(start.isoformat()) == [2000]
    assert await seen((later - timedelta(microseconds=1)).isoformat()) == [2000]
    assert await seen(later.isoformat()) == [4000]
    async with db.transaction() as tx:
        assert await quota_nominal(tx, at=clock.now()) == {(studio.firm_id, POOL): 2000}
    history = (await studio.owner.get("/api/quotas/history")).json()
    assert [row["nominal_gpu_milli"] for row in history] == [4000, 2000]


async def test_only_an_administrator_sets_quotas(world: World) -> None:
    studio = await world.studio()
    body = {"firm_id": studio.firm_id, "pool": POOL, "nominal_gpu_milli": 64_000}
    assert (await studio.owner.post("/api/quotas", json=body)).json()["code"] == "not_allowed"
    auditor = await world.member(world.admin, "audit@heliu.example", "auditor")
    assert (await auditor.post("/api/quotas", json=body)).status_code == 403
    assert (await auditor.get("/api/quotas")).json() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"nominal_gpu_milli": -1},
        {"nominal_gpu_milli": 10**18},
        {"nominal_gpu_milli": "2000"},
        {"nominal_gpu_milli": 1.5},
        {"nominal_gpu_milli": True},
        {"pool": "nowhere"},
        {"pool": "Optics Valley/cpu"},
        {"effective_from": "2021-01-01T00:00:00Z"},
        {"effective_from": "2027-01-01"},
        {"unknown": 1},
    ],
)
async def test_a_quota_with_bad_input_is_refused_and_nothing_changes(world: World, changes: dict[str, object]) -> None:
    studio = await world.studio()
    body = {"firm_id": studio.firm_id, "pool": POOL, "nominal_gpu_milli": 2000, **changes}
    assert (await world.admin.post("/api/quotas", json=body)).status_code == 422
    assert (await world.admin.get("/api/quotas")).json() == []


async def test_a_quota_for_no_firm_is_not_found(world: World) -> None:
    body = {"firm_id": "firm_none", "pool": POOL, "nominal_gpu_milli": 2000}
    assert (await world.admin.post("/api/quotas", json=body)).json()["code"] == "firm_not_found"


async def test_a_change_of_quota_is_audited_with_before_and_after(world: World) -> None:
    studio = await world.studio()
    for amount in (2000, 500):
        body = {"firm_id": studio.firm_id, "pool": POOL, "nominal_gpu_milli": amount, "reason": "season"}
        await world.admin.post("/api/quotas", json=body)
    newest = (await world.admin.get("/api/audit?action=quota.set")).json()[0]
    assert newest["before"]["nominal_gpu_milli"] == 2000 and newest["after"]["nominal_gpu_milli"] == 500
    assert (newest["reason"], newest["subject"]) == ("season", f"{studio.firm_id}:{POOL}")


async def test_the_audit_log_is_paged_and_a_firm_sees_only_its_own(world: World) -> None:
    one, other = await world.studio(), await world.studio()
    everything = (await world.admin.get("/api/audit")).json()
    page = (await world.admin.get("/api/audit", params={"limit": 3})).json()
    rest = (await world.admin.get("/api/audit", params={"before_seq": page[-1]["seq"]})).json()
    assert page + rest == everything
    own = (await one.owner.get("/api/audit")).json()
    assert own and {row["firm_id"] for row in own} == {one.firm_id}
    assert (await one.owner.get(f"/api/audit?firm_id={other.firm_id}")).status_code == 404


@pytest.mark.parametrize("table", ["audit_entry", "quota_version"])
@pytest.mark.parametrize(
    "statement", ["UPDATE quotas.{} SET reason = 'x'", "DELETE FROM quotas.{}", "TRUNCATE quotas.{}"]
)
async def test_what_was_written_cannot_be_changed(world: World, db: Database, table: str, statement: str) -> None:
    studio = await world.studio()
    body = {"firm_id": studio.firm_id, "pool": POOL, "nominal_gpu_milli": 2000}
    await world.admin.post("/api/quotas", json=body)
    with pytest.raises(IntegrityError, match="only ever added"):
        async with db.transaction() as tx:
            await tx.execute(text(statement.format(table)))
