"""Engines that fall silent, keys that end while the database is away, and keys that nobody made."""

import asyncio
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from kit.clock import utc_now
from kit.errors import Unavailable
from quotas.vocabulary import KeyGrant
from serving.gateway import engine_watch
from serving.gateway.keys import STRANGERS_AT_ONCE, KeyRing
from serving.metering import Outcome
from tests.support.gateways import KEY, FakePlane, billed, chat, grant, post, running
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until_async


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine() as started:
        yield started


async def test_a_stream_whose_engine_falls_silent_is_ended_and_billed(engine: MockEngine, tmp_path: Path) -> None:
    plane = FakePlane(engines=[engine.url])
    async with running(plane, tmp_path, stall_seconds=0.5) as gateway:
        answer = await asyncio.wait_for(post(gateway.port, chat("!stall-after-3", stream=True, max_tokens=9)), 8)
        assert answer.events()[-1]["error"]["code"] == "engine_failed"
        assert [(tokens.output, outcome) for tokens, outcome in await billed(plane)] == [(3, Outcome.ENGINE_FAILED)]
        assert not gateway.gateway.active


async def test_a_stream_that_goes_on_is_left_alone_however_long_it_takes(tmp_path: Path) -> None:
    with mock_engine("--interval-ms", "200") as slow:
        async with running(FakePlane(engines=[slow.url]), tmp_path, stall_seconds=0.6) as gateway:
            answer = await post(gateway.port, chat(stream=True, max_tokens=10))
            assert answer.events()[-1] == "[DONE]"


async def test_an_engine_that_takes_connections_and_never_answers_counts_as_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_watch, "SILENT_SECONDS_MAX", 0.05)
    monkeypatch.setattr(engine_watch, "EVERY_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # the kernel takes connections, nobody reads them
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        async with running(FakePlane(engines=[url]), tmp_path) as gateway:
            breaker = next(iter(gateway.gateway.directory.engines)).target.breaker

            async def broken() -> bool:
                return not breaker.allows(gateway.gateway.now_ms())

            await until_async(broken, seconds=5, what="the breaker to open")


class Source(FakePlane):
    """Looks keys up as slowly as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.running, self.most = asyncio.Event(), 0, 0

    async def load(self, bearer: str) -> KeyGrant | None:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.go.wait()
        self.running -= 1
        return await super().load(bearer)


async def test_a_key_that_ends_while_the_database_is_away_ends() -> None:
    plane = FakePlane(grants={KEY: grant(expires_at=utc_now() + timedelta(seconds=0.3))})
    ring = KeyRing(plane, refresh_seconds=0.05, offline_seconds=300)
    assert await ring.load(KEY.encode()) is not None
    plane.down = True

    async def ended() -> bool:
        return ring.cached(KEY.encode()) is None and await ring.load(KEY.encode()) is None

    await until_async(ended, seconds=5, what="the key to end")
    with pytest.raises(Unavailable):
        await ring.load(b"hl_unknown")


async def test_made_up_keys_take_few_of_the_database_s_connections() -> None:
    source = Source()
    ring = KeyRing(source, refresh_seconds=1, offline_seconds=300)
    asked = [asyncio.create_task(ring.load(b"hl_%d" % n)) for n in range(50)]
    for _ in range(100):
        await asyncio.sleep(0)
    assert source.most == STRANGERS_AT_ONCE
    source.go.set()
    assert await asyncio.gather(*asked) == [None] * 50
