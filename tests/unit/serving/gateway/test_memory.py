"""What a gateway holds in memory is bounded, in all, whatever clients send or do not read."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.gateway.answer_room import STEP_BYTES
from serving.gateway.server import RunningGateway
from tests.support.gateways import FakePlane, RawClient, billed, chat, post, request, running
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until_async

MB = 1 << 20
ANSWER_TOKENS = 3_000_000
"""Four bytes each: more than the buffers of two sockets take."""
ANSWER_BYTES = 4 * ANSWER_TOKENS


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", "engine-secret", "--context", str(10 * ANSWER_TOKENS)) as started:
        yield started


@pytest.fixture
def plane(engine: MockEngine) -> FakePlane:
    return FakePlane(engines=[engine.url], context=10 * ANSWER_TOKENS)


@asynccontextmanager
async def slow_client(gateway: RunningGateway) -> AsyncIterator[RawClient]:
    """A client that takes little before it reads."""
    ear = socket.socket()
    ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    ear.setblocking(False)
    await asyncio.get_running_loop().sock_connect(ear, ("127.0.0.1", gateway.port))
    client = RawClient(*await asyncio.open_connection(sock=ear, limit=4_096))
    try:
        yield client
    finally:
        await client.close()


async def test_large_answers_wait_at_their_engines_and_all_of_them_arrive(plane: FakePlane, tmp_path: Path) -> None:
    bound, clients = 4 * MB, 5
    settings: dict[str, Any] = {"answers_bytes_max": bound, "output_tokens_max": 10 * ANSWER_TOKENS}
    async with running(plane, tmp_path, **settings) as gateway, AsyncExitStack() as stack:
        room = gateway.gateway.answers
        slow = [await stack.enter_async_context(slow_client(gateway)) for _ in range(clients)]
        for client in slow:
            client.send(request(chat("a novel", max_tokens=ANSWER_TOKENS)))

        async def others_wait() -> bool:
            assert room.used <= bound + ANSWER_BYTES + STEP_BYTES
            return room.waiting >= clients - 2

        await until_async(others_wait, seconds=20, what="the other answers to wait")

        async def read(client: RawClient) -> int:
            answer = await asyncio.wait_for(client.answer(), 60)
            assert room.used <= bound + ANSWER_BYTES + STEP_BYTES
            return len(answer.json()["choices"][0]["message"]["content"])

        assert await asyncio.gather(*map(read, slow)) == [ANSWER_BYTES] * clients
        assert (await billed(plane, clients))[0][0].output == ANSWER_TOKENS

        async def all_left() -> bool:
            return room.used == 0

        await until_async(all_left, seconds=5, what="the room to be empty")


async def test_an_answer_that_finds_no_room_in_time_is_refused_and_its_replica_is_not_blamed(
    plane: FakePlane, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"answers_bytes_max": MB, "output_tokens_max": 10 * ANSWER_TOKENS, "stall_seconds": 0.5}
    async with running(plane, tmp_path, **settings) as gateway, slow_client(gateway) as slow:
        slow.send(request(chat("a novel", max_tokens=ANSWER_TOKENS)))

        async def held() -> bool:
            return gateway.gateway.answers.used >= ANSWER_BYTES

        await until_async(held, seconds=20, what="an answer to be held for its client")
        refused = await post(gateway.port, chat("a novel", max_tokens=ANSWER_TOKENS))
        assert (refused.status, refused.json()["error"]["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) > 0
        assert (await post(gateway.port, chat("short", max_tokens=5))).status == 200
        await asyncio.wait_for(slow.answer(), 60)


async def test_readers_that_are_slowest_are_cut_off_when_too_much_waits_for_them(
    plane: FakePlane, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"sending_bytes_max": MB, "output_tokens_max": 10 * ANSWER_TOKENS}
    async with running(plane, tmp_path, **settings) as gateway, AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(slow_client(gateway)) for _ in range(3)]
        for client in slow:
            client.send(request(chat("a novel", max_tokens=ANSWER_TOKENS)))

        async def cut() -> bool:
            return len(plane.records) == 3 and gateway.gateway.answers.used == 0

        await until_async(cut, seconds=20, what="the slow readers to be cut off")
        assert (await post(gateway.port, chat("short", max_tokens=5))).status == 200


async def test_large_requests_count_until_they_are_answered_and_more_are_refused(
    plane: FakePlane, tmp_path: Path
) -> None:
    large = "x" * 300_000
    async with running(plane, tmp_path, bodies_bytes_max=MB, finish_seconds=0.2) as gateway:
        for _ in range(5):
            assert (await post(gateway.port, chat(large, max_tokens=5))).status == 200
            assert (await post(gateway.port, chat(large, max_tokens=5), key="hl_no_key")).status == 401
            assert (await post(gateway.port, large.encode(), path="/nowhere")).status == 404
        hanging = [await RawClient.to(gateway.port) for _ in range(3)]
        for client in hanging:
            client.send(request(chat(f"!hang {large}", max_tokens=5)))

        async def sent() -> bool:
            return len(gateway.gateway.active) == 3

        await until_async(sent, seconds=5, what="the large requests to be with the engine")
        refused = await post(gateway.port, chat(large, max_tokens=5))
        assert (refused.status, refused.json()["error"]["code"]) == (503, "receiving_too_much")
        assert (await post(gateway.port, chat("small", max_tokens=5))).status == 200
        for client in hanging:
            await client.close()

        async def admitted_again() -> bool:
            return (await post(gateway.port, chat(large, max_tokens=5))).status == 200

        await until_async(admitted_again, seconds=5, what="the large requests to be forgotten")
