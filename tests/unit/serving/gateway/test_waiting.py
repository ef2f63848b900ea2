"""When every replica is full: firms take turns, the lines are bounded, and who cannot go holds nobody back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.gateway.exchange import Exchange
from serving.gateway.server import RunningGateway
from serving.routing import OPEN_FIRST_MS
from tests.support.gateways import KEY, FakePlane, RawClient, chat, grant, post, request, running
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until_async

OTHER = "hl_key2_secret"


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine("--interval-ms", "10", "--keep-bodies", "--adapters", "adp_1") as started:
        yield started


@pytest.fixture
def plane(engine: MockEngine) -> FakePlane:
    grants = {KEY: grant(), OTHER: grant(2, firm=2)}
    return FakePlane(grants=grants, engines=[engine.url], max_concurrency=1, adapters={("firm_1", "lore"): "adp_1"})


def placed(gateway: RunningGateway) -> float:
    """Requests at the replica or in line for it."""
    at_replica = sum(engine.target.running for engine in gateway.gateway.directory.engines)
    return at_replica + gateway.gateway.gauges()["requests_waiting"]


@asynccontextmanager
async def asked(gateway: RunningGateway, *bodies: tuple[dict[str, Any], str]) -> AsyncIterator[list[RawClient]]:
    """Requests of (body, key), each on a connection of its own, in this order."""
    clients: list[RawClient] = []
    for body, key in bodies:
        client = await RawClient.to(gateway.port)
        before = placed(gateway)

        async def arrived(before: float = before) -> bool:
            return placed(gateway) > before

        client.send(request(body, key=key))
        clients.append(client)
        await until_async(arrived, seconds=5, what="the request to be admitted")
    try:
        yield clients
    finally:
        for client in clients:
            await client.close()


async def gauge(gateway: RunningGateway, name: str, value: float) -> None:
    async def is_so() -> bool:
        return gateway.gateway.gauges()[name] == value

    await until_async(is_so, seconds=5, what=f"{name} to be {value}")


async def test_two_firms_take_turns_at_a_full_replica(plane: FakePlane, engine: MockEngine, tmp_path: Path) -> None:
    async with running(plane, tmp_path) as gateway:
        before = len(engine.requests())
        many = [(chat(f"first {n}", max_tokens=10), KEY) for n in range(6)]
        few = [(chat(f"other {n}", max_tokens=10), OTHER) for n in range(2)]
        async with asked(gateway, (chat("held", max_tokens=100), KEY), *many, *few) as clients:
            for client in clients:
                assert (await client.answer()).status == 200
        served = [one["body"]["messages"][0]["content"] for one in engine.requests()[before:]]
        # What was held is the first firm's, and is counted as what it used; so is each answer, not as its reserve.
        assert served[:4] == ["held", "other 0", "other 1", "first 0"]
        assert gateway.gateway.gauges()["requests_waiting"] == 0


async def test_more_than_may_wait_are_refused_by_name(plane: FakePlane, tmp_path: Path) -> None:
    async with running(plane, tmp_path, queue_max=2, queue_per_firm_max=1) as gateway:
        long = chat(stream=True, max_tokens=400)
        async with asked(gateway, (long, KEY), (chat(), KEY)) as _:
            await gauge(gateway, "requests_waiting", 1)
            refused = await post(gateway.port, chat())
            assert (refused.status, refused.json()["error"]["code"]) == (503, "firm_queue_full")
            async with asked(gateway, (chat(), OTHER)):
                await gauge(gateway, "requests_waiting", 2)
                refused = await post(gateway.port, chat(), key=OTHER)
                assert (refused.status, refused.json()["error"]["code"]) == (503, "queue_full")
                assert int(refused.headers["retry-after"]) > 0


async def test_who_waited_too_long_is_told_why(plane: FakePlane, tmp_path: Path) -> None:
    async with running(plane, tmp_path, wait_seconds=0.2) as gateway:
        async with asked(gateway, (chat(stream=True, max_tokens=400), KEY)):
            refused = await post(gateway.port, chat(), key=OTHER)
            assert (refused.status, refused.json()["error"]["code"]) == (503, "overloaded")
            assert "0.2 s" in refused.json()["error"]["message"]
            refused = await post(gateway.port, chat(model="lore"))
            assert refused.json()["error"]["code"] == "adapter_not_ready"
        await gauge(gateway, "requests_running", 0)


async def test_a_full_model_asks_the_router_once_for_each_request_not_for_all_that_wait(
    plane: FakePlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = 0
    ask = Exchange.ask

    def counted(self: Exchange) -> Any:
        nonlocal asks
        asks += 1
        return ask(self)

    monkeypatch.setattr(Exchange, "ask", counted)
    async with running(plane, tmp_path) as gateway:
        answers = await asyncio.gather(*(post(gateway.port, chat(max_tokens=1)) for _ in range(60)))
        assert all(answer.status == 200 for answer in answers)
    assert asks <= 2 * 60, "once on arrival, once when its turn came"


async def test_a_request_that_waits_for_an_adapter_lets_others_pass_and_goes_once_it_is_loaded(
    plane: FakePlane, tmp_path: Path
) -> None:
    lore = (chat(model="lore", max_tokens=1), KEY)
    async with running(plane, tmp_path) as gateway, asked(gateway, lore) as (waiting,):
        await gauge(gateway, "requests_waiting", 1)
        service = gateway.gateway.directory.services["mock-model", None]
        assert service.lines is not None
        assert (len(service.lines.places), len(service.lines.adapters)) == (0, 1)
        assert (await post(gateway.port, chat(max_tokens=1))).status == 200
        plane.loaded.add("adp_1")
        assert (await waiting.answer()).status == 200


async def test_the_only_replica_that_failed_is_tried_again_and_not_waited_for(plane: FakePlane, tmp_path: Path) -> None:
    async with running(plane, tmp_path) as gateway:
        refused = await asyncio.wait_for(post(gateway.port, chat("!drop")), 10)
        assert (refused.status, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert gateway.gateway.metrics.retries == {"rep_0": 3}


async def test_a_replica_whose_breaker_closes_again_is_given_what_waited_for_it(
    plane: FakePlane, tmp_path: Path
) -> None:
    async with running(plane, tmp_path) as gateway:
        breaker = next(iter(gateway.gateway.directory.engines)).target.breaker
        for _ in range(3):
            breaker.failed(gateway.gateway.now_ms())
        assert (await asyncio.wait_for(post(gateway.port, chat(max_tokens=1)), 10)).status == 200


async def test_one_request_that_an_engine_cannot_answer_breaks_its_replica_for_nobody(
    plane: FakePlane, tmp_path: Path
) -> None:
    async with running(plane, tmp_path) as gateway:
        only = next(iter(gateway.gateway.directory.engines))
        assert (await post(gateway.port, chat("!drop"))).status == 503
        assert only.target.breaker.failures == 1
        assert (await asyncio.wait_for(post(gateway.port, chat(max_tokens=1)), 5)).status == 200
        assert only.target.breaker.calm


async def test_a_broken_replica_is_tried_again_though_the_last_trial_said_nothing_about_it(
    plane: FakePlane, tmp_path: Path
) -> None:
    """A connection that has served before and breaks may just have been old: that is no failure, and no success."""
    async with running(plane, tmp_path, tries_max=1) as gateway:
        assert (await post(gateway.port, chat(max_tokens=1))).status == 200  # leaves a connection behind
        breaker = next(iter(gateway.gateway.directory.engines)).target.breaker
        for _ in range(3):
            breaker.failed(gateway.gateway.now_ms() - OPEN_FIRST_MS)
        assert (await post(gateway.port, chat("!drop"))).status == 503
        assert (await asyncio.wait_for(post(gateway.port, chat(max_tokens=1)), 5)).status == 200


async def test_requests_wait_for_a_replica_that_says_it_is_busy(plane: FakePlane, tmp_path: Path) -> None:
    """Others may keep it so: it is asked now and then, not again at once, and the lines stay fair and bounded."""
    with mock_engine("--interval-ms", "10", "--at-once", "1") as busy:
        plane.engines, plane.max_concurrency = [busy.url], 64
        async with running(plane, tmp_path) as gateway:
            metrics = gateway.gateway.metrics
            async with asked(gateway, (chat(stream=True, max_tokens=60), KEY)) as (first,):
                answers = await asyncio.gather(*(post(gateway.port, chat(stream=True, max_tokens=2)) for _ in range(8)))
                assert [answer.events()[-1] for answer in answers] == ["[DONE]"] * 8
                assert (await first.answer()).status == 200
            assert 1 <= metrics.retries["rep_0"] <= 9, "the first, then one a pause, not all at once"
            assert metrics.refusals == {}


async def test_who_waited_too_long_for_a_busy_replica_is_told_so(plane: FakePlane, tmp_path: Path) -> None:
    async with running(plane, tmp_path, wait_seconds=0.6) as gateway:
        began = asyncio.get_running_loop().time()
        refused = await asyncio.wait_for(post(gateway.port, chat("!429")), 10)
        assert asyncio.get_running_loop().time() - began < 3
        assert (refused.status, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "5"
        assert 2 <= gateway.gateway.metrics.retries["rep_0"] <= 4
        assert (await post(gateway.port, chat(max_tokens=1))).status == 200
        await gauge(gateway, "requests_waiting", 0)


async def test_a_client_that_leaves_the_line_is_forgotten(plane: FakePlane, tmp_path: Path) -> None:
    async with running(plane, tmp_path) as gateway, asked(gateway, (chat(stream=True, max_tokens=400), KEY)):
        async with asked(gateway, (chat(), KEY), (chat(model="lore"), KEY)):
            await gauge(gateway, "requests_waiting", 2)
        await gauge(gateway, "requests_waiting", 0)
        await gauge(gateway, "requests_running", 1)
