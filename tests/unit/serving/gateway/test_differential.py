"""The same odd requests to uvicorn get the same verdict, but where we are stricter on purpose."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from serving.gateway.http_messages import HttpLimits
from serving.gateway.http_server import HttpServer
from tests.support.gateways import RawClient
from tests.support.until import until_async
from tests.unit.serving.gateway.test_http_server import SMUGGLING, Echo, H

FINE = {
    "a plain body": H + b"Content-Length: 3\r\n\r\nabc",
    "chunks": H + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "a chunk extension": H + b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n",
    "a trailer": H + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: x\r\n\r\n",
    "no body": b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n",
    "a query": b"GET /echo?a=b&c HTTP/1.1\r\nHost: a\r\n\r\n",
    "spaces around a value": b"GET /echo HTTP/1.1\r\nHost:   a  \r\n\r\n",
    "names in capitals": b"GET /echo HTTP/1.1\r\nHOST: a\r\n\r\n",
    "HTTP/1.0": b"GET /echo HTTP/1.0\r\nHost: a\r\n\r\n",
    "an empty value": b"GET /echo HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n",
    "the same header twice": b"GET /echo HTTP/1.1\r\nHost: a\r\nX: 1\r\nX: 2\r\n\r\n",
    "an empty line first": b"\r\nGET /echo HTTP/1.1\r\nHost: a\r\n\r\n",
}
STRICTER = frozenset({
    # Two parsers could read these differently (RFC 9112 §5.1, §6): h11 takes one reading, we take none.
    "a bare line feed after a header", "bare line feeds", "a folded header", "a folded coding", "a list of lengths",
    "the same length twice", "both lengths", "chunked in HTTP/1.0", "two authorizations",
    # Ours is an API of a few paths, at the edge: what it does not speak it says so.
    "CONNECT", "HTTP/2's preface", "a later version", "a method nobody knows", "an unknown expectation",
    "an upgrade with a body",
    # Bounds, which uvicorn leaves to what stands before it.
    "a body over the limit", "chunks over the limit", "a long target", "large headers", "many headers",
})  # fmt: skip
LOOSER = frozenset({"an empty line first"})
"""RFC 9112 §2.2: a server should ignore at least one."""


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Reads the body, answers 200."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
async def ports() -> AsyncIterator[tuple[int, int]]:
    ours = HttpServer(Echo(), HttpLimits(head_bytes_max=2_000, body_bytes_max=1_000, target_bytes_max=200))
    port = await ours.start("127.0.0.1", 0)
    theirs = uvicorn.Server(uvicorn.Config(app, port=0, http="h11", log_level="critical", lifespan="off", ws="none"))
    running = asyncio.create_task(theirs.serve())

    async def started() -> bool:
        return theirs.started

    await until_async(started, seconds=10, what="uvicorn to start")
    yield port, theirs.servers[0].sockets[0].getsockname()[1]
    theirs.should_exit = True
    await running
    await ours.drain(0)


async def accepts(port: int, data: bytes) -> bool:
    """Whether the request is answered with 200."""
    client = await RawClient.to(port)
    client.send(data)
    try:
        with suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            return (await asyncio.wait_for(client.head(), 1))[0] == 200
        return False
    finally:
        await client.close()


async def test_the_verdict_is_uvicorns_or_stricter_on_purpose(ports: tuple[int, int]) -> None:
    odd = FINE | SMUGGLING
    ours = await asyncio.gather(*(accepts(ports[0], data) for data in odd.values()))
    theirs = await asyncio.gather(*(accepts(ports[1], data) for data in odd.values()))
    assert {name for name, taken in zip(odd, ours, strict=True) if taken} == FINE.keys()
    assert {name for name, taken in zip(odd, theirs, strict=True) if taken} == FINE.keys() - LOOSER | STRICTER
