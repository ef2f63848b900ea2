"""A model's new version replaces the old one under load: gateway, engines and database are real processes."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from kit.clock import FixedClock, utc_now
from quotas.cash import record_topup
from quotas.vocabulary import FirmId
from tests.api.serving.conftest import ENGINE_KEY, City, ReplicaHost
from tests.support.adapters import BASE
from tests.support.gateway_process import gateway_process
from tests.support.gateways import chat, post
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.money import yuan
from tests.support.until import until_async

CLIENTS = 8


@pytest.fixture
def clock() -> FixedClock:
    """Near the machine's own time: the gateway is another process and has no other."""
    return FixedClock(utc_now() - timedelta(minutes=1))


async def key_with_money(city: City) -> str:
    """The key of a firm that can pay."""
    studio = await city.world.studio()
    async with city.db.transaction() as tx:
        await record_topup(
            tx, key="op_rolling", firm_id=FirmId(studio.firm_id), amount=yuan(1_000), evidence="bank", by="test",
            now=city.clock.now(),
        )  # fmt: skip
    return str((await city.world.key(studio))["token"])


async def sync(host: ReplicaHost, engine: MockEngine) -> str:
    """The host reports its engine as ready and with the requests it really has; the command it hears."""
    running = engine.counted("num_requests_running")
    metrics = {"prompt_tokens_total": 10**6, "generation_tokens_total": 10**6, "requests_running": running}
    return str((await host.sync("ready", url=engine.url, metrics=metrics))["command"])


async def counted(engine: MockEngine, name: str, reached: Callable[[int], bool], what: str) -> None:
    """Wait until one of the engine's counters is so."""

    async def seen() -> bool:
        return reached(engine.counted(name))

    await until_async(seen, seconds=20, what=what)


async def roll(city: City, old: ReplicaHost, first: MockEngine, second: MockEngine) -> None:
    """The model changes; its new replica comes up, its old one drains and ends as its host is told to."""
    changed = await city.admin.patch(f"/api/models/{BASE}", json={"revision": "2"})
    assert changed.status_code == 200, changed.text
    await city.pass_time()
    new = next(host for host in await city.hosts() if host.attempt_id != old.attempt_id)
    assert await sync(old, first) == "run"
    assert await sync(new, second) == "run"
    await city.pass_time()
    assert await sync(old, first) == "drain"
    await counted(second, "generation_tokens_total", lambda n: n > 200, "the second version to answer")
    await counted(first, "num_requests_running", lambda n: n == 0, "the first version to finish its answers")
    await city.pass_time(5)  # longer than gateways may take to hear of it
    assert await sync(old, first) == "drain"
    await city.pass_time()
    assert await sync(old, first) == "stop"
    first.process.kill()
    await old.finished("stopped", "stopped")
    already = second.counted("generation_tokens_total")
    await counted(second, "generation_tokens_total", lambda n: n > already + 200, "the second version to go on alone")


async def test_a_new_version_replaces_the_old_one_under_load_without_a_failed_request(
    city: City, database_url: str, tmp_path: Path
) -> None:
    arguments = ("--key", ENGINE_KEY, "--model", BASE, "--interval-ms", "5")
    with mock_engine(*arguments) as first, mock_engine(*arguments) as second:
        key = await key_with_money(city)
        await city.deploy()
        await city.pass_time()
        (old,) = await city.hosts()
        await sync(old, first)
        with gateway_process(database_url, tmp_path / "gw") as gateway:
            over = asyncio.Event()

            async def client(number: int) -> list[int]:
                seen = []
                while not over.is_set():
                    body = chat(model=BASE, max_tokens=20, stream=number % 2 == 0)
                    answer = await post(gateway.port, body, key=key)
                    seen.append(answer.status if answer.complete else 0)
                return seen

            clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
            await counted(first, "num_requests_running", lambda n: n >= CLIENTS // 2, "the first version to be loaded")
            await roll(city, old, first, second)
            over.set()
            statuses = [status for seen in await asyncio.gather(*clients) for status in seen]
            assert set(statuses) == {200}
            assert len(statuses) > 3 * CLIENTS

            async def billed() -> bool:
                async with city.db.transaction() as tx:
                    query = text("SELECT count(*) FROM quotas.token_usage WHERE output = 20")
                    return (await tx.execute(query)).scalar_one() == len(statuses)

            await until_async(billed, seconds=20, what="every answer to be billed once")
    await city.pass_time()
    (replica,) = await city.replicas()
    assert replica["generation"] == 2
