"""An import of many jobs beside everything else: nobody waits for a firm's money while its file is read."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from kit.clock import FixedClock
from kit.db import Database
from kit.settings import Settings
from kit.web import create_app
from quotas import api, usage_imports
from quotas.main import routers
from quotas.vocabulary import FirmId, HoldId
from quotas.web import usage_routes
from tests.api.quotas.conftest import Studio, World
from tests.support.money import POOL, hold, publish_prices

HEADER = "JobID|JobName|Account|Partition|State|Start|End|AllocTRES"


@pytest.fixture
def app(db: Database, clock: FixedClock) -> FastAPI:
    """Every route of quotas; the body of an import may be large."""
    app = create_app(
        "t", "0", routers(db, clock, Settings()), body_limit_bytes=1 << 20, unlimited_prefixes=("/api/usage-imports",)
    )
    app.state.db, app.state.clock = db, clock
    return app


def job(number: int, account: str, name: str = "render") -> str:
    start = f"2026-11-01T{number % 20:02}:00:00"
    return f"{number}|{name}|{account}|slots|COMPLETED|{start}|{start[:14]}01:00|cpu=4,gres/gpu=1"


async def send(world: World, source: str, accounts: dict[str, Studio], lines: list[str]) -> httpx.Response:
    query = {
        "source": source, "account": [f"{name}={studio.firm_id}" for name, studio in accounts.items()],
        "partition": f"slots={POOL}",
    }  # fmt: skip
    return await world.admin.post("/api/usage-imports", params=query, content="\n".join((HEADER, *lines)) + "\n")


async def paid(world: World, studio: Studio, amount: int = 10_000_000_000) -> None:
    body = {"firm_id": studio.firm_id, "amount_micro_yuan": amount, "evidence": "slip"}
    assert (await world.admin.post("/api/top-ups", json=body)).status_code == 201


async def test_two_files_that_name_the_same_firms_in_opposite_orders_do_not_wait_in_a_circle(
    world: World, db: Database, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish_prices(db, now=clock.now())
    studios = {"a": await world.studio(), "b": await world.studio()}
    for studio in studios.values():
        await paid(world, studio)
    monkeypatch.setattr(usage_imports, "CHUNK", 5)
    really, tries = usage_imports.import_jobs, list[str]()

    async def counted(*args: Any, **more: Any) -> Any:
        tries.append(args[2].source)
        return await really(*args, **more)

    monkeypatch.setattr(usage_routes, "import_jobs", counted)
    first = [job(number, "a" if number < 40 else "b") for number in range(80)]
    answers = await asyncio.gather(
        send(world, "wuhan-1", studios, first), send(world, "wuhan-2", studios, first[40:] + first[:40])
    )
    assert [(answer.status_code, answer.json()["imported"]) for answer in answers] == [(200, 80)] * 2
    assert sorted(tries) == ["wuhan-1", "wuhan-2"], "neither had to begin again"
    async with db.transaction() as tx:
        for studio in studios.values():
            month = await api.statement(tx, FirmId(studio.firm_id), "2026-11", clock.now())
            assert (len(month.lines), month.cash) == (80, 80 * 60_000)
        assert await api.check_ledger(tx) == []


async def test_two_files_of_one_cluster_at_once_charge_each_job_once(
    world: World, db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    await paid(world, studio)
    lines = [job(number, "a") for number in range(30)]
    answers = await asyncio.gather(
        *(send(world, "wuhan-1", {"a": studio}, part) for part in (lines, lines[::-1], lines[10:]))
    )
    assert [answer.status_code for answer in answers] == [200] * 3
    assert sum(answer.json()["imported"] for answer in answers) == 30
    async with db.transaction() as tx:
        assert await api.check_ledger(tx) == []


async def test_a_file_of_ten_megabytes_is_imported_and_keeps_no_job_of_its_firm_waiting(
    world: World, db: Database, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    await paid(world, studio)
    firm = FirmId(studio.firm_id)
    really, held = usage_imports.collect, list[HoldId]()

    async def then_collect(*args: Any, **more: Any) -> int:
        """All is read and written by now, and still the firm's other work finds its money free."""
        async with db.transaction() as tx:
            held.append((await asyncio.wait_for(hold(tx, firm, now=clock.now(), seconds=50), 10)).id)
        return await really(*args, **more)

    monkeypatch.setattr(usage_imports, "collect", then_collect)
    lines = [job(number, "a", name="r" * 2_000) for number in range(5_000)]
    assert len("\n".join(lines)) > 10_000_000
    answer = await send(world, "wuhan-1", {"a": studio}, lines)
    assert answer.status_code == 200, answer.text
    assert answer.json()["imported"] == 5_000
    assert answer.json()["cash_micro_yuan"] == 5_000 * 60_000
    async with db.transaction() as tx:
        account = await api.account_of(tx, firm)
        assert (account.balance, account.held) == (10_000_000_000 - 5_000 * 60_000, 50_000)
        for hold_id in held:
            await api.release_hold(tx, hold_id=hold_id, reason="done", now=clock.now())
        assert await api.check_ledger(tx) == []
    assert len(held) == 1
