"""Engines that answer what no engine should: the client hears an error it can read, and nothing is billed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from serving.gateway.server import RunningGateway
from tests.support.gateways import FakePlane, RawClient, chat, request, running


@asynccontextmanager
async def before(says: bytes, folder: Path) -> AsyncIterator[tuple[RunningGateway, FakePlane]]:
    """A gateway whose only engine answers every POST with these bytes."""

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                writer.write(says if head.startswith(b"POST") else b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(engine, "127.0.0.1", 0)
    plane = FakePlane(engines=[f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])
    async with server, running(plane, folder) as gateway:
        yield gateway, plane


def ok(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


@pytest.mark.parametrize(
    ("says", "code"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", "engine_error"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n", "engine_error"),
        (ok(b""), "engine_failed"),
        (ok(b"<html>", b"text/html"), "engine_failed"),
        (ok(b"\0\0\x80?", b"application/octet-stream"), "engine_failed"),
        (ok(b'{"usage":'), "engine_failed"),
        (ok(b'{"usage":"much"}'), "engine_failed"),
        (ok(b'{"usage":{"prompt_tokens":-5,"completion_tokens":-7}}'), "engine_failed"),
    ],
)
async def test_what_is_no_answer_is_an_error_and_costs_nothing(says: bytes, code: str, tmp_path: Path) -> None:
    async with before(says, tmp_path) as (gateway, plane):
        client = await RawClient.to(gateway.port)
        for _ in range(2):  # on one connection: the first answer ends where it says
            client.send(request(chat()))
            answer = await client.answer()
            assert (answer.status, answer.json()["error"]["code"]) == (502, code)
        await client.close()
        assert not gateway.gateway.active
        assert gateway.gateway.shipper.backlog == 0
    assert plane.records == []


async def test_a_replica_that_refuses_one_request_three_times_has_failed_once(tmp_path: Path) -> None:
    async with before(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", tmp_path) as (gateway, _):
        client = await RawClient.to(gateway.port)
        client.send(request(chat()))
        assert (await client.answer()).status == 503
        await client.close()
        (only,) = gateway.gateway.directory.engines
        assert gateway.gateway.metrics.retries[only.route.id] == 3
        assert only.target.breaker.failures == 1
