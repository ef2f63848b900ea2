"""Members, invitations, sessions and the administrator's link over HTTP."""

import asyncio
from datetime import timedelta

import httpx

from kit.clock import FixedClock
from kit.db import Database
from quotas.members import ADMIN_LINK_LIFE, INVITATION_LIFE, issue_admin_link
from quotas.sessions import FAILURES_PER_PLACE, SESSION_LIFE
from tests.api.quotas.conftest import PASSWORD, World, application, client


async def test_the_owner_invites_a_developer_once(world: World) -> None:
    studio = await world.studio()
    body = {"email": "Dev@Studio1.example", "roles": ["firm_developer"]}
    invited = (await studio.owner.post("/api/invitations", json=body)).json()
    accept = {"token": invited["token"], "name": "陈晨", "password": PASSWORD}
    first = await world.anonymous.post("/api/invitations/accept", json=accept)
    assert first.status_code == 201
    second = await world.anonymous.post("/api/invitations/accept", json=accept)
    assert (second.status_code, second.json()["code"]) == (401, "invitation_over")

    me = (await world.as_token(first.json()["token"]).get("/api/me")).json()
    assert (me["email"], me["roles"], me["firm"]["id"]) == ("dev@studio1.example", ["firm_developer"], studio.firm_id)
    listed = (await studio.owner.get("/api/invitations")).text
    assert invited["token"] not in listed and "token" not in listed


async def test_two_at_once_cannot_use_one_invitation(world: World) -> None:
    studio = await world.studio()
    body = {"email": "dev@studio1.example", "roles": ["firm_developer"]}
    token = (await studio.owner.post("/api/invitations", json=body)).json()["token"]
    accept = {"token": token, "name": "陈晨", "password": PASSWORD}
    answers = await asyncio.gather(*(world.anonymous.post("/api/invitations/accept", json=accept) for _ in range(4)))
    assert sorted(one.status_code for one in answers) == [201, 401, 401, 401]


async def test_an_invitation_expires_and_can_be_taken_back(world: World, clock: FixedClock) -> None:
    studio = await world.studio()
    body = {"email": "dev@studio1.example", "roles": ["firm_developer"]}
    old = (await studio.owner.post("/api/invitations", json=body)).json()
    revoked = (await studio.owner.post("/api/invitations", json=body)).json()
    answer = await studio.owner.delete(f"/api/invitations/{revoked['invitation']['id']}")
    assert answer.status_code == 204
    accept = {"token": revoked["token"], "name": "陈晨", "password": PASSWORD}
    assert (await world.anonymous.post("/api/invitations/accept", json=accept)).status_code == 401
    clock.advance(INVITATION_LIFE)
    accept["token"] = old["token"]
    assert (await world.anonymous.post("/api/invitations/accept", json=accept)).status_code == 401


async def test_nobody_invites_themselves_into_the_platform(world: World) -> None:
    studio = await world.studio()
    for role in ("platform_admin", "auditor"):
        body = {"email": "x@studio1.example", "roles": [role]}
        answer = await studio.owner.post("/api/invitations", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "role_not_fitting")
    body = {"email": "x@studio1.example", "roles": ["platform_admin"], "firm_id": "firm_platform"}
    assert (await studio.owner.post("/api/invitations", json=body)).status_code == 404


async def test_a_firm_keeps_its_last_owner_and_the_platform_its_last_administrator(world: World) -> None:
    studio = await world.studio()
    for caller in (studio.owner, world.admin):
        me = (await caller.get("/api/me")).json()["id"]
        gone = await caller.delete(f"/api/members/{me}")
        assert (gone.status_code, gone.json()["code"]) == (409, "last_owner")
    me = (await studio.owner.get("/api/me")).json()["id"]
    demoted = await studio.owner.put(f"/api/members/{me}/roles", json={"roles": ["firm_developer"]})
    assert (demoted.status_code, demoted.json()["code"]) == (409, "last_owner")


async def test_two_owners_cannot_remove_each_other_at_once(world: World) -> None:
    studio = await world.studio()
    other = await world.member(studio.owner, "second@studio1.example", "firm_owner")
    first_id = (await studio.owner.get("/api/me")).json()["id"]
    second_id = (await other.get("/api/me")).json()["id"]
    answers = await asyncio.gather(
        studio.owner.delete(f"/api/members/{second_id}"), other.delete(f"/api/members/{first_id}")
    )
    assert sorted(one.status_code for one in answers) in ([200, 401], [200, 409])
    members = (await world.admin.get(f"/api/members?firm_id={studio.firm_id}")).json()
    assert [one["state"] for one in members].count("active") == 1


async def test_a_removed_member_is_out_at_once_and_the_address_is_free(world: World) -> None:
    studio = await world.studio()
    dev = await world.member(studio.owner, "dev@studio1.example", "firm_developer")
    dev_id = (await dev.get("/api/me")).json()["id"]
    assert (await studio.owner.delete(f"/api/members/{dev_id}")).json()["state"] == "left"
    assert (await dev.get("/api/me")).status_code == 401
    wrong = await world.anonymous.post("/api/sessions", json={"email": "dev@studio1.example", "password": PASSWORD})
    assert wrong.status_code == 401
    again = await world.member(studio.owner, "dev@studio1.example", "firm_finance")
    assert (await again.get("/api/me")).json()["roles"] == ["firm_finance"]


async def test_changed_roles_count_from_the_next_request(world: World) -> None:
    studio = await world.studio()
    dev = await world.member(studio.owner, "dev@studio1.example", "firm_developer")
    assert (await dev.get("/api/keys")).json()["code"] == "not_allowed"
    dev_id = (await dev.get("/api/me")).json()["id"]
    changed = await studio.owner.put(f"/api/members/{dev_id}/roles", json={"roles": ["firm_finance"]})
    assert changed.json()["roles"] == ["firm_finance"]
    assert (await dev.get("/api/keys")).status_code == 200


async def test_a_session_expires_and_ends_when_signed_out(world: World, clock: FixedClock) -> None:
    studio = await world.studio()
    other = await world.sign_in(studio.email)
    assert (await other.delete("/api/sessions/current")).status_code == 204
    assert (await other.get("/api/me")).status_code == 401
    assert (await studio.owner.get("/api/me")).status_code == 200
    clock.advance(SESSION_LIFE)
    expired = await studio.owner.get("/api/me")
    assert (expired.status_code, expired.headers["www-authenticate"]) == (401, "Bearer")


async def test_wrong_passwords_are_limited_also_in_parallel_and_only_where_they_were_tried(
    world: World, clock: FixedClock
) -> None:
    studio = await world.studio()
    wrong = {"email": studio.email, "password": "not the password"}
    answers = await asyncio.gather(
        *(world.anonymous.post("/api/sessions", json=wrong) for _ in range(FAILURES_PER_PLACE + 3))
    )
    codes = sorted(one.status_code for one in answers)
    assert codes == [401] * FAILURES_PER_PLACE + [429] * 3
    right = {"email": studio.email, "password": PASSWORD}
    locked = await world.anonymous.post("/api/sessions", json=right)
    assert locked.status_code == 429 and int(locked.headers["retry-after"]) > 0
    elsewhere = client(world.app, ip="198.51.100.7")
    assert (await elsewhere.post("/api/sessions", json=right)).status_code == 201
    clock.advance(timedelta(minutes=15))
    assert (await world.anonymous.post("/api/sessions", json=right)).status_code == 201


async def test_an_unknown_address_and_a_wrong_password_get_the_same_answer(world: World) -> None:
    studio = await world.studio()
    unknown = {"email": "nobody@studio1.example", "password": PASSWORD}
    wrong = {"email": studio.email, "password": "not the password"}
    answers = [await world.anonymous.post("/api/sessions", json=body) for body in (unknown, wrong)]
    assert answers[0].status_code == answers[1].status_code == 401
    assert answers[0].json() == answers[1].json()


async def test_a_new_password_ends_every_session(world: World) -> None:
    studio = await world.studio()
    new = "another long password"
    wrong = await studio.owner.post("/api/me/password", json={"old": "not the password", "new": new})
    assert wrong.json()["code"] == "wrong_password"
    changed = await studio.owner.post("/api/me/password", json={"old": PASSWORD, "new": new})
    assert changed.status_code == 204
    assert (await studio.owner.get("/api/me")).status_code == 401
    assert (await (await world.sign_in(studio.email, new)).get("/api/me")).status_code == 200


async def test_a_rejected_owner_reads_why_when_signing_in(world: World) -> None:
    firm = await world.applied()
    reject = {"step": "reject", "reason": "the licence is unreadable"}
    await world.admin.post(f"/api/firms/{firm['id']}/review", json=reject)
    body = {"email": application(1)["owner_email"], "password": PASSWORD}
    answer = await world.anonymous.post("/api/sessions", json=body)
    assert (answer.status_code, answer.json()["code"]) == (403, "firm_rejected")
    assert "the licence is unreadable" in answer.json()["detail"]


async def _link(db: Database, clock: FixedClock) -> str:
    async with db.transaction() as tx:
        return await issue_admin_link(tx, clock.now())


async def test_the_administrators_link_works_once_and_for_fifteen_minutes(
    http: httpx.AsyncClient, db: Database, clock: FixedClock
) -> None:
    token, late = await _link(db, clock), await _link(db, clock)
    page = await http.get("/admin/claim", params={"token": token})
    assert page.status_code == 200 and "<form" in page.text
    assert page.headers["referrer-policy"] == "no-referrer" and page.headers["cache-control"] == "no-store"
    form = {"token": token, "email": "admin@heliu.example", "name": "管理员", "password": PASSWORD}
    assert (await http.post("/admin/claim", data={**form, "password": "short"})).status_code == 422
    assert (await http.post("/admin/claim", data=form)).status_code == 201
    assert (await http.post("/admin/claim", data=form)).status_code == 401
    assert (await http.get("/admin/claim", params={"token": token})).status_code == 401

    clock.advance(ADMIN_LINK_LIFE)
    assert (await http.post("/api/admin/claim", json={**form, "token": late})).json()["code"] == "link_over"
    body = {"email": "admin@heliu.example", "password": PASSWORD}
    signed_in = await http.post("/api/sessions", json=body)
    me = await http.get("/api/me", headers={"Authorization": f"Bearer {signed_in.json()['token']}"})
    assert (me.json()["roles"], me.json()["firm"]["id"]) == (["platform_admin"], "firm_platform")


async def test_the_page_shows_what_was_typed_as_text_only(
    http: httpx.AsyncClient, db: Database, clock: FixedClock
) -> None:
    evil = '"><script>alert(1)</script>'
    form = {"token": await _link(db, clock), "email": evil, "name": evil, "password": PASSWORD}
    page = await http.post("/admin/claim", data=form)
    assert page.status_code == 422 and "<script>" not in page.text


async def test_an_administrator_who_lost_the_password_gets_a_new_one_by_a_new_link(
    world: World, db: Database, clock: FixedClock
) -> None:
    body = {"token": await _link(db, clock), "email": "admin@heliu.example", "password": "another long password"}
    claimed = await world.anonymous.post("/api/admin/claim", json=body)
    assert claimed.status_code == 201
    assert (await world.admin.get("/api/me")).status_code == 401
    staff = await world.as_token(claimed.json()["token"]).get("/api/members")
    assert [one["roles"] for one in staff.json()] == [["platform_admin"]]


async def test_a_link_does_not_take_over_a_firms_member(world: World, db: Database, clock: FixedClock) -> None:
    studio = await world.studio()
    body = {"token": await _link(db, clock), "email": studio.email, "password": "another long password"}
    answer = await world.anonymous.post("/api/admin/claim", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "email_taken")
    assert (await studio.owner.get("/api/me")).json()["roles"] == ["firm_owner"]
