"""Money over HTTP: what an administrator publishes, what a firm sees, and what is refused with a reason."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import text

from kit.clock import FixedClock
from kit.db import Database
from quotas import api
from quotas.vocabulary import FirmId
from tests.api.quotas.conftest import World
from tests.support.money import POOL, hold, publish_prices, tokens, used

TARIFF: dict[str, Any] = {
    "name": "autumn",
    "gpu": [{"pool": POOL, "micro_yuan_per_gpu_hour": 3_600_000, "qos_ppm": {"interruptible": 500_000}}],
    "tokens": [
        {
            "model": "smollm2-135m-instruct",
            "input_micro_yuan_per_million": 1_000_000,
            "cached_input_micro_yuan_per_million": 250_000,
            "output_micro_yuan_per_million": 2_000_000,
        }
    ],
}
PROGRAMME: dict[str, Any] = {
    "name": "算力券 2026",
    "funder": "市经信局",
    "share_ppm": 500_000,
    "pool_micro_yuan": 1_000_000_000,
    "cap_per_firm_year_micro_yuan": 100_000_000,
    "valid_until": "2027-12-31T16:00:00Z",
}


async def test_a_month_from_price_to_statement(world: World, db: Database, clock: FixedClock) -> None:
    studio = await world.studio()
    tariff = (await world.admin.post("/api/tariffs", json=TARIFF)).json()
    assert {(r["meter"], r["qos"], r["micro_yuan"]) for r in tariff["rates"] if r["meter"] == "gpu_hour"} == {
        ("gpu_hour", "reserved", 3_600_000),
        ("gpu_hour", "standard", 3_600_000),
        ("gpu_hour", "interruptible", 1_800_000),
    }
    programme = (await world.admin.post("/api/programmes", json=PROGRAMME)).json()
    grant = {"programme_id": programme["id"], "firm_id": studio.firm_id, "amount_micro_yuan": 50_000_000}
    voucher = (await world.admin.post("/api/vouchers", json=grant)).json()
    topup = {"firm_id": studio.firm_id, "amount_micro_yuan": 10_000_000, "evidence": "bank slip 7"}
    for _ in range(2):
        answer = await world.admin.post("/api/top-ups", json=topup, headers={"Idempotency-Key": "slip 7"})
        assert answer.status_code == 201, answer.text
    price = (await studio.owner.get("/api/prices/gpu", params={"pool": POOL})).json()
    assert (price["tariff_id"], price["micro_yuan_per_gpu_hour"]) == (tariff["id"], 3_600_000)

    firm = FirmId(studio.firm_id)
    async with db.transaction() as tx:
        held = await hold(tx, firm, now=clock.now(), seconds=400)
        usage = used(firm, start=clock.now(), seconds=300)
        await api.settle_compute(tx, hold_id=held.id, usage=usage, now=clock.now())
        await api.ingest_tokens(tx, [tokens(firm, 1, at=clock.now())], now=clock.now())

    month = (await studio.owner.get("/api/statements", params={"period": "2026-11"})).json()
    assert month["amount_micro_yuan"] == 300_105
    assert (month["voucher_micro_yuan"], month["cash_micro_yuan"]) == (150_000, 150_105)
    assert (month["opening_micro_yuan"], month["top_ups_micro_yuan"]) == (0, 10_000_000)
    assert month["closing_micro_yuan"] == 10_000_000 - 150_105
    assert month["lines"][0]["vouchers_micro_yuan"] == {voucher["id"]: 150_000}
    assert {line["tariff_id"] for line in month["lines"]} == {tariff["id"]}
    account = (await studio.owner.get("/api/account")).json()
    assert (account["balance_micro_yuan"], account["held_micro_yuan"]) == (10_000_000 - 150_105, 0)
    centre = await world.admin.get("/api/centre-statements", params={"centre": "optics-valley", "period": "2026-11"})
    assert (centre.json()["gpu_ms"], centre.json()["payable_micro_yuan"]) == (300_000, 240_000)
    check = (await world.admin.get("/api/ledger/check")).json()
    assert (check["ok"], check["findings"], check["open_holds"]) == (True, [], [])


async def test_an_open_hold_is_listed_by_name(world: World, db: Database, clock: FixedClock) -> None:
    studio = await world.studio()
    await world.admin.post("/api/tariffs", json=TARIFF)
    topup = {"firm_id": studio.firm_id, "amount_micro_yuan": 10_000_000, "evidence": "bank slip 7"}
    await world.admin.post("/api/top-ups", json=topup)
    async with db.transaction() as tx:
        await hold(tx, FirmId(studio.firm_id), now=clock.now(), seconds=100, subject="rep_7")
    [one] = (await world.admin.get("/api/ledger/holds")).json()
    assert (one["subject"], one["amount_micro_yuan"], one["kind"]) == ("rep_7", 100_000, "compute")


async def test_a_firm_neither_publishes_nor_grants_nor_books_nor_examines(world: World) -> None:
    studio = await world.studio()
    topup = {"firm_id": studio.firm_id, "amount_micro_yuan": 1, "evidence": "mine"}
    grant = {"programme_id": "prg_x", "firm_id": studio.firm_id, "amount_micro_yuan": 1}
    attempts = [
        ("POST", "/api/tariffs", TARIFF),
        ("POST", "/api/programmes", PROGRAMME),
        ("POST", "/api/vouchers", grant),
        ("POST", "/api/top-ups", topup),
        ("POST", "/api/withdrawals", topup),
        ("PUT", f"/api/firms/{studio.firm_id}/credit-line", {"amount_micro_yuan": 1, "reason": "please"}),
        ("POST", "/api/charges/chg_x/refund", {"reason": "please"}),
        ("PUT", "/api/centres/optics-valley/contract", {"payout_ppm": 0, "reason": "please"}),
        ("GET", "/api/ledger/check", None),
        ("GET", "/api/ledger/holds", None),
        ("GET", "/api/centre-statements?centre=optics-valley&period=2026-11", None),
    ]
    for method, path, body in attempts:
        answer = await studio.owner.request(method, path, json=body)
        assert answer.status_code == 403, f"{method} {path}: {answer.text}"
        assert answer.json()["code"] == "not_allowed"


async def test_another_firms_money_does_not_exist(world: World) -> None:
    mine, theirs = await world.studio(), await world.studio()
    for path in ("/api/vouchers", "/api/top-ups", "/api/account", "/api/statements?period=2026-11"):
        separator = "&" if "?" in path else "?"
        foreign = await mine.owner.get(f"{path}{separator}firm_id={theirs.firm_id}")
        absent = await mine.owner.get(f"{path}{separator}firm_id=firm_00000000000000000000000000")
        assert (foreign.status_code, absent.status_code) == (404, 404)
        assert foreign.json()["code"] == absent.json()["code"] == "firm_not_found"


@pytest.mark.parametrize("amount", [0, -5, 2**53 + 1, "1", 1.5, True, None])
async def test_an_amount_that_is_none_is_refused(world: World, amount: object) -> None:
    studio = await world.studio()
    body = {"firm_id": studio.firm_id, "amount_micro_yuan": amount, "evidence": "slip"}
    answer = await world.admin.post("/api/top-ups", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "invalid_input"
    assert (await studio.owner.get("/api/account")).json()["balance_micro_yuan"] == 0


async def test_the_same_key_for_another_payment_is_a_conflict(world: World) -> None:
    studio = await world.studio()
    key = {"Idempotency-Key": "slip 1"}
    body = {"firm_id": studio.firm_id, "amount_micro_yuan": 5, "evidence": "slip 1"}
    assert (await world.admin.post("/api/top-ups", json=body, headers=key)).status_code == 201
    answer = await world.admin.post("/api/top-ups", json=body | {"amount_micro_yuan": 6}, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (409, "key_reused")
    assert (await studio.owner.get("/api/account")).json()["balance_micro_yuan"] == 5


@pytest.mark.parametrize("state", ["closed", "rejected"])
async def test_a_firm_that_is_over_is_paid_back_and_gets_no_more_money(
    world: World, db: Database, clock: FixedClock, state: str
) -> None:
    studio = await world.studio()
    sum_of = {"firm_id": studio.firm_id, "amount_micro_yuan": 10, "evidence": "slip"}
    assert (await world.admin.post("/api/top-ups", json=sum_of)).status_code == 201
    async with db.transaction() as tx:
        values = {"state": state, "id": studio.firm_id}
        await tx.execute(text("UPDATE quotas.firm SET state = :state, state_reason = 'x' WHERE id = :id"), values)
    line = {"amount_micro_yuan": 10, "reason": "postpaid"}
    for answer in (
        await world.admin.post("/api/top-ups", json=sum_of),
        await world.admin.put(f"/api/firms/{studio.firm_id}/credit-line", json=line),
        await world.admin.post(
            "/api/vouchers", json={"firm_id": studio.firm_id, "programme_id": "prg_x", "amount_micro_yuan": 10}
        ),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "firm_closed"), answer.text
    assert (await world.admin.post("/api/withdrawals", json=sum_of)).status_code == 201


async def test_who_closes_a_firm_sees_its_money_and_what_it_owes_may_still_be_paid(
    world: World, db: Database, clock: FixedClock
) -> None:
    rich, poor = await world.studio(), await world.studio()
    line = {"amount_micro_yuan": 500, "reason": "postpaid"}
    assert (await world.admin.put(f"/api/firms/{poor.firm_id}/credit-line", json=line)).status_code == 200
    await publish_prices(db, now=clock.now())
    firm = FirmId(poor.firm_id)
    async with db.transaction() as tx:
        await api.ingest_tokens(tx, [tokens(firm, 1, at=clock.now())], now=clock.now())
    paid = {"firm_id": rich.firm_id, "amount_micro_yuan": 70, "evidence": "slip 1"}
    assert (await world.admin.post("/api/top-ups", json=paid)).status_code == 201
    seen: dict[str, int] = {}
    for studio in (rich, poor):
        close = {"step": "close", "reason": "dissolved"}
        answer = await world.admin.post(f"/api/firms/{studio.firm_id}/review", json=close)
        seen[studio.firm_id] = answer.json()["account"]["balance_micro_yuan"]
    assert seen == {rich.firm_id: 70, poor.firm_id: -105}
    owed = {"firm_id": poor.firm_id, "amount_micro_yuan": 106, "evidence": "slip 2"}
    more = await world.admin.post("/api/top-ups", json=owed)
    assert (more.status_code, more.json()["code"]) == (409, "firm_closed") and "owes ¥0.000105" in more.text
    assert (await world.admin.post("/api/top-ups", json=owed | {"amount_micro_yuan": 105})).status_code == 201
    again = await world.admin.post("/api/top-ups", json=owed | {"amount_micro_yuan": 1})
    assert again.json()["code"] == "firm_closed"


async def test_more_than_there_is_cannot_be_paid_back(world: World) -> None:
    studio = await world.studio()
    body = {"firm_id": studio.firm_id, "amount_micro_yuan": 5, "evidence": "slip"}
    answer = await world.admin.post("/api/withdrawals", json=body)
    assert (answer.status_code, answer.json()["code"]) == (402, "no_money")
    assert answer.json()["details"]["available_micro_yuan"] == 0


async def test_a_credit_line_lets_a_firm_pay_later_and_cannot_be_cut_below_its_use(
    world: World, db: Database, clock: FixedClock
) -> None:
    studio = await world.studio()
    await world.admin.post("/api/tariffs", json=TARIFF)
    path, reason = f"/api/firms/{studio.firm_id}/credit-line", "contract 9"
    line = await world.admin.put(path, json={"amount_micro_yuan": 500_000, "reason": reason})
    assert line.json()["available_micro_yuan"] == 500_000
    async with db.transaction() as tx:
        await hold(tx, FirmId(studio.firm_id), now=clock.now(), seconds=400)
    cut = await world.admin.put(path, json={"amount_micro_yuan": 399_999, "reason": reason})
    assert (cut.status_code, cut.json()["code"]) == (409, "credit_line_in_use")
    lower = await world.admin.put(path, json={"amount_micro_yuan": 400_000, "reason": reason})
    assert lower.json()["available_micro_yuan"] == 0
    assert (await world.admin.get("/api/ledger/check")).json()["findings"] == []


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": [], "tokens": []},
        {"unknown": 1},
        {"gpu": [{"pool": POOL, "micro_yuan_per_gpu_hour": -1}]},
        {"gpu": [{"pool": POOL, "micro_yuan_per_gpu_hour": 2**60}]},
        {"gpu": [{"pool": POOL, "micro_yuan_per_gpu_hour": 5}] * 2},
        {"gpu": [{"pool": POOL, "micro_yuan_per_gpu_hour": 5, "window": "valley"}]},
        {"windows": [{"name": "valley", "start_minute": 60, "end_minute": 60}]},
        {
            "windows": [
                {"name": "valley", "start_minute": 1380, "end_minute": 420},
                {"name": "dawn", "start_minute": 400, "end_minute": 500},
            ]
        },
    ],
    ids=["no price", "unknown field", "negative", "huge", "twice", "unknown window", "empty window", "overlap"],
)
async def test_a_price_book_that_cannot_be_right_is_refused(world: World, change: dict[str, Any]) -> None:
    answer = await world.admin.post("/api/tariffs", json=TARIFF | change)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input"), answer.text
    assert (await world.admin.get("/api/tariffs")).json() == []


async def test_prices_of_time_that_has_passed_never_change(world: World, clock: FixedClock) -> None:
    first = await world.admin.post("/api/tariffs", json=TARIFF | {"valid_from": "2026-10-01T00:00:00Z"})
    assert first.status_code == 201, "the first book may start in the past"
    past = await world.admin.post("/api/tariffs", json=TARIFF | {"valid_from": "2026-10-15T00:00:00Z"})
    assert (past.status_code, past.json()["code"]) == (409, "tariff_in_the_past")
    later = await world.admin.post("/api/tariffs", json=TARIFF | {"valid_from": "2026-12-01T00:00:00Z"})
    between = await world.admin.post("/api/tariffs", json=TARIFF | {"valid_from": "2026-11-15T00:00:00Z"})
    taken = await world.admin.post("/api/tariffs", json=TARIFF | {"valid_from": "2026-12-01T00:00:00Z"})
    assert (taken.status_code, taken.json()["code"]) == (409, "tariff_starts_taken")
    book = (await world.admin.get("/api/tariffs")).json()
    assert [one["id"] for one in book] == [first.json()["id"], between.json()["id"], later.json()["id"]]
    for one, following in pairwise(book):
        assert one["valid_until"] == following["valid_from"], "no gap and no overlap"
    assert book[-1]["valid_until"] is None


async def test_what_has_no_price_is_refused_by_name(world: World) -> None:
    answer = await world.admin.get("/api/prices/gpu", params={"pool": POOL})
    assert (answer.status_code, answer.json()["code"]) == (409, "no_tariff")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"valid_until": "2026-11-01T00:00:00Z"}, "invalid_input"),
        ({"valid_from": "2027-01-01T00:00:00Z", "valid_until": "2027-01-01T00:00:00Z"}, "invalid_input"),
        ({"share_ppm": 1_000_001}, "invalid_input"),
        ({"pool_micro_yuan": 0}, "invalid_input"),
        ({"covers": ["air"]}, "invalid_input"),
    ],
    ids=["over already", "empty window", "more than all", "empty pool", "unknown usage"],
)
async def test_a_programme_that_cannot_be_right_is_refused(world: World, change: dict[str, Any], code: str) -> None:
    answer = await world.admin.post("/api/programmes", json=PROGRAMME | change)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert (await world.admin.get("/api/programmes")).json() == []


async def test_a_grant_stops_at_the_firms_cap_and_at_the_pool(world: World) -> None:
    studio, other = await world.studio(), await world.studio()
    programme = (await world.admin.post("/api/programmes", json=PROGRAMME | {"pool_micro_yuan": 150_000_000})).json()
    assert (await world.admin.post("/api/programmes", json=PROGRAMME)).json()["code"] == "name_taken"
    twice = await asyncio.gather(
        *(world.admin.post("/api/programmes", json=PROGRAMME | {"name": "another"}) for _ in range(2))
    )
    assert sorted(answer.status_code for answer in twice) == [201, 409]
    grant = {"programme_id": programme["id"], "firm_id": studio.firm_id, "amount_micro_yuan": 80_000_000}
    first = await world.admin.post("/api/vouchers", json=grant, headers={"Idempotency-Key": "g1"})
    again = await world.admin.post("/api/vouchers", json=grant, headers={"Idempotency-Key": "g1"})
    assert first.json() == again.json()
    capped = await world.admin.post("/api/vouchers", json=grant)
    assert (capped.status_code, capped.json()["code"]) == (409, "firm_cap_reached")
    assert capped.json()["details"]["room_micro_yuan"] == 20_000_000
    empty = await world.admin.post("/api/vouchers", json=grant | {"firm_id": other.firm_id})
    assert (empty.status_code, empty.json()["code"]) == (409, "pool_empty")
    missing = await world.admin.post("/api/vouchers", json=grant | {"programme_id": "prg_none"})
    assert (missing.status_code, missing.json()["code"]) == (404, "programme_not_found")
    left, _ = (await world.admin.get("/api/programmes")).json()
    assert left["left_micro_yuan"] == 70_000_000
    assert len((await studio.owner.get("/api/vouchers")).json()) == 1
    assert (await world.admin.get("/api/ledger/check")).json()["ok"] is True
