"""A key's limits, its firm's and its firm's at a model: all must allow a request, and a refusal by one uses up none."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from quotas.vocabulary import RateLimits
from serving.gateway.places import Places
from serving.gateway.server import RunningGateway
from serving.limits import Meter
from tests.support.gateways import KEY, MODEL, FakePlane, RawClient, chat, grant, post, request, running
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until_async

OTHER = "hl_key2_secret"


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine("--interval-ms", "10") as started:
        yield started


def plane_with(engine: MockEngine, *rates: tuple[str, RateLimits], **own: int) -> FakePlane:
    """Two keys of one firm under these limits."""
    grants = {KEY: grant(1, rates=rates, **own), OTHER: grant(2, rates=rates, **own)}
    return FakePlane(grants=grants, engines=[engine.url])


@asynccontextmanager
async def held(gateway: RunningGateway, key: str, count: int) -> AsyncIterator[None]:
    """So many streams of this key run."""
    clients = [await RawClient.to(gateway.port) for _ in range(count)]
    for client in clients:
        client.send(request(chat(stream=True, max_tokens=500), key=key))
        assert (await client.head())[0] == 200
    yield
    for client in clients:
        await client.close()


async def idle(gateway: RunningGateway) -> None:
    async def nothing_runs() -> bool:
        return gateway.gateway.gauges()["requests_running"] == 0

    await until_async(nothing_runs, seconds=10, what="the requests to end")


@pytest.mark.parametrize(
    ("model", "whose"), [("", "your firm's limit is 3 "), (MODEL, f"your firm's limit at {MODEL} is 3 ")]
)
async def test_the_keys_of_a_firm_share_its_requests_at_once(
    engine: MockEngine, tmp_path: Path, model: str, whose: str
) -> None:
    plane = plane_with(engine, (model, RateLimits(requests_at_once=3)), ("another", RateLimits(requests_at_once=1)))
    async with running(plane, tmp_path) as gateway:
        async with held(gateway, KEY, 2), held(gateway, OTHER, 1):
            for key in (KEY, OTHER):
                refused = await post(gateway.port, chat(), key=key)
                assert (refused.status, refused.json()["error"]["code"]) == (429, "concurrent_requests")
                assert refused.json()["error"]["message"].startswith(whose)
                assert refused.headers["retry-after"] == "1"
        await idle(gateway)
        async with held(gateway, OTHER, 3):
            pass


async def test_a_key_s_own_requests_at_once_are_its_own(engine: MockEngine, tmp_path: Path) -> None:
    async with running(plane_with(engine, requests_at_once=1), tmp_path) as gateway:
        async with held(gateway, KEY, 1), held(gateway, OTHER, 1):
            assert (await post(gateway.port, chat())).status == 429
        await idle(gateway)


async def test_what_one_limit_refuses_uses_up_nothing_of_the_others(engine: MockEngine, tmp_path: Path) -> None:
    plane = plane_with(engine, ("", RateLimits(requests_per_minute=2)), requests_per_minute=10)
    async with running(plane, tmp_path) as gateway:
        answers = [await post(gateway.port, chat(max_tokens=1)) for _ in range(6)]
        assert [answer.status for answer in answers] == [200, 200, 429, 429, 429, 429]
        assert answers[-1].json()["error"]["message"].startswith("your firm's limit is 2 requests per minute")
        assert answers[1].headers["x-ratelimit-limit-requests"] == "2", "where least is left"
        plane.grants[KEY] = grant(1, requests_per_minute=10)
        plane.notices.put_nowait("*")

        async def eight_more() -> bool:
            return (await post(gateway.port, chat(max_tokens=1))).headers.get("x-ratelimit-remaining-requests") == "7"

        await until_async(eight_more, seconds=5, what="the firm's limit to be gone, with eight of the key's ten left")


async def test_places_elsewhere_are_not_used_here_and_places_here_are_returned_when_recalled(
    engine: MockEngine,
) -> None:
    plane = plane_with(engine, ("", RateLimits(requests_at_once=10)))
    plane.places_elsewhere = 7
    places, meter = Places(plane, lease_seconds=300), Meter()
    assert places.granted("firm_1", 10, meter) == 0
    for expected in (True, True, True, False):
        assert await places.have("firm_1", came=asyncio.get_running_loop().time()) is expected
        meter.running += expected
    meter.running = 1
    await places.give_back("firm_1")
    assert (places.granted("firm_1", 10, meter), plane.places["firm_1"]) == (1, 1)


async def test_places_that_were_not_renewed_in_time_are_used_no_more(engine: MockEngine) -> None:
    plane = plane_with(engine, ("", RateLimits(requests_at_once=10)))
    places, meter = Places(plane, lease_seconds=1), Meter()
    places.granted("firm_1", 10, meter)
    await places.have("firm_1", came=0)
    assert plane.places["firm_1"] == 2
    assert places.granted("firm_1", 10, meter) == 0, "so near their end another gateway may have them already"
