"""The HTTP a client may and may not speak, byte by byte over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from serving.gateway.http_connection import Connection
from serving.gateway.http_memory import HttpMemory
from serving.gateway.http_messages import HttpLimits, Request
from serving.gateway.http_server import HttpServer
from tests.support.gateways import RawClient
from tests.support.until import until_async

H = b"POST /echo HTTP/1.1\r\nHost: a\r\n"


class Echo:
    """Answers with what it got; `/later` waits to be released, `/big` sends until told to stop."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Request, Connection]] = []
        self.slow: list[bool] = []
        self.gone = 0

    def handle(self, request: Request, reply: Connection) -> None:
        if request.path == b"/later":
            self.waiting.append((request, reply))
            reply.listener = self
        elif request.path == b"/big":
            reply.listener = self
            reply.start(200, b"", b"text/plain")
            while not (self.slow and self.slow[-1]):
                reply.write(b"x" * 65_536)
            self.waiting.append((request, reply))
        elif request.path == b"/stream":
            reply.start(200, b"", b"text/plain")
            for part in (b"one", b"two"):
                reply.write(part)
            reply.finish(b"three")
        elif request.path == b"/last":
            assert reply.transport is not None
            reply.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
            reply.respond(200, b"x" * 60_000)  # below what the transport holds before it says that it is full
        else:
            reply.respond(200, request.method + b" " + request.path + b" " + request.body)

    def client_gone(self) -> None:
        self.gone += 1

    def client_slow(self, slow: bool) -> None:
        self.slow.append(slow)

    def release(self) -> None:
        request, reply = self.waiting.pop(0)
        reply.respond(200, b"late " + request.body)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(echo: Echo) -> AsyncIterator[HttpServer]:
    limits = HttpLimits(
        head_bytes_max=2_000, body_bytes_max=1_000, target_bytes_max=200, head_seconds_max=0.5, body_seconds_max=0.5,
        idle_seconds_max=0.5, write_stall_seconds_max=0.5, connections_max=50,
    )  # fmt: skip
    started = HttpServer(echo, limits)
    started.port = await started.start("127.0.0.1", 0)  # type: ignore[attr-defined]
    yield started
    await started.drain(0)


@pytest.fixture
async def client(server: Any) -> AsyncIterator[RawClient]:
    opened = await RawClient.to(server.port)
    yield opened
    await opened.close()


async def test_requests_are_answered_on_one_connection_in_order(client: RawClient) -> None:
    for body in (b"one", b"three", b"", b"x" * 1_000, b"one"):
        client.send(H + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert (await client.answer()).body == b"POST /echo " + body


async def test_pipelined_requests_are_answered_in_order_even_when_the_first_takes_longer(
    client: RawClient, echo: Echo
) -> None:
    later = b"POST /later HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"
    client.send(later + b"1" + H + b"Content-Length: 1\r\n\r\n2" + later + b"3" + H + b"Content-Length: 1\r\n\r\n4")

    async def waits() -> bool:
        return len(echo.waiting) == 1

    bodies: list[bytes] = []
    for _ in range(2):
        await until_async(waits, seconds=5, what="the late request")
        echo.release()
        bodies += [(await client.answer()).body, (await client.answer()).body]
    assert bodies == [b"late 1", b"POST /echo 2", b"late 3", b"POST /echo 4"]


async def test_many_pipelined_requests_do_not_nest(client: RawClient) -> None:
    client.send((H + b"Content-Length: 0\r\n\r\n") * 3_000)
    for _ in range(3_000):
        assert (await client.answer()).status == 200


async def test_a_chunked_body_arrives_whole_in_however_many_pieces(client: RawClient) -> None:
    for byte in H + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n3\r\ncde\r\n0\r\nTrailer: t\r\n\r\n":
        client.send(bytes([byte]))
        await client.writer.drain()
    assert (await client.answer()).body == b"POST /echo abcde"


async def test_expect_100_continue_is_answered_before_the_body(client: RawClient) -> None:
    client.send(H + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert (await client.answer()).status == 100
    client.send(b"abc")
    assert (await client.answer()).body == b"POST /echo abc"


async def test_who_still_sends_when_refused_reads_why_before_the_connection_ends(server: Any) -> None:
    client = await RawClient.to(server.port)
    client.send(H + b"Content-Length: 8000000\r\n\r\n" + b"x" * 7_000_000)
    await client.writer.drain()
    answer = await client.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert await client.closed() and server.memory.bodies == 0
    await client.close()


async def test_a_body_that_will_be_too_large_is_refused_instead_of_continued(client: RawClient) -> None:
    client.send(H + b"Content-Length: 5000\r\nExpect: 100-continue\r\n\r\n")
    assert (await client.answer()).status == 413
    assert await client.closed()


async def test_http_1_0_is_answered_and_closed(client: RawClient) -> None:
    client.send(b"GET /echo HTTP/1.0\r\n\r\n")
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await client.closed()


async def test_a_stream_to_http_1_0_is_plain_bytes_until_the_connection_closes(client: RawClient) -> None:
    client.send(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    status, headers = await client.head()
    assert (status, headers["connection"]) == (200, "close")
    assert "transfer-encoding" not in headers
    assert await asyncio.wait_for(client.reader.read(), 10) == b"onetwothree"


async def test_bodies_that_never_end_hold_no_more_memory_than_there_is_for_all(server: Any) -> None:
    server.memory = HttpMemory(replace(server.limits, bodies_bytes_max=2_500))
    clients = [await RawClient.to(server.port) for _ in range(4)]
    for client in clients[:3]:
        client.send(H + b"Content-Length: 1000\r\n\r\n" + b"x" * 800)

    async def received() -> bool:
        return server.memory.bodies == 2_400

    await until_async(received, seconds=5, what="the bodies")
    clients[3].send(H + b"Content-Length: 1000\r\n\r\n" + b"x" * 800)
    assert (await clients[3].answer()).json()["error"]["code"] == "receiving_too_much"
    await clients[1].close()

    async def less() -> bool:
        return server.memory.bodies == 1_600

    await until_async(less, seconds=5, what="room")
    clients[0].send(b"x" * 200)
    assert (await clients[0].answer()).status == 200
    for client in clients:
        await client.close()

    async def nothing() -> bool:
        return server.memory.bodies == 0

    await until_async(nothing, seconds=5, what="the memory to be given back")


async def test_head_has_the_length_but_no_body(client: RawClient) -> None:
    client.send(b"HEAD /echo HTTP/1.1\r\nHost: a\r\n\r\n" + b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n")
    status, headers = await client.head()
    assert (status, headers["content-length"]) == (200, str(len(b"HEAD /echo ")))
    assert (await client.answer()).body == b"GET /echo "


SMUGGLING = {
    "both lengths": H + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": H + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "the same length twice": H + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": H + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": H + b"Content-Length: +3\r\n\r\nabc",
    "a negative length": H + b"Content-Length: -3\r\n\r\nabc",
    "a hexadecimal length": H + b"Content-Length: 0x3\r\n\r\nabc",
    "a length beyond integers": H + b"Content-Length: 99999999999999999999\r\n\r\n",
    "space before the colon": H + b"Content-Length : 3\r\n\r\nabc",
    "a folded header": H + b"X: a\r\n b\r\nContent-Length: 3\r\n\r\nabc",
    "a folded coding": H + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": H + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked not last": H + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": H + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding before": H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"POST /echo HTTP/1.1\nHost: a\nContent-Length: 3\n\nabc",
    "a bare line feed after a header": b"POST /echo HTTP/1.1\r\nHost: a\nContent-Length: 3\r\n\r\nabc",
    "a bare carriage return": H + b"X: a\rContent-Length: 3\r\n\r\nabc",
    "NUL in a value": H + b"X: a\x00b\r\n\r\n",
    "NUL in a name": H + b"X\x00: a\r\n\r\n",
    "a bad chunk size": H + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
    "a chunk size with an underscore": H + b"Transfer-Encoding: chunked\r\n\r\n1_0\r\nabc\r\n0\r\n\r\n",
    "a chunk longer than it says": H + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    "chunks ended by line feeds": H + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    "chunked in HTTP/1.0": b"POST /echo HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no host": b"GET /echo HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two authorizations": b"GET /echo HTTP/1.1\r\nHost: a\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n",
    "a later version": b"GET /echo HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an upgrade with a body": H + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
    "CONNECT": b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method nobody knows": b"FROBNICATE /echo HTTP/1.1\r\nHost: a\r\n\r\n",
    "an unknown expectation": H + b"Expect: 200-ok\r\nContent-Length: 3\r\n\r\nabc",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
    "a long target": b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "large headers": H + b"X: " + b"a" * 3_000 + b"\r\n\r\n",
    "many headers": H + b"".join(b"X%d: a\r\n" % n for n in range(101)) + b"\r\n",
    "a head without end": H + b"X: " + b"a" * 10_000,
    "a body over the limit": H + b"Content-Length: 1001\r\n\r\n" + b"a" * 1001,
    "chunks over the limit": H + b"Transfer-Encoding: chunked\r\n\r\n" + b"100\r\n" * 1 + b"a" * 256 + b"\r\n"
    + b"400\r\n" + b"a" * 1024 + b"\r\n0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("odd", SMUGGLING)
async def test_what_two_parsers_could_read_differently_is_refused_and_the_connection_closed(
    client: RawClient, echo: Echo, odd: str
) -> None:
    client.send(SMUGGLING[odd] + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = await client.answer()
    assert answer.status in (400, 413, 414, 417, 431, 501, 505)
    assert answer.headers["connection"] == "close"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert await client.closed()


async def test_what_came_before_an_odd_request_is_still_answered(client: RawClient) -> None:
    client.send(H + b"Content-Length: 1\r\n\r\n1" + SMUGGLING["both lengths"])
    assert (await client.answer()).body == b"POST /echo 1"
    assert (await client.answer()).status == 400
    assert await client.closed()


async def test_trailers_without_end_are_refused_and_not_kept(client: RawClient) -> None:
    client.send(H + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ")
    refused = asyncio.create_task(client.answer())
    while not refused.done():
        client.send(b"a" * 1_000)
        await asyncio.sleep(0)
    assert (await refused).status == 431
    assert await client.closed()


@pytest.mark.parametrize("part", [b"", b"POST /echo HT", H + b"X: a", H + b"Content-Length: 5\r\n\r\nab"])
async def test_a_client_too_slow_to_say_its_request_is_cut(client: RawClient, part: bytes) -> None:
    client.send(part)
    if part:
        assert (await client.answer()).status == 408
    assert await client.closed()


async def test_a_client_that_reads_nothing_is_held_back_and_then_cut(client: RawClient, echo: Echo) -> None:
    client.send(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")

    async def gone() -> bool:
        return echo.gone == 1

    await until_async(gone, seconds=5, what="the stalled client to be cut")
    assert echo.slow[0] is True


async def test_pipelined_answers_that_nobody_reads_do_not_pile_up(client: RawClient, server: Any) -> None:
    one = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n" + b"x" * 900
    client.send(one * 100_000)
    most = 0

    async def cut() -> bool:
        nonlocal most
        sizes = [c.transport.get_write_buffer_size() for c in server.connections if c.transport is not None]
        most = max(most, *sizes, 0)
        return not server.connections

    await until_async(cut, seconds=10, what="the stalled client to be cut")
    assert 0 < most <= server.limits.write_buffer_bytes + 2_000
    client.writer.transport.abort()


async def test_pipelined_requests_beyond_the_buffer_are_all_answered_to_a_client_that_reads(
    client: RawClient,
) -> None:
    client.send((H + b"Content-Length: 900\r\n\r\n" + b"x" * 900) * 5_000)
    for _ in range(5_000):
        assert (await client.answer()).status == 200


async def test_a_closing_connection_whose_last_answer_nobody_reads_is_cut(server: Any) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.port))
        client.send(b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

        async def closing() -> bool:
            return any(c.transport is not None and c.transport.is_closing() for c in server.connections)

        async def cut() -> bool:
            return not server.connections

        await until_async(closing, seconds=5, what="the answer to be given")
        await until_async(cut, seconds=5, what="the connection to be cut")


async def test_a_client_that_reads_again_lets_the_sender_go_on(client: RawClient, echo: Echo) -> None:
    client.send(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.head()

    async def going_on() -> bool:
        await client.chunk()
        return echo.slow[-1:] == [False]

    await until_async(going_on, seconds=5, what="room in the buffer")
    assert echo.slow == [True, False]


async def test_a_client_that_leaves_is_told_to_who_answers_it(client: RawClient, echo: Echo) -> None:
    client.send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")

    async def waits() -> bool:
        return bool(echo.waiting)

    async def gone() -> bool:
        return echo.gone == 1

    await until_async(waits, seconds=5, what="the request")
    await client.close()
    await until_async(gone, seconds=5, what="the notice")
    echo.release()


async def test_more_connections_than_allowed_are_refused_politely(server: Any) -> None:
    clients = [await RawClient.to(server.port) for _ in range(50)]
    extra = await RawClient.to(server.port)
    assert (await extra.answer()).status == 503
    for opened in (*clients, extra):
        await opened.close()
