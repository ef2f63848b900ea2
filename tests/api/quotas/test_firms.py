"""Firms over HTTP: application, review, suspension, closing."""

from typing import Any

import pytest

from kit.db import Database
from kit.events import read
from tests.api.quotas.conftest import World, application, uscc


async def test_a_firm_applies_is_approved_and_its_owner_may_work(world: World) -> None:
    firm = await world.applied()
    assert (firm["state"], firm["doubts"]) == ("applied", [])
    owner = await world.sign_in(application(1)["owner_email"])

    waiting = await owner.get("/api/members")
    assert (waiting.status_code, waiting.json()["code"]) == (403, "firm_applied")
    assert (await owner.get("/api/me")).json()["firm"]["state"] == "applied"

    queue = await world.admin.get("/api/firms?state=applied&state=in_review")
    assert [one["id"] for one in queue.json()] == [firm["id"]]
    approved = await world.admin.post(f"/api/firms/{firm['id']}/review", json={"step": "approve"})
    assert approved.json()["state"] == "active"

    assert [one["roles"] for one in (await owner.get("/api/members")).json()] == [["firm_owner"]]
    assert [one["name"] for one in (await owner.get("/api/projects")).json()] == ["default"]
    assert "key:manage" in (await owner.get("/api/me")).json()["may"]


async def test_a_wrong_check_character_goes_to_manual_review_with_the_reason_shown(world: World) -> None:
    code = uscc(1)
    wrong = code[:-1] + ("0" if code[-1] != "0" else "1")
    firm = await world.applied(uscc=wrong)
    assert firm["state"] == "in_review"
    assert wrong in firm["doubts"][0] and f"gives {code[-1]}" in firm["doubts"][0]

    silent = await world.admin.post(f"/api/firms/{firm['id']}/review", json={"step": "approve"})
    assert (silent.status_code, silent.json()["code"]) == (422, "reason_missing")
    said = {"step": "approve", "reason": "compared with the licence"}
    approved = await world.admin.post(f"/api/firms/{firm['id']}/review", json=said)
    assert approved.json()["state"] == "active"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("", "uscc_length"),
        ("914201", "uscc_length"),
        ("91420100MA4KWL5Q1", "uscc_length"),
        ("91420100MA4KWL5Q1I", "uscc_alphabet"),
        ("91420100MA4KWL5Q1统", "uscc_alphabet"),
    ],
)
async def test_what_cannot_be_a_uscc_is_refused(world: World, code: str, why: str) -> None:
    answer = await world.anonymous.post("/api/firms", json=application(uscc=code))
    assert (answer.status_code, answer.json()["code"]) == (422, why)
    assert (await world.admin.get("/api/firms")).json() == []


async def test_two_firms_with_one_uscc_are_a_conflict_until_the_first_is_over(world: World) -> None:
    first = await world.applied()
    second = application(2, uscc=f" {uscc(1).lower()} ")
    taken = await world.anonymous.post("/api/firms", json=second)
    assert (taken.status_code, taken.json()["code"]) == (409, "uscc_taken")

    rejected = {"step": "reject", "reason": "not a digital-content firm"}
    await world.admin.post(f"/api/firms/{first['id']}/review", json=rejected)
    again = await world.anonymous.post("/api/firms", json=application(1))
    assert again.status_code == 201, again.text


async def test_a_suspended_firm_is_refused_with_the_reason_and_works_again_when_resumed(world: World) -> None:
    studio = await world.studio()
    key = await world.key(studio, scopes=["quotas:read"])
    program = world.as_token(key["token"])
    assert (await program.get("/api/quotas")).status_code == 200

    suspend = {"step": "suspend", "reason": "unpaid since October"}
    await world.admin.post(f"/api/firms/{studio.firm_id}/review", json=suspend)
    for caller in (studio.owner, program):
        refused = await caller.get("/api/quotas")
        assert (refused.status_code, refused.json()["code"]) == (403, "firm_suspended")
        assert "unpaid since October" in refused.json()["detail"]
    assert (await studio.owner.get("/api/me")).json()["firm"]["state_reason"] == "unpaid since October"

    await world.admin.post(f"/api/firms/{studio.firm_id}/review", json={"step": "resume"})
    assert (await program.get("/api/quotas")).status_code == 200


async def test_a_suspended_firm_still_sees_what_it_owes(world: World) -> None:
    studio = await world.studio()
    program = world.as_token((await world.key(studio, scopes=["quotas:read"]))["token"])
    await world.admin.post(f"/api/firms/{studio.firm_id}/review", json={"step": "suspend", "reason": "unpaid"})
    for path in ("/api/account", "/api/top-ups", "/api/statements?period=2026-11"):
        assert (await studio.owner.get(path)).status_code == 200, path
        assert (await program.get(path)).json()["code"] == "firm_suspended", "its keys have stopped"


async def test_closing_a_firm_ends_its_keys_and_frees_its_addresses(world: World) -> None:
    studio = await world.studio()
    program = world.as_token((await world.key(studio, scopes=["quotas:read"]))["token"])
    close = {"step": "close", "reason": "dissolved"}
    closed = await world.admin.post(f"/api/firms/{studio.firm_id}/review", json=close)
    assert closed.json()["state"] == "closed"
    assert (await program.get("/api/quotas")).json()["code"] == "firm_closed"
    assert (await studio.owner.get("/api/members")).json()["code"] == "firm_closed"

    keys = (await world.admin.get(f"/api/keys?firm_id={studio.firm_id}")).json()
    assert [one["revoked_why"] for one in keys] == ["firm_closed"]
    again = await world.anonymous.post("/api/firms", json=application(1))
    assert again.status_code == 201, again.text


async def test_an_illegal_step_is_refused_and_names_the_legal_ones(world: World) -> None:
    firm = await world.applied()
    answer = await world.admin.post(f"/api/firms/{firm['id']}/review", json={"step": "resume"})
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_firm_step")
    assert answer.json()["details"]["legal"] == ["take", "approve", "reject"]
    assert (await world.admin.get(f"/api/firms/{firm['id']}")).json()["state"] == "applied"


async def test_the_platform_itself_cannot_be_suspended(world: World) -> None:
    step = {"step": "suspend", "reason": "why not"}
    answer = await world.admin.post("/api/firms/firm_platform/review", json=step)
    assert answer.status_code == 404


async def test_every_step_is_an_event_and_an_audit_row(world: World, db: Database) -> None:
    firm = await world.applied()
    for step in ("take", "approve", "suspend", "resume", "close"):
        body = {"step": step, "reason": f"because {step}"}
        assert (await world.admin.post(f"/api/firms/{firm['id']}/review", json=body)).status_code == 200
    async with db.transaction() as tx:
        happened = [event.topic for event in await read(tx, subject=firm["id"])]
    assert happened == [
        "firm.applied", "firm.in_review", "firm.active", "firm.suspended", "firm.active", "firm.closed",
    ]  # fmt: skip
    log = (await world.admin.get(f"/api/audit?subject={firm['id']}")).json()
    assert [row["action"] for row in reversed(log)] == [
        "firm.apply", "firm.take", "firm.approve", "firm.suspend", "firm.resume", "firm.close",
    ]  # fmt: skip
    assert log[0]["before"]["state"] == "active" and log[0]["after"]["state"] == "closed"
    assert log[0]["origin"] == "203.0.113.9" and log[0]["actor_id"].startswith("mem_")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"shoe_size": 43}, "shoe_size"),
        ({"name": 7}, "name"),
        ({"name": ""}, "name"),
        ({"name": "合流" * 101}, "name"),
        ({"name": "a\x1b[31mred"}, "name"),
        ({"name": "a\x00b"}, ""),
        ({"industry_cluster": "steel"}, "industry_cluster"),
        ({"owner_email": "nobody"}, "owner_email"),
        ({"owner_password": "short"}, "owner_password"),
        ({"contact_phone": "call me"}, "contact_phone"),
    ],
)
async def test_an_application_with_bad_input_is_refused_and_nothing_is_kept(
    world: World, changes: dict[str, Any], field: str
) -> None:
    answer = await world.anonymous.post("/api/firms", json=application(**changes))
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["faults"][0]["field"] == field
    assert "short" not in answer.text.replace("should", "")
    assert (await world.admin.get("/api/firms")).json() == []


async def test_applications_from_one_address_are_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quotas.applications.APPLICATIONS_PER_HOUR", 2)
    await world.applied()
    await world.applied()
    answer = await world.anonymous.post("/api/firms", json=application(3))
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_applications")
    assert answer.headers["retry-after"] == "3600"
