"""Models that end: announced in headers and in the list, refused afterwards; replicas and adapters that come and go."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.gateways import KEY, MODEL, FakePlane, RawClient, chat, post, request, running
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until_async

SOON = datetime(2099, 3, 1, 8, 0, tzinfo=UTC)


@pytest.fixture
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", "engine-secret", "--adapters", "adp_1", "--interval-ms", "10") as started:
        yield started


async def models(port: int) -> list[dict[str, object]]:
    client = await RawClient.to(port)
    client.send(f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
    try:
        return (await client.answer()).json()["data"]
    finally:
        await client.close()


async def test_a_models_end_is_announced_plain_streamed_and_refused_and_then_kept(
    engine: MockEngine, tmp_path: Path
) -> None:
    plane = FakePlane(engines=[engine.url], deprecated_at=SOON - timedelta(days=30), retires_at=SOON)
    async with running(plane, tmp_path) as gateway:
        for body in (chat(max_tokens=1), chat(max_tokens=1, stream=True), chat("!long")):
            headers = (await post(gateway.port, body)).headers
            assert headers["deprecation"] == f"@{int((SOON - timedelta(days=30)).timestamp())}"
            assert headers["sunset"] == "sun, 01 mar 2099 08:00:00 gmt"
        (row,) = await models(gateway.port)
        assert (row["version"], row["retires_at"]) == ("7", "2099-03-01T08:00:00Z")
        plane.retires_at = datetime.now(UTC)

        async def refused() -> bool:
            answer = await post(gateway.port, chat(max_tokens=1))
            return answer.status == 404 and answer.json()["error"]["code"] == "model_retired"

        await until_async(refused, seconds=5, what="the model to be retired")
        assert await models(gateway.port) == []


async def test_a_model_without_an_end_says_nothing(engine: MockEngine, tmp_path: Path) -> None:
    async with running(FakePlane(engines=[engine.url]), tmp_path) as gateway:
        headers = (await post(gateway.port, chat(max_tokens=1))).headers
        assert "sunset" not in headers and "deprecation" not in headers


async def test_gateways_share_a_port_when_they_are_told_to(engine: MockEngine, tmp_path: Path) -> None:
    plane = FakePlane(engines=[engine.url])
    async with (
        running(plane, tmp_path / "a", reuse_port=True) as first,
        running(plane, tmp_path / "b", port=first.port, reuse_port=True),
    ):
        answers = [await post(first.port, chat(max_tokens=1)) for _ in range(40)]
    assert {answer.status for answer in answers} == {200}
    starts = {answer.headers["x-request-id"][:-8] for answer in answers}
    assert len(starts) == 2, "the system shares out connections among the processes that listen"


async def test_a_rolling_update_loses_no_request(tmp_path: Path) -> None:
    arguments = ("--key", "engine-secret", "--interval-ms", "5")
    with mock_engine(*arguments) as old, mock_engine(*arguments) as new:
        plane = FakePlane(engines=[old.url])
        async with running(plane, tmp_path) as gateway:
            over = asyncio.Event()

            async def client(number: int) -> list[int]:
                seen = []
                while not over.is_set():
                    answer = await post(gateway.port, chat(max_tokens=20, stream=number % 2 == 0))
                    seen.append(answer.status if answer.complete else 0)
                return seen

            clients = [asyncio.create_task(client(number)) for number in range(8)]
            for engines in ([old.url, new.url], ["http://127.0.0.1:9", new.url], [old.url], [new.url]):
                before = gateway.gateway.directory.version
                plane.engines = engines

                async def taken_over(before: str = before) -> bool:
                    return gateway.gateway.directory.version != before

                await until_async(taken_over, seconds=5, what="the new table")
                assert (await post(gateway.port, chat(max_tokens=20))).status == 200
            over.set()
            statuses = [status for seen in await asyncio.gather(*clients) for status in seen]
        assert set(statuses) == {200}
        assert len(statuses) > 8
        assert old.counted("num_requests_running") == new.counted("num_requests_running") == 0


async def test_an_adapter_deleted_in_mid_stream_finishes_its_stream_and_takes_no_new_request(
    engine: MockEngine, tmp_path: Path
) -> None:
    plane = FakePlane(engines=[engine.url], adapters={("firm_1", "lore"): "adp_1"}, loaded={"adp_1"})
    async with running(plane, tmp_path) as gateway:
        client = await RawClient.to(gateway.port)
        client.send(request(chat(model="lore", max_tokens=200, stream=True)))
        assert (await client.head())[0] == 200
        await client.chunk()
        plane.adapters, plane.loaded = {}, set()

        async def unknown() -> bool:
            return (await post(gateway.port, chat(model="lore", max_tokens=1))).status == 404

        await until_async(unknown, seconds=5, what="the adapter to be unknown")
        rest = b""
        while chunk := await client.chunk():
            rest += chunk
        assert rest.endswith(b"data: [DONE]\n\n")
        await client.close()

        async def billed() -> bool:
            return [r.tokens.output for r in plane.records if r.tokens.output > 1] == [200]

        await until_async(billed, seconds=5, what="the stream to be billed whole")
        assert (await post(gateway.port, chat(model=MODEL, max_tokens=1))).status == 200
