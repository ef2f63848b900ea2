"""Usage from elsewhere and documents of applications, over HTTP: all or nothing, once, and seen by the right people."""

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError

from kit.clock import FixedClock
from kit.db import Database
from kit.settings import Settings
from kit.web import create_app
from quotas import api
from quotas.documents import BYTES_MAX
from quotas.main import routers
from quotas.pricing import Meter, RateKey
from quotas.vocabulary import FirmId
from quotas.web import money_routes, usage_routes
from tests.api.quotas.conftest import Studio, World
from tests.support.money import POOL, RATES, grant, publish_prices, yuan

PDF = b"%PDF-1.7\n" + b"licence " * 100
HEADER = "JobID|JobName|Account|Partition|State|Start|End|AllocTRES"
MODEL = "smollm2-135m-instruct"


@pytest.fixture
def app(db: Database, clock: FixedClock, tmp_path: Path) -> FastAPI:
    settings = Settings(blob_url=f"file://{tmp_path / 'blobs'}")
    unlimited = ("/api/usage-imports", "/api/documents")
    app = create_app("t", "0", routers(db, clock, settings), body_limit_bytes=1 << 20, unlimited_prefixes=unlimited)
    app.state.db, app.state.clock = db, clock
    return app


async def _paid(world: World, studio: Studio, amount: int = 50_000_000) -> str:
    topup = {"firm_id": studio.firm_id, "amount_micro_yuan": amount, "evidence": "slip"}
    assert (await world.admin.post("/api/top-ups", json=topup)).status_code == 201
    return (await studio.owner.get("/api/projects")).json()[0]["id"]


UNITS = {"model": "dear", "input": None, "output": None}
DEAR = RATES | {RateKey(Meter.IMAGE, "dear"): 2**40, RateKey(Meter.AUDIO_SECOND, "dear"): 2**53}


def event(studio: Studio, project: str, number: int = 1, **changes: Any) -> dict[str, Any]:
    data = {"firm_id": studio.firm_id, "project_id": project, "model": MODEL, "input": 100, "output": 10}
    return {
        "specversion": "1.0",
        "id": f"e{number}",
        "source": "/renderers/7",
        "type": "heliu.usage.tokens.v1",
        "time": "2026-11-02T09:00:00+08:00",
        **changes,
        "data": data | changes.get("data", {}),
    }


async def test_a_batch_of_events_is_charged_once_by_source_and_id(
    world: World, db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    project = await _paid(world, studio)
    batch = [event(studio, project, number) for number in (1, 2, 1)]
    sent = {"content-type": "application/cloudevents-batch+json"}
    first = await world.admin.post(
        "/api/usage-events", content=httpx.Request("POST", "/", json=batch).content, headers=sent
    )
    assert (first.status_code, first.json()) == (200, {"accepted": 2, "duplicates": 1}), first.text
    again = await world.admin.post("/api/usage-events", json=[event(studio, project, 2), event(studio, project, 3)])
    assert again.json() == {"accepted": 1, "duplicates": 1}
    month = (await studio.owner.get("/api/statements", params={"period": "2026-11"})).json()
    assert [(line["kind"], line["amount_micro_yuan"]) for line in month["lines"]] == [("tokens", 360)]
    assert (await studio.owner.post("/api/usage-events", json=batch)).status_code == 403
    own, foreign = [(await world.key(whose))["key"]["id"] for whose in (studio, await world.studio())]
    named = await world.admin.post("/api/usage-events", json=[event(studio, project, 4, data={"key_id": own})])
    assert named.json() == {"accepted": 1, "duplicates": 0}, named.text
    another = await world.admin.post("/api/usage-events", json=[event(studio, project, 5, data={"key_id": foreign})])
    assert (another.status_code, f"has no key {foreign}" in another.json()["detail"]) == (422, True), another.text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"type": "heliu.usage.air.v1"}, "type"),
        ({"type": "heliu.usage.images.v1"}, "counts images, and nothing else"),
        ({"data": {"images": 1}}, "counts input and output, and nothing else"),
        ({"data": {"cached_input": 101}}, "cached within input"),
        ({"data": {"input": -1}}, "input"),
        ({"data": {"input": 1.5}}, "input"),
        ({"data": {"project_id": "prj_none"}}, "has no project prj_none"),
        ({"data": {"firm_id": "firm_none"}}, "event 'e2': firm firm_none has no project"),
        ({"data": {"key_id": "key_none"}}, "has no key key_none"),
        ({"time": "2026-11-02T09:00:00"}, "time"),
        ({"time": "2026-11-03T09:00:00+08:00"}, "still to come"),
        ({"id": ""}, "id"),
        ({"source": "heliu/storage"}, "are the platform's own"),
        ({"data": {"model": "smolm2"}}, "usage 'e2' of '/renderers/7': no tariff prices tokens of smolm2 at"),
        ({"time": "2026-10-01T00:00:00Z"}, "usage 'e2' of '/renderers/7': no tariff prices tokens of"),
        ({"type": "heliu.usage.images.v1", "data": UNITS | {"images": 2**53}}, "usage 'e2' of '/renderers/7'"),
        ({"type": "heliu.usage.audio.v1", "data": UNITS | {"audio_ms": 2**53}}, "usage 'e2' of '/renderers/7'"),
    ],
    ids=str,
)
async def test_one_bad_event_refuses_the_whole_batch_and_is_named(
    world: World, db: Database, clock: FixedClock, wrong: dict[str, Any], said: str
) -> None:
    async with db.transaction() as tx:
        await api.publish_tariff(
            tx, name="dear", valid_from=None, rates=DEAR, by="test", now=clock.now() - timedelta(days=2)
        )
    studio = await world.studio()
    project = await _paid(world, studio)
    batch = [event(studio, project, 1), event(studio, project, 2, **wrong)]
    answer = await world.admin.post("/api/usage-events", json=batch)
    assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.text
    assert (await studio.owner.get("/api/account")).json()["balance_micro_yuan"] == 50_000_000


async def test_a_machine_reports_usage_with_a_key_of_the_platform_and_a_firm_can_have_no_such_key(
    world: World, db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    project = await _paid(world, studio)
    spec = {"name": "render farm", "scopes": ["usage:ingest"]}
    refused = await studio.owner.post("/api/keys", json=spec)
    assert (refused.status_code, refused.json()["code"]) == (422, "scope_of_platform")
    issued = await world.admin.post("/api/keys", json=spec)
    assert issued.status_code == 201, issued.text
    machine = {"Authorization": f"Bearer {issued.json()['token']}"}
    taken = await world.admin.post("/api/usage-events", json=[event(studio, project)], headers=machine)
    assert (taken.status_code, taken.json()) == (200, {"accepted": 1, "duplicates": 0}), taken.text
    beyond = await world.admin.post("/api/top-ups", json={}, headers=machine)
    assert beyond.status_code in (403, 422)
    seen = await world.admin.get("/api/tariffs", headers=machine)
    assert (seen.status_code, seen.json()["code"]) == (403, "not_allowed")


def job(
    number: int, *, hour: int = 1, gpus: int = 2, account: str = "studio", end: str | None = None, **at: str
) -> str:
    end = end or f"2026-11-01T{hour:02}:10:00"
    start = at.get("start", f"2026-11-01T{hour:02}:00:00")
    return f"{number}|render|{account}|slots|COMPLETED|{start}|{end}|cpu=4,gres/gpu={gpus}"


async def _import(world: World, studio: Studio, *lines: str, **params: Any) -> httpx.Response:
    query = {"source": "wuhan-1", "account": f"studio={studio.firm_id}", "partition": f"slots={POOL}", **params}
    return await world.admin.post("/api/usage-imports", params=query, content="\n".join((HEADER, *lines)) + "\n")


async def test_jobs_of_a_slurm_cluster_are_charged_once_at_the_prices_of_their_time(
    world: World, db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    await _paid(world, studio)
    async with db.transaction() as tx:
        firm = FirmId(studio.firm_id)
        voucher = await grant(tx, firm, yuan(1), now=datetime(2026, 10, 31, tzinfo=UTC))
    lines = [job(1), job(2, hour=23, end="2026-11-02T00:10:00"), "2.batch|x|studio|slots|COMPLETED|a|b|"]
    dry = await _import(world, studio, *lines, dry_run=True)
    assert (dry.json()["imported"], dry.json()["amount_micro_yuan"]) == (2, 2 * 600_000 + 2 * 4_200_000), dry.text
    assert (await studio.owner.get("/api/account")).json()["balance_micro_yuan"] == 50_000_000
    done = (await _import(world, studio, *lines)).json()
    assert (done["imported"], done["duplicates"], done["skipped"]) == (2, 0, {"step": 1})
    assert done["amount_micro_yuan"] == 9_600_000 == done["voucher_micro_yuan"] + done["cash_micro_yuan"]
    assert (done["voucher_micro_yuan"], done["loss_micro_yuan"]) == (yuan(1), 0)
    again = (await _import(world, studio, job(1), job(3))).json()
    assert (again["imported"], again["duplicates"]) == (1, 1)
    month = (await studio.owner.get("/api/statements", params={"period": "2026-11"})).json()
    assert [line["subject"] for line in month["lines"]] == [f"slurm wuhan-1 {number}" for number in (1, 2, 3)]
    assert voucher in month["lines"][1]["vouchers_micro_yuan"], month["lines"]
    changed = await _import(world, studio, job(4), job(1, gpus=3))
    assert (changed.status_code, changed.json()["code"]) == (409, "usage_differs")
    async with db.transaction() as tx:
        assert await api.check_ledger(tx) == []
    other = await _import(world, studio, job(1), source="wuhan-2")
    assert other.json()["imported"] == 1, "another cluster counts its own jobs"


@pytest.mark.parametrize(
    ("module", "name"),
    [(usage_routes, "ingest_usage"), (usage_routes, "import_jobs"), (money_routes, "do_or_propose")],
    ids=lambda one: str(one)[-20:],
)
async def test_a_deadlock_is_tried_again_and_reaches_no_caller(
    world: World, db: Database, clock: FixedClock, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    really, refused = getattr(module, name), list[str]()

    async def deadlock_once(*args: Any, **more: Any) -> Any:
        done = await really(*args, **more)
        if not refused:
            refused.append(name)
            raise OperationalError("COMMIT", None, psycopg.errors.DeadlockDetected())
        return done

    monkeypatch.setattr(module, name, deadlock_once)
    project = await _paid(world, studio)
    events = await world.admin.post("/api/usage-events", json=[event(studio, project)])
    assert (events.status_code, events.json()) == (200, {"accepted": 1, "duplicates": 0}), events.text
    jobs = await _import(world, studio, job(1))
    assert (jobs.status_code, jobs.json()["imported"]) == (200, 1), jobs.text
    assert refused == [name]
    assert (await studio.owner.get("/api/account")).json()["balance_micro_yuan"] == 50_000_000 - 120 - 1_200_000


async def test_a_file_of_ten_megabytes_with_one_bad_line_is_refused_by_its_number_and_nothing_is_imported(
    world: World, db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    await _paid(world, studio)
    lines = [job(number, hour=number % 24) for number in range(1, 115_000)]
    lines[98_765] = job(98_766).replace("|2026-11-01T01:10:00|", "|yesterday|")
    assert len("\n".join(lines)) > 10_000_000
    answer = await _import(world, studio, *lines)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_line")
    assert answer.json()["details"]["lines"] == [
        {"line": 98_767, "reason": "End 'yesterday' is no time; expected 2026-11-01T08:00:00"}
    ]
    month = (await studio.owner.get("/api/statements", params={"period": "2026-11"})).json()
    assert month["lines"] == []


@pytest.mark.parametrize(
    ("lines", "params", "said"),
    [
        ([job(1), job(2, account="other")], {}, "line 3: account 'other' is no firm's"),
        ([job(1), job(1, hour=2)], {}, "line 3: job 1 is in the file before"),
        ([job(1, end="2026-11-03T00:00:00")], {}, "still to come"),
        ([job(1)], {"timezone": "Mars/Base"}, "no time zone"),
        ([job(1)], {"partition": "slots=nowhere"}, "is no pool"),
        ([job(1)], {"account": "studio=firm_platform"}, "charges itself nothing"),
        ([job(1)], {"account": "studio"}, "account"),
        (["\xff|bad"], {}, "has 2 fields"),
        ([job(1), job(2, gpus=100_000, start="2020-11-01T01:00:00")], {}, "line 3: job 2 took"),
    ],
    ids=lambda one: str(one)[:40],
)
async def test_a_file_that_cannot_be_right_is_refused_whole(
    world: World, db: Database, clock: FixedClock, lines: list[str], params: dict[str, str], said: str
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    answer = await _import(world, studio, *lines, **params)
    assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.text
    assert (
        await studio.owner.post("/api/usage-imports", params={"source": "a", "account": "a=b", "partition": "c=d"})
    ).status_code == 403


async def test_an_applicant_sends_documents_and_only_it_and_administrators_read_them(world: World) -> None:
    applied, other = await world.applied(), await world.studio()
    owner = await world.sign_in("owner1@studio1.example")
    sent = await owner.post(
        "/api/documents", params={"name": "../营业执照.pdf", "kind": "business_licence"}, content=PDF
    )
    assert sent.status_code == 201, sent.text
    made = sent.json()
    assert (made["name"], made["media_type"]) == ("营业执照.pdf", "application/pdf")
    assert (made["sha256"], made["size_bytes"]) == (hashlib.sha256(PDF).hexdigest(), len(PDF))
    again = await owner.post("/api/documents", params={"name": "copy.pdf"}, content=PDF)
    assert again.json()["id"] == made["id"], "the same file is the same document"
    listed = (await world.admin.get("/api/documents", params={"firm_id": applied["id"]})).json()
    assert [one["id"] for one in listed] == [made["id"]]
    for reader in (owner, world.admin):
        got = await reader.get(f"/api/documents/{made['id']}/content")
        assert (got.content, got.headers["content-disposition"][:11]) == (PDF, "attachment;")
    auditor = await world.member(world.admin, "auditor@heliu.example", "auditor")
    for stranger, status in ((other.owner, 404), (auditor, 403), (world.anonymous, 401)):
        assert (await stranger.get(f"/api/documents/{made['id']}/content")).status_code == status
    foreign = await other.owner.post("/api/documents", params={"name": "a.pdf", "firm_id": applied["id"]}, content=PDF)
    assert foreign.status_code == 404


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "document_empty"),
        (b"MZ\x90\x00 a program called licence.pdf", 422, "document_type"),
        (b"%PDF-" + b"x" * BYTES_MAX, 413, "document_too_large"),
    ],
    ids=["empty", "a program", "too large"],
)
async def test_what_is_no_document_leaves_nothing_behind(
    world: World, tmp_path: Path, content: bytes, status: int, code: str
) -> None:
    studio = await world.studio()
    answer = await studio.owner.post("/api/documents", params={"name": "licence.pdf"}, content=content)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (await studio.owner.get("/api/documents")).json() == []
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []
