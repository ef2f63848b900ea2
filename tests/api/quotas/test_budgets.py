"""Budgets over HTTP: they alert once a threshold, stop what they shall stop, and their messages arrive signed."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import SYSTEM
from kit.clock import FixedClock
from kit.db import Database
from kit.errors import NoMoney
from kit.units import MicroYuan
from quotas import api
from quotas.alert_channels import add_channel, alerts_of
from quotas.alert_delivery import AlertSettings, Sender, deliver, webhook_policy
from quotas.alerts import RETRIES, signature, signing_secret
from quotas.budgets import watch_budgets
from quotas.cash import record_topup
from quotas.usage import ingest_tokens
from quotas.vocabulary import AllowanceLease, ChannelKind, FirmId, KeyId, Payer, ProjectId
from tests.api.quotas.conftest import Studio, World
from tests.support.money import publish_prices, tokens, yuan

COST = 105
"""Micro-yuan of one request in these tests' price book."""
SENDER = Sender(AlertSettings(webhook_private_ok=True), b"master")


class Hook:
    """An HTTP server that answers what it is told to, and keeps what came."""

    def __init__(self) -> None:
        self.status = 200
        self.came: list[tuple[dict[str, str], bytes]] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}
        self.came.append((headers, await reader.readexactly(int(headers["content-length"]))))
        writer.write(f"HTTP/1.1 {self.status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@pytest.fixture
async def hook() -> AsyncIterator[tuple[Hook, str]]:
    one = Hook()
    server = await asyncio.start_server(one.answer, "127.0.0.1", 0)
    async with server:
        yield one, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/alerts"


async def spend(db: Database, studio: Studio, key: dict[str, str], numbers: range, clock: FixedClock) -> None:
    firm, key_id = FirmId(studio.firm_id), KeyId(key["id"])
    used = [tokens(firm, number, at=clock.now(), key_id=key_id) for number in numbers]
    async with db.transaction() as tx:
        await record_topup(
            tx, key=f"slip {numbers}", firm_id=firm, amount=yuan(1), evidence="slip", by="test", now=clock.now()
        )
        await ingest_tokens(tx, used, now=clock.now())


async def channel(db: Database, studio: Studio, url: str, clock: FixedClock) -> str:
    """A webhook on this machine, which no route would take."""
    async with db.transaction() as tx:
        row = await add_channel(
            tx, FirmId(studio.firm_id), ChannelKind.WEBHOOK, url, policy=webhook_policy(SENDER.settings), by=SYSTEM,
            now=clock.now(),
        )  # fmt: skip
    return row["id"]


async def test_a_budget_alerts_once_a_threshold_and_its_message_is_signed(
    world: World, db: Database, clock: FixedClock, hook: tuple[Hook, str]
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    key = (await world.key(studio))["key"]
    body = {"amount_micro_yuan": 10 * COST, "thresholds": [50, 100]}
    made = (await studio.owner.post("/api/budgets", json=body)).json()
    assert (await studio.owner.post("/api/budgets", json=body)).json()["code"] == "budget_exists"
    channel_id = await channel(db, studio, hook[1], clock)
    await spend(db, studio, key, range(4), clock)
    assert await watch_budgets(db, clock.now()) == 0
    await spend(db, studio, key, range(4, 5), clock)
    assert await watch_budgets(db, clock.now()) == 1
    assert await watch_budgets(db, clock.now()) == 0
    assert await deliver(db, SENDER, clock.now()) == 1
    assert await deliver(db, SENDER, clock.now() + timedelta(days=1)) == 0
    headers, content = hook[0].came[0]
    stamp = int(headers["webhook-timestamp"])
    secret = signing_secret(b"master", channel_id)
    assert headers["webhook-signature"] == signature(secret, headers["webhook-id"], stamp, content)
    told = json.loads(content)["data"]
    assert (told["budget_id"], told["threshold"], told["spent_micro_yuan"]) == (made["id"], 50, 5 * COST)
    row = (await studio.owner.get("/api/alerts")).json()[0]
    assert (row["state"], row["tries"], row["delivery_id"]) == ("delivered", 1, headers["webhook-id"])
    assert (await studio.owner.get("/api/budgets")).json()[0]["spent_micro_yuan"] == 5 * COST


async def test_what_was_used_in_the_last_seconds_of_a_month_still_alerts_for_that_month(
    world: World, db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    key = (await world.key(studio))["key"]
    await studio.owner.post("/api/budgets", json={"amount_micro_yuan": COST, "thresholds": [100]})
    clock.advance(datetime(2026, 11, 30, 15, 59, 59, tzinfo=UTC) - clock.now())
    await spend(db, studio, key, range(1), clock)
    clock.advance(timedelta(seconds=2))
    assert await watch_budgets(db, clock.now()) == 1
    assert await watch_budgets(db, clock.now()) == 0
    async with db.transaction() as tx:
        assert [row["period"] for row in await alerts_of(tx, FirmId(studio.firm_id))] == ["2026-11"]


async def test_a_message_that_fails_is_tried_again_then_dead_then_replayed(
    world: World, db: Database, clock: FixedClock, hook: tuple[Hook, str]
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    key = (await world.key(studio))["key"]
    await studio.owner.post("/api/budgets", json={"amount_micro_yuan": COST, "thresholds": [100]})
    await channel(db, studio, hook[1], clock)
    await spend(db, studio, key, range(1), clock)
    await watch_budgets(db, clock.now())
    hook[0].status = 500
    for pause in (*RETRIES, timedelta(0)):
        assert await deliver(db, SENDER, clock.now()) == 1
        assert await deliver(db, SENDER, clock.now()) == 0
        clock.advance(pause)
    clock.advance(timedelta(days=9))
    assert await deliver(db, SENDER, clock.now()) == 0
    async with db.transaction() as tx:
        row = (await alerts_of(tx, FirmId(studio.firm_id)))[0]
    assert (row["state"], row["tries"], row["last_error"]) == ("dead", len(RETRIES) + 1, "it answered 500")
    hook[0].status = 204
    clock.advance(timedelta(days=-9) - sum(RETRIES, timedelta(0)))
    assert (await studio.owner.post(f"/api/deliveries/{row['delivery_id']}/replay")).status_code == 202
    assert await deliver(db, SENDER, clock.now()) == 1
    assert (await studio.owner.get("/api/alerts")).json()[0]["state"] == "delivered"
    assert len({headers["webhook-id"] for headers, _ in hook[0].came}) == 1


async def test_a_hard_stop_refuses_jobs_and_leases_and_a_notice_does_not(
    world: World, db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    issued = await world.key(studio)
    firm, project = FirmId(studio.firm_id), ProjectId(issued["key"]["project_id"])
    await spend(db, studio, issued["key"], range(2), clock)

    async def refused(payer: Payer) -> list[str]:
        codes: list[str] = []
        async with db.transaction() as tx:
            for name, work in (
                ("job", api.require_budget(tx, payer, 1, now=clock.now())),
                ("lease", lease(tx, payer, clock)),
            ):
                try:
                    await work
                except NoMoney as no:
                    codes.append(f"{name} {no.code}")
        return codes

    body = {"amount_micro_yuan": 2 * COST}
    mine, others = Payer(firm, project, KeyId(issued["key"]["id"])), Payer(firm, project)
    notice = (await studio.owner.post("/api/budgets", json=body)).json()["id"]
    assert await refused(mine) == []
    assert (await studio.owner.delete(f"/api/budgets/{notice}")).status_code == 204
    stop = (await studio.owner.post("/api/budgets", json=body | {"hard_stop": True})).json()["id"]
    both = ["job budget_reached", "lease budget_reached"]
    assert (await refused(mine), await refused(others)) == (both, both)
    assert (await studio.owner.delete(f"/api/budgets/{stop}")).status_code == 204
    of_key = body | {"hard_stop": True, "key_id": issued["key"]["id"]}
    assert (await studio.owner.post("/api/budgets", json=of_key)).status_code == 201
    assert (await refused(mine), await refused(others)) == (both, [])
    clock.advance(timedelta(days=31))
    assert await refused(mine) == []


async def lease(tx: AsyncSession, payer: Payer, clock: FixedClock, amount: int = 1, **how: Any) -> AllowanceLease:
    return await api.lease_allowance(
        tx, holder="gw", firm_id=payer.firm_id, payer=payer, amount=MicroYuan(amount), lease_seconds=60,
        now=clock.now(), **how,
    )  # fmt: skip


async def test_channels_show_their_secret_and_refuse_private_addresses(world: World) -> None:
    studio = await world.studio()
    made = await studio.owner.post("/api/alert-channels", json={"kind": "webhook", "target": "https://hooks.example/x"})
    assert made.status_code == 201 and made.json()["secret"].startswith("whsec_")
    private = {"kind": "webhook", "target": "https://169.254.169.254/latest"}
    assert (await studio.owner.post("/api/alert-channels", json=private)).json()["code"] == "address_private"
    mail = (await studio.owner.post("/api/alert-channels", json={"kind": "email", "target": "f@s.example"})).json()
    assert mail["secret"] is None
    for kind, target in (("email", "https://hooks.example/x"), ("webhook", "f@s.example")):
        refused = await studio.owner.post("/api/alert-channels", json={"kind": kind, "target": target})
        assert (refused.status_code, "as its target" in refused.json()["detail"]) == (422, True), refused.text
    assert (await studio.owner.delete(f"/api/alert-channels/{mail['id']}")).status_code == 204
    assert [row["id"] for row in (await studio.owner.get("/api/alert-channels")).json()] == [made.json()["id"]]


async def test_without_a_mail_server_an_email_waits_and_says_why(world: World, db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    key = (await world.key(studio))["key"]
    await studio.owner.post("/api/budgets", json={"amount_micro_yuan": COST})
    await studio.owner.post("/api/alert-channels", json={"kind": "email", "target": "f@s.example"})
    await spend(db, studio, key, range(1), clock)
    assert await watch_budgets(db, clock.now()) == 3
    await deliver(db, SENDER, clock.now())
    rows = (await studio.owner.get("/api/alerts")).json()
    assert {row["state"] for row in rows} == {"waiting"}
    assert "HELIU_SMTP_URL" in rows[0]["last_error"]


class Mailbox:
    """A mail server that takes whatever comes."""

    def __init__(self) -> None:
        self.mails: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n")
        while line := (await reader.readline()).decode().strip().upper():
            if line == "DATA":
                writer.write(b"354 go on\r\n")
                self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
            writer.write(b"221 bye\r\n" if line == "QUIT" else b"250 ok\r\n")
            await writer.drain()
        writer.close()


async def test_an_email_leaves_over_smtp_and_says_what_was_reached(
    world: World, db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    key = (await world.key(studio))["key"]
    await studio.owner.post("/api/budgets", json={"amount_micro_yuan": 2 * COST, "thresholds": [50]})
    await studio.owner.post("/api/alert-channels", json={"kind": "email", "target": "finance@s.example"})
    await spend(db, studio, key, range(1), clock)
    assert await watch_budgets(db, clock.now()) == 1
    box = Mailbox()
    async with await asyncio.start_server(box.serve, "127.0.0.1", 0) as server:
        url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await deliver(db, Sender(AlertSettings(smtp_url=url, mail_from="heliu@city.example"), b"master"), clock.now())
    assert (await studio.owner.get("/api/alerts")).json()[0]["state"] == "delivered"
    assert "To: finance@s.example" in box.mails[0] and "50 % of a budget is used" in box.mails[0]
