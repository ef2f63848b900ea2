"""Four eyes on money: what one administrator proposes only another one lets happen."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from kit.clock import FixedClock
from kit.db import Database
from kit.units import MICRO_PER_YUAN
from quotas import api
from quotas.vocabulary import FirmId
from tests.api.quotas.conftest import Studio, World
from tests.support.money import publish_prices, tokens

LARGE = 100_001 * MICRO_PER_YUAN
SMALL = 100_000 * MICRO_PER_YUAN
BOOK = {"name": "dear", "gpu": [{"pool": "optics-valley/cpu-slot", "micro_yuan_per_gpu_hour": LARGE}]}


async def second(world: World) -> httpx.AsyncClient:
    return await world.member(world.admin, "second@heliu.example", "platform_admin")


async def programme(world: World) -> str:
    body = {
        "name": "武汉算力券",
        "funder": "bureau",
        "share_ppm": 500_000,
        "pool_micro_yuan": 10 * LARGE,
        "cap_per_firm_year_micro_yuan": 10 * LARGE,
        "valid_until": "2027-12-31T00:00:00Z",
    }
    answer = await world.admin.post("/api/programmes", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def balance(studio: Studio) -> int:
    return (await studio.owner.get("/api/account")).json()["balance_micro_yuan"]


def topup(studio: Studio, amount: int = LARGE) -> dict[str, Any]:
    return {"firm_id": studio.firm_id, "amount_micro_yuan": amount, "evidence": "slip 7"}


async def test_a_small_sum_passes_at_once_and_a_large_one_when_a_second_administrator_approves(world: World) -> None:
    studio, other = await world.studio(), await second(world)
    assert (await world.admin.post("/api/top-ups", json=topup(studio, SMALL))).status_code == 201
    key = {"Idempotency-Key": "slip 7"}
    waiting = await world.admin.post("/api/top-ups", json=topup(studio), headers=key)
    assert waiting.status_code == 202
    again = await world.admin.post("/api/top-ups", json=topup(studio), headers=key)
    proposal = waiting.json()
    assert again.json() == proposal and proposal["state"] == "open"
    assert await balance(studio) == SMALL
    mine = await world.admin.post(f"/api/approvals/{proposal['id']}/approve")
    assert (mine.status_code, mine.json()["code"]) == (403, "four_eyes")
    assert [row["id"] for row in (await other.get("/api/approvals?state=open")).json()] == [proposal["id"]]
    done = await other.post(f"/api/approvals/{proposal['id']}/approve")
    assert done.status_code == 200, done.text
    assert done.json()["result_id"].startswith("top_") and await balance(studio) == SMALL + LARGE
    twice = await other.post(f"/api/approvals/{proposal['id']}/approve")
    assert (twice.status_code, twice.json()["code"]) == (409, "proposal_decided")
    changed = await world.admin.post("/api/top-ups", json=topup(studio, LARGE + 1), headers=key)
    assert changed.json()["code"] == "key_reused"
    assert await balance(studio) == SMALL + LARGE
    seen = [row["action"] for row in (await world.admin.get("/api/audit")).json()]
    assert seen[:3] == ["approval.approve", "cash.top_up", "approval.propose"]


async def test_a_large_sum_in_pieces_needs_a_second_administrator_too(world: World, clock: FixedClock) -> None:
    studio, neighbour, other = await world.studio(), await world.studio(), await second(world)
    half = {"Idempotency-Key": "half"}
    for _ in range(3):  # sent again it is the same piece
        assert (await world.admin.post("/api/top-ups", json=topup(studio, SMALL // 2), headers=half)).status_code == 201
    assert (await world.admin.post("/api/top-ups", json=topup(studio, SMALL // 2))).status_code == 201
    assert (await world.admin.post("/api/top-ups", json=topup(studio, 1))).status_code == 202
    grant = {"programme_id": await programme(world), "firm_id": studio.firm_id, "amount_micro_yuan": 1}
    assert (await world.admin.post("/api/vouchers", json=grant)).status_code == 202
    assert (await world.admin.post("/api/top-ups", json=topup(neighbour, SMALL))).status_code == 201
    assert (await other.post("/api/top-ups", json=topup(studio, SMALL))).status_code == 201
    assert await balance(studio) == 2 * SMALL
    clock.advance(timedelta(hours=24))
    admin = await world.sign_in("admin@heliu.example")
    assert (await admin.post("/api/top-ups", json=topup(studio, SMALL))).status_code == 201


async def test_a_sum_that_was_done_is_answered_again_whatever_was_done_since(world: World) -> None:
    studio = await world.studio()
    sent = {"json": topup(studio, SMALL // 2), "headers": {"Idempotency-Key": "slip 1"}}
    first = await world.admin.post("/api/top-ups", **sent)
    assert (await world.admin.post("/api/top-ups", json=topup(studio, SMALL // 2))).status_code == 201
    lower = {"amount_above_micro_yuan": 10, "rate_above_micro_yuan": SMALL, "reason": "audit"}
    assert (await world.admin.put("/api/approvals/policy", json=lower)).status_code == 200
    again = await world.admin.post("/api/top-ups", **sent)
    assert (again.status_code, again.json()) == (201, first.json())
    assert await balance(studio) == SMALL


async def test_of_many_pieces_at_once_no_more_than_the_amount_passes(world: World) -> None:
    studio = await world.studio()
    pieces = [world.admin.post("/api/top-ups", json=topup(studio, SMALL // 4)) for _ in range(9)]
    answers = await asyncio.gather(*pieces)
    assert sorted(answer.status_code for answer in answers) == [201] * 4 + [202] * 5
    assert await balance(studio) == SMALL


async def test_every_kind_of_money_waits_above_the_amount_and_happens_when_approved(world: World) -> None:
    studio, other = await world.studio(), await second(world)
    grant = {"programme_id": await programme(world), "firm_id": studio.firm_id, "amount_micro_yuan": LARGE}
    line = {"amount_micro_yuan": LARGE, "reason": "postpaid"}
    asked = [
        ("POST", "/api/top-ups", topup(studio)),
        ("POST", "/api/withdrawals", topup(studio)),
        ("POST", "/api/vouchers", grant),
        ("PUT", f"/api/firms/{studio.firm_id}/credit-line", line),
        ("POST", "/api/tariffs", BOOK),
    ]
    for method, path, body in asked:
        answer = await world.admin.request(method, path, json=body)
        assert answer.status_code == 202, answer.text
        done = await other.post(f"/api/approvals/{answer.json()['id']}/approve")
        assert done.status_code == 200, (path, done.text)
    account = (await studio.owner.get("/api/account")).json()
    assert (account["balance_micro_yuan"], account["credit_line_micro_yuan"]) == (0, LARGE)
    assert (await studio.owner.get("/api/vouchers")).json()[0]["amount_micro_yuan"] == LARGE
    assert len((await studio.owner.get("/api/tariffs")).json()) == 1


async def test_a_refused_proposal_never_happens_and_its_reason_is_kept(world: World) -> None:
    studio, other = await world.studio(), await second(world)
    proposal = (await world.admin.post("/api/top-ups", json=topup(studio))).json()
    refuse = f"/api/approvals/{proposal['id']}/refuse"
    assert (await other.post(refuse, json={"reason": ""})).status_code == 422
    row = (await other.post(refuse, json={"reason": "no such slip"})).json()
    assert (row["state"], row["decision_reason"]) == ("refused", "no such slip")
    assert (await other.post(f"/api/approvals/{proposal['id']}/approve")).json()["code"] == "proposal_decided"
    assert await balance(studio) == 0


async def test_what_cannot_be_done_stays_open_and_changes_nothing(world: World) -> None:
    studio, other = await world.studio(), await second(world)
    proposal = (await world.admin.post("/api/withdrawals", json=topup(studio))).json()
    answer = await other.post(f"/api/approvals/{proposal['id']}/approve")
    assert answer.status_code == 402
    assert (await other.get("/api/approvals")).json()[0]["state"] == "open"


async def test_a_refund_gives_back_what_was_approved_and_nothing_else(
    world: World, db: Database, clock: FixedClock
) -> None:
    studio, other = await world.studio(), await second(world)
    await publish_prices(db, now=clock.now())
    firm = FirmId(studio.firm_id)
    async with db.transaction() as tx:
        await api.ingest_tokens(tx, [tokens(firm, 1, at=clock.now())], now=clock.now())
    assert (await world.admin.post("/api/top-ups", json=topup(studio, 1000))).status_code == 201
    nothing = {"amount_above_micro_yuan": 0, "rate_above_micro_yuan": 0, "reason": "everything by two"}
    assert (await world.admin.put("/api/approvals/policy", json=nothing)).status_code == 200
    async with db.transaction() as tx:
        await api.ingest_tokens(tx, [tokens(firm, 2, at=clock.now())], now=clock.now())
        [line] = (await api.statement(tx, firm, "2026-11", clock.now())).lines
    proposal = await world.admin.post(f"/api/charges/{line.charge_id}/refund", json={"reason": "wrong"})
    assert (proposal.status_code, proposal.json()["amount_micro_yuan"]) == (202, 105), proposal.text
    assert proposal.json()["body"]["amount_micro_yuan"] == 105
    async with db.transaction() as tx:
        await api.ingest_tokens(tx, [tokens(firm, 3, at=clock.now())], now=clock.now())
    approve = f"/api/approvals/{proposal.json()['id']}/approve"
    answer = await other.post(approve)
    assert (answer.status_code, answer.json()["code"]) == (409, "charge_changed")
    assert await balance(studio) == 1000 - 2 * 105, "nothing moved"
    assert (await world.admin.get("/api/approvals")).json()[0]["state"] == "open"


async def test_what_cannot_be_given_back_is_refused_and_not_proposed(
    world: World, db: Database, clock: FixedClock
) -> None:
    studio = await world.studio()
    firm = FirmId(studio.firm_id)
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        await api.ingest_tokens(tx, [tokens(firm, 1, at=clock.now(), dedicated=True)], now=clock.now())
        [free] = (await api.statement(tx, firm, "2026-11", clock.now())).lines
    await world.admin.post("/api/top-ups", json=topup(studio, 1000))
    async with db.transaction() as tx:
        await api.ingest_tokens(tx, [tokens(firm, 3, at=clock.now())], now=clock.now())
        paid = next(line for line in (await api.statement(tx, firm, "2026-11", clock.now())).lines if line.amount)
    refund = f"/api/charges/{paid.charge_id}/refund"
    assert (await world.admin.post(refund, json={"reason": "wrong"})).status_code == 201
    nothing = {"amount_above_micro_yuan": 0, "rate_above_micro_yuan": 0, "reason": "everything by two"}
    assert (await world.admin.put("/api/approvals/policy", json=nothing)).status_code == 200
    for path, code in ((refund, "refunded_already"), (f"/api/charges/{free.charge_id}/refund", "nothing_to_refund")):
        answer = await world.admin.post(path, json={"reason": "wrong"})
        assert (answer.status_code, answer.json()["code"]) == (409, code)
    assert (await world.admin.get("/api/approvals")).json() == []


async def test_the_amounts_are_lowered_at_once_and_raised_by_two(world: World) -> None:
    studio, other = await world.studio(), await second(world)
    lower = {"amount_above_micro_yuan": 10, "rate_above_micro_yuan": SMALL, "reason": "audit"}
    assert (await world.admin.put("/api/approvals/policy", json=lower)).status_code == 200
    assert (await world.admin.post("/api/top-ups", json=topup(studio, 11))).status_code == 202
    raising = lower | {"amount_above_micro_yuan": SMALL}
    waiting = await world.admin.put("/api/approvals/policy", json=raising)
    assert waiting.status_code == 202
    assert (await world.admin.get("/api/approvals/policy")).json()["amount_above_micro_yuan"] == 10
    assert (await other.post(f"/api/approvals/{waiting.json()['id']}/approve")).status_code == 200
    assert (await world.admin.get("/api/approvals/policy")).json()["amount_above_micro_yuan"] == SMALL


async def test_only_administrators_decide_and_only_staff_see(world: World) -> None:
    studio = await world.studio()
    proposal = (await world.admin.post("/api/top-ups", json=topup(studio))).json()
    auditor = await world.member(world.admin, "audit@heliu.example", "auditor")
    assert len((await auditor.get("/api/approvals")).json()) == 1
    for person in (auditor, studio.owner):
        assert (await person.post(f"/api/approvals/{proposal['id']}/approve")).status_code == 403
        assert (await person.post(f"/api/approvals/{proposal['id']}/refuse", json={"reason": "x"})).status_code == 403
    assert (await studio.owner.get("/api/approvals")).status_code == 403


async def test_the_database_itself_wants_four_eyes(world: World, db: Database) -> None:
    studio = await world.studio()
    await world.admin.post("/api/top-ups", json=topup(studio))
    with pytest.raises(IntegrityError, match="proposal_four_eyes"):
        async with db.transaction() as tx:
            await tx.execute(
                text("""UPDATE quotas.proposal SET state = 'approved', decided_by = proposed_by, decided_at = now(),
                    result_id = 'top_x'""")
            )


async def test_a_centre_s_contract_that_pays_above_the_price_waits_for_a_second_administrator(
    world: World, db: Database, clock: FixedClock
) -> None:
    other = await second(world)
    await publish_prices(db, now=clock.now())
    await world.admin.put(
        "/api/approvals/policy",
        json={"amount_above_micro_yuan": SMALL, "rate_above_micro_yuan": 3_000_000, "reason": "contracts by two"},
    )
    contract = "/api/centres/optics-valley/contract"
    unexplained = await world.admin.put(contract, json={"payout_ppm": 900_000})
    assert unexplained.status_code == 422 and "reason" in unexplained.text
    dearest = max(
        rate["micro_yuan"] for one in (await world.admin.get("/api/tariffs")).json() for rate in one["rates"]
        if rate["meter"] == "gpu_hour"
    )  # fmt: skip
    low = {"payout_ppm": 3_000_000 * 1_000_000 // dearest, "reason": "contract 6"}
    assert (await world.admin.put(contract, json=low)).status_code == 200
    clock.advance(timedelta(seconds=1))
    waits = await world.admin.put(contract, json={"payout_ppm": 1_000_000, "reason": "contract 7"})
    assert (waits.status_code, waits.json()["amount_micro_yuan"]) == (202, dearest), waits.text
    elsewhere = await world.admin.put("/api/centres/yangtze/contract", json={"payout_ppm": 1_000_000, "reason": "8"})
    assert elsewhere.status_code == 200, "it has no pool with a price"
    done = await other.post(f"/api/approvals/{waits.json()['id']}/approve")
    assert (done.status_code, done.json()["result_id"]) == (200, "optics-valley"), done.text
    signed = (await other.get("/api/centres/optics-valley/contracts")).json()
    assert [one["payout_ppm"] for one in signed] == [800_000, low["payout_ppm"], 1_000_000]
