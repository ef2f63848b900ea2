"""Contracts and drafts of price books over HTTP: four eyes, whose they are, and a preview that is exact."""

import random
from datetime import timedelta
from typing import Any

import pytest

from kit.clock import FixedClock
from kit.db import Database
from kit.units import GpuMs, Tokens, div_half_even
from quotas import api
from quotas.statements import bounds
from quotas.vocabulary import FirmId, KeyId, MeteredUsage, ModelName, UsageKind
from tests.api.quotas.conftest import World
from tests.support.money import POOL, PROJECT, hold, tokens, used

BOOK: dict[str, Any] = {
    "name": "autumn",
    "gpu": [{"pool": POOL, "micro_yuan_per_gpu_hour": 3_600_000}],
    "tokens": [
        {
            "model": "smollm2-135m-instruct",
            "input_micro_yuan_per_million": 1_000_001,
            "output_micro_yuan_per_million": 2_000_003,
        }
    ],
    "images": [{"model": "painter", "micro_yuan_per_image": 40_000}],
}
DRAFT: dict[str, Any] = {
    "name": "draft",
    "gpu": [
        {"pool": POOL, "micro_yuan_per_gpu_hour": 3_000_001},
        {"pool": POOL, "micro_yuan_per_gpu_hour": 1_111_111, "window": "valley"},
    ],
    "tokens": [
        {
            "model": "*",
            "input_micro_yuan_per_million": 777_777,
            "cached_input_micro_yuan_per_million": 99_999,
            "output_micro_yuan_per_million": 3_333_333,
        },
        {
            "model": "*",
            "input_micro_yuan_per_million": 7_777,
            "cached_input_micro_yuan_per_million": 999,
            "output_micro_yuan_per_million": 33_333,
            "window": "valley",
        },
    ],
    "windows": [{"name": "valley", "start_minute": 1380, "end_minute": 420}],
}


async def _second(world: World) -> Any:
    return await world.member(world.admin, "second@heliu.example", "platform_admin")


def discount(firm_id: str, **changes: Any) -> dict[str, Any]:
    return {"firm_id": firm_id, "kind": "tokens", "off_ppm": 200_000, "contract": "合同 12", **changes}


async def _granted(world: World, second: Any, body: dict[str, Any]) -> dict[str, Any]:
    waiting = await world.admin.post("/api/discounts", json=body)
    assert waiting.status_code == 202, waiting.text
    done = await second.post(f"/api/approvals/{waiting.json()['id']}/approve")
    assert done.status_code == 200, done.text
    found = await world.admin.get("/api/discounts", params={"firm_id": body["firm_id"]})
    return next(one for one in found.json() if one["id"] == done.json()["result_id"])


async def test_a_discount_needs_two_administrators_is_seen_by_its_firm_only_and_ends_when_told(
    world: World, clock: FixedClock
) -> None:
    studio, other, second = await world.studio(), await world.studio(), await _second(world)
    made = await _granted(world, second, discount(studio.firm_id))
    assert (made["off_ppm"], made["resource"], made["valid_from"]) == (200_000, "*", "2026-11-02T02:00:00Z")
    assert [one["id"] for one in (await studio.owner.get("/api/discounts")).json()] == [made["id"]]
    assert (await other.owner.get("/api/discounts")).json() == []
    assert (await other.owner.get(f"/api/discounts?firm_id={studio.firm_id}")).status_code == 404
    assert (await studio.owner.post("/api/discounts", json=discount(studio.firm_id))).status_code == 403
    assert (await studio.owner.post(f"/api/discounts/{made['id']}/end")).status_code == 403
    clash = await world.admin.post("/api/discounts", json=discount(studio.firm_id))
    refused = await second.post(f"/api/approvals/{clash.json()['id']}/approve")
    assert (refused.status_code, refused.json()["code"]) == (409, "discount_overlaps")
    clock.advance(timedelta(hours=1))
    ended = await world.admin.post(f"/api/discounts/{made['id']}/end")
    assert ended.json()["valid_until"] == "2026-11-02T03:00:00Z"
    assert (await world.admin.post(f"/api/discounts/{made['id']}/end")).json()["code"] == "discount_over"
    assert (await world.admin.post("/api/discounts/dsc_none/end")).json()["code"] == "discount_not_found"
    log = (await world.admin.get("/api/audit", params={"firm_id": studio.firm_id})).json()
    actions = [entry["action"] for entry in (log if isinstance(log, list) else log["entries"])]
    assert {"discount.grant", "discount.end"} <= set(actions)


async def test_a_discount_that_has_not_begun_is_withdrawn(world: World) -> None:
    studio, second = await world.studio(), await _second(world)
    later = discount(studio.firm_id, valid_from="2026-12-01T00:00:00+08:00", valid_until="2027-01-01T00:00:00+08:00")
    made = await _granted(world, second, later)
    assert (await world.admin.post(f"/api/discounts/{made['id']}/end")).status_code == 200
    assert (await studio.owner.get("/api/discounts")).json() == []


@pytest.mark.parametrize(
    "wrong",
    [{"off_ppm": 0}, {"off_ppm": 1_000_001}, {"kind": "air"}, {"contract": ""}, {"resource": ""}, {"more": 1}],
    ids=str,
)
async def test_a_discount_that_cannot_be_is_refused(world: World, wrong: dict[str, Any]) -> None:
    studio = await world.studio()
    answer = await world.admin.post("/api/discounts", json=discount(studio.firm_id, **wrong))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gpu": [{"pool": POOL, "micro_yuan_per_gpu_hour": 1, "window": "valley"}]}, "none for the rest of the day"),
        ({"images": BOOK["images"] * 2}, "given twice"),
        ({"audio": [{"model": "m", "micro_yuan_per_second": -1}]}, "greater than or equal to 0"),
        ({"storage": [{"resource": "files", "micro_yuan_per_gb_month": 2**41}]}, "less than or equal to"),
        ({"windows": [{"name": "valley", "start_minute": 60, "end_minute": 60}]}, "empty"),
    ],
)
async def test_a_price_book_with_a_gap_in_the_day_or_a_price_twice_is_refused(
    world: World, wrong: dict[str, Any], said: str
) -> None:
    answer = await world.admin.post("/api/tariffs", json=DRAFT | {"gpu": [], "tokens": []} | DRAFT | wrong)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]


async def test_a_price_book_that_would_open_a_gap_is_refused_until_it_says_so(world: World) -> None:
    assert (await world.admin.post("/api/tariffs", json=BOOK)).status_code == 201
    fewer = {**BOOK, "images": [], "valid_from": "2026-12-01T00:00:00+08:00"}
    gap = await world.admin.post("/api/tariffs", json=fewer)
    assert (gap.status_code, gap.json()["code"]) == (409, "tariff_gap")
    assert gap.json()["details"]["lost"] == ["image painter"]
    assert (await world.admin.post("/api/tariffs", json=fewer | {"ends_prices": True})).status_code == 201
    more = {**BOOK, "valid_from": "2026-11-20T00:00:00+08:00"}
    gap = await world.admin.post("/api/tariffs", json=more)
    assert (gap.status_code, gap.json()["details"]["lost"]) == (409, ["image painter"]), "not in the next one either"
    assert (await world.admin.post("/api/tariffs", json=more | {"ends_prices": True})).status_code == 201


@pytest.mark.parametrize("covers", [["tokens"], ["compute", "tokens", "images", "audio", "storage"]])
async def test_a_programme_says_which_kinds_it_pays_for(world: World, covers: list[str]) -> None:
    body = {
        "name": "券",
        "funder": "bureau",
        "share_ppm": 500_000,
        "pool_micro_yuan": 1000,
        "cap_per_firm_year_micro_yuan": 1000,
        "valid_until": "2027-12-31T16:00:00Z",
        "covers": covers,
    }
    made = await world.admin.post("/api/programmes", json=body)
    assert (made.status_code, made.json()["covers"]) == (201, sorted(covers))
    for wrong in ({"covers": []}, {"covers": ["air"]}, {"valid_from": "2028-01-01T00:00:00Z"}):
        answer = await world.admin.post("/api/programmes", json=body | {"name": "another"} | wrong)
        assert answer.status_code == 422, answer.text


async def test_a_preview_is_what_pricing_every_usage_row_again_gives(
    world: World, db: Database, clock: FixedClock
) -> None:
    studio, second = await world.studio(), await _second(world)
    assert (await world.admin.post("/api/tariffs", json=BOOK)).status_code == 201
    topup = {"firm_id": studio.firm_id, "amount_micro_yuan": 50_000_000, "evidence": "slip"}
    assert (await world.admin.post("/api/top-ups", json=topup)).status_code == 201
    half = clock.now() + timedelta(days=10)
    await _granted(world, second, discount(studio.firm_id, valid_until=half.isoformat()))
    painter = ModelName("painter")
    firm, made, month_end = FirmId(studio.firm_id), random.Random(3), bounds("2026-11")[1]
    records, rows = [], []
    for number in range(80):
        at = clock.now() + made.random() * (month_end - clock.now())
        counts: dict[str, Any] = {"input": Tokens(made.randint(30, 999)), "output": Tokens(made.randint(0, 99))}
        key = KeyId(f"key_{made.randint(1, 2)}")
        records.append(tokens(firm, number, at=at, key_id=key, **counts))
        rows.append((key, at, counts["input"], 20, counts["output"]))
    clock.advance(month_end - clock.now() + timedelta(minutes=5))
    midnight = month_end - timedelta(hours=1, minutes=30)
    async with db.transaction() as tx:
        await api.ingest_usage(tx, records, now=clock.now())
        image = MeteredUsage("i", "gw", UsageKind.IMAGES, firm, PROJECT, painter, painter, 5, clock.now())
        await api.ingest_usage(tx, [image], now=clock.now())
        held = await hold(tx, firm, now=midnight, seconds=3600)
        usage = used(firm, start=midnight, seconds=3600, gpu_ms=GpuMs(3_600_000))
        await api.settle_compute(tx, hold_id=held.id, usage=usage, now=clock.now())

    admin, owner = await world.sign_in("admin@heliu.example"), await world.sign_in(studio.email)
    answer = await admin.post("/api/tariffs/preview", json={"tariff": DRAFT})
    assert answer.status_code == 200, answer.text
    seen = {line["kind"]: (line["now_micro_yuan"], line["draft_micro_yuan"]) for line in answer.json()["lines"]}
    lines: dict[tuple[Any, ...], list[int]] = {}
    for key, at, given, cached, output in rows:
        local = at.astimezone(month_end.tzinfo)
        valley, contract = not 7 <= local.hour < 23, at < half
        rates = (7_777, 999, 33_333) if valley else (777_777, 99_999, 3_333_333)
        net = [div_half_even(rate * 800_000, 1_000_000) if contract else rate for rate in rates]
        exact = (given - cached) * net[0] + cached * net[1] + output * net[2]
        lines.setdefault((key, valley, contract), []).append(exact)
    expected = sum(div_half_even(sum(exact), 1_000_000) for exact in lines.values())
    assert len(lines) == 8
    assert seen["tokens"][1] == expected
    half_hour = 1_800_000 * (3_000_001 + 1_111_111)
    assert seen["compute"] == (3_600_000, div_half_even(half_hour, 3_600_000))
    statement = (await owner.get("/api/statements", params={"period": "2026-11"})).json()
    charged = sum(line["amount_micro_yuan"] for line in statement["lines"] if line["kind"] == "tokens")
    assert seen["tokens"][0] == charged
    assert (answer.json()["period"], answer.json()["unpriced"]) == ("2026-11", []), "the image is of December"
    december = {"tariff": DRAFT, "period": "2026-12", "firm_id": studio.firm_id}
    later = (await admin.post("/api/tariffs/preview", json=december)).json()
    assert later["unpriced"] == ["images of painter"]
    assert [(line["kind"], line["now_micro_yuan"], line["draft_micro_yuan"]) for line in later["lines"]] == [
        ("images", 200_000, 0)
    ]
    same = (await admin.post("/api/tariffs/preview", json={"tariff": BOOK})).json()
    assert same["draft_micro_yuan"] == same["now_micro_yuan"], "the book in force as a draft changes nothing"
    assert len((await admin.get("/api/tariffs")).json()) == 1


async def test_a_preview_is_for_administrators_of_a_month_that_is_one(world: World) -> None:
    studio = await world.studio()
    assert (await studio.owner.post("/api/tariffs/preview", json={"tariff": DRAFT})).status_code == 403
    answer = await world.admin.post("/api/tariffs/preview", json={"tariff": DRAFT, "period": "2026-13"})
    assert (answer.status_code, "2026-11" in answer.json()["detail"]) == (422, True)
    answer = await world.admin.post("/api/tariffs/preview", json={"tariff": DRAFT, "firm_id": "firm_none"})
    assert answer.status_code == 404
