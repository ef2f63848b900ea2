"""Streams that a gateway holds back or lets end: a drain, and a client that reads nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from serving.gateway.server import RunningGateway
from tests.support.gateways import FakePlane, RawClient, chat, request, running
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until_async


@pytest.fixture(scope="module")
def slow_engine() -> Iterator[MockEngine]:
    with mock_engine("--interval-ms", "20") as started:
        yield started


@pytest.fixture
async def gateway(slow_engine: MockEngine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running(FakePlane(engines=[slow_engine.url]), tmp_path) as started:
        yield started


async def test_a_drain_lets_running_streams_end_and_takes_nothing_new(gateway: RunningGateway) -> None:
    idle, busy = await RawClient.to(gateway.port), await RawClient.to(gateway.port)
    busy.send(request(chat(stream=True, max_tokens=20)))
    assert (await busy.head())[0] == 200
    stopping = asyncio.create_task(gateway.stop())
    assert await idle.closed()
    body = b""
    while chunk := await busy.chunk():
        body += chunk
    assert body.endswith(b"data: [DONE]\n\n")
    assert await busy.closed()
    await stopping
    with pytest.raises(OSError, match=r"refused|Connect"):
        await RawClient.to(gateway.port)
    await idle.close()
    await busy.close()


async def test_back_pressure_reaches_the_engine(tmp_path: Path) -> None:
    with mock_engine() as fast:
        async with running(FakePlane(engines=[fast.url], context=10_000_000), tmp_path) as gateway:
            client = await RawClient.to(gateway.port)
            client.send(request(chat(stream=True, max_tokens=1_000_000)))
            await client.head()
            counts: list[int] = []

            async def stands_still() -> bool:
                counts.append(fast.counted("generation_tokens_total"))
                return len(counts) > 3 and len(set(counts[-3:])) == 1

            await until_async(stands_still, seconds=20, what="the engine to be held back")
            assert counts[-1] < 1_000_000
            await client.close()
