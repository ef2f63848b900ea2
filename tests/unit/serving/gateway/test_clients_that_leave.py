"""A client that goes away: an engine that counts as it goes stops, one that counts at the end is let finish."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quotas.vocabulary import KeyGrant
from serving.metering import NOTHING, Outcome
from tests.support.gateways import MODEL, FakePlane, RawClient, billed, chat, request, running
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until_async


@pytest.fixture
def slow() -> Iterator[MockEngine]:
    with mock_engine("--interval-ms", "10") as started:
        yield started


@pytest.fixture
def plane(slow: MockEngine) -> FakePlane:
    return FakePlane(engines=[slow.url])


async def leave(port: int, slow: MockEngine, body: dict[str, Any], *, path: str = "/v1/chat/completions") -> None:
    """Ask, and go away once the engine is at it."""
    client = await RawClient.to(port)
    client.send(request(body, path=path))

    async def at_it() -> bool:
        return slow.counted("prompt_tokens_total") > 0

    await until_async(at_it, seconds=5, what="the engine to begin")
    await client.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat(stream=True, max_tokens=1000)),
        ("/v1/completions", {"model": MODEL, "prompt": "a", "stream": True, "max_tokens": 1000}),
    ],
)
async def test_a_stream_whose_client_leaves_stops_the_engine_and_what_was_generated_is_paid(
    plane: FakePlane, slow: MockEngine, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    async with running(plane, tmp_path) as gateway:
        client = await RawClient.to(gateway.port)
        client.send(request(body, path=path))
        await client.head()
        for _ in range(20):
            await client.chunk()
        await client.close()
        tokens, outcome = (await billed(plane))[0]
        assert outcome is Outcome.CLIENT_LEFT
        assert 15 <= tokens.output < 1000
        assert tokens.output == slow.counted("generation_tokens_total")
        assert tokens.input == slow.counted("prompt_tokens_total")
        assert slow.counted("num_requests_running") == 0
        assert not gateway.gateway.active


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat(max_tokens=30, n=2)),
        ("/v1/responses", {"model": MODEL, "input": "a", "max_output_tokens": 30, "stream": True}),
        ("/v1/messages", chat("a", max_tokens=30, stream=True)),
    ],
)
async def test_an_answer_that_is_counted_at_its_end_is_let_finish_and_paid_as_the_engine_counted(
    plane: FakePlane, slow: MockEngine, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    async with running(plane, tmp_path) as gateway:
        await leave(gateway.port, slow, body, path=path)
        tokens, outcome = (await billed(plane))[0]
        assert outcome is Outcome.CLIENT_LEFT
        assert tokens.output == slow.counted("generation_tokens_total") >= 30
        assert tokens.input == slow.counted("prompt_tokens_total")
        assert not gateway.gateway.active


async def test_an_answer_nobody_waits_for_is_cut_when_it_takes_too_long_and_costs_nothing(
    plane: FakePlane, slow: MockEngine, tmp_path: Path
) -> None:
    async with running(plane, tmp_path, finish_seconds=0.2) as gateway:
        await leave(gateway.port, slow, chat(max_tokens=100_000))

        async def stopped() -> bool:
            return slow.counted("num_requests_running") == 0 and not gateway.gateway.active

        await until_async(stopped, seconds=5, what="the engine to stop")
        assert plane.records == []


@pytest.mark.parametrize(
    ("path", "body", "input_known"),
    [
        ("/v1/responses", {"model": MODEL, "input": "a", "stream": True, "max_output_tokens": 100_000}, False),
        ("/v1/messages", chat("a", max_tokens=100_000, stream=True), True),
    ],
)
async def test_a_stream_counted_at_its_end_and_cut_before_costs_what_was_seen_of_it(
    plane: FakePlane, slow: MockEngine, tmp_path: Path, path: str, body: dict[str, Any], input_known: bool
) -> None:
    async with running(plane, tmp_path, finish_seconds=0.2) as gateway:
        client = await RawClient.to(gateway.port)
        client.send(request(body, path=path))
        await client.head()
        for _ in range(8):
            await client.chunk()
        await client.close()
        tokens, outcome = (await billed(plane))[0]
        assert outcome is Outcome.CLIENT_LEFT
        assert 0 < tokens.output <= slow.counted("generation_tokens_total")
        assert tokens.input == (slow.counted("prompt_tokens_total") if input_known else 0)


async def test_a_drain_that_runs_out_of_time_cuts_what_nobody_waits_for(
    plane: FakePlane, slow: MockEngine, tmp_path: Path
) -> None:
    async with running(plane, tmp_path, drain_seconds=0.2) as gateway:
        await leave(gateway.port, slow, chat(max_tokens=100_000))
        assert len(gateway.gateway.active) == 1
    assert not gateway.gateway.active

    async def stopped() -> bool:
        return slow.counted("num_requests_running") == 0

    await until_async(stopped, seconds=5, what="the engine to stop")
    assert [record.tokens for record in plane.records if record.tokens != NOTHING] == []


@dataclass
class SlowKeys(FakePlane):
    """A control plane that looks a key up only when the test lets it."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def load(self, bearer: str) -> KeyGrant | None:
        self.asked.set()
        await self.answer.wait()
        return await super().load(bearer)


async def test_a_client_that_leaves_while_its_key_is_looked_up_leaves_nothing_running(
    slow: MockEngine, tmp_path: Path
) -> None:
    plane = SlowKeys(engines=[slow.url])
    async with running(plane, tmp_path) as gateway:
        client = await RawClient.to(gateway.port)
        client.send(request(chat()))
        await asyncio.wait_for(plane.asked.wait(), 5)
        (waiting,) = gateway.gateway.active
        await client.close()

        async def gone() -> bool:
            return waiting.gone

        await until_async(gone, seconds=5, what="the gateway to see it leave")
        plane.answer.set()

        async def nothing_runs() -> bool:
            return not gateway.gateway.active

        await until_async(nothing_runs, seconds=5, what="the request to be released")
        assert slow.counted("prompt_tokens_total") == 0
        assert plane.records == []
