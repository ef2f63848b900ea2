"""A head that was parsed once is known again: what follows it is what a parser would have found."""

import asyncio

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.http_client import EngineConnection, EnginePool
from serving.gateway.http_connection import Connection
from serving.gateway.http_messages import HttpLimits, KnownHead, Request
from serving.gateway.http_server import HttpServer
from tests.support.gateways import RawClient

HEAD = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX-Other: content-length: 7\r\n\r\n"
LENGTHS = [b"5", b"05", b"+5", b"-5", b" 5", b"5 ", b"0x5", b"5\r\ncontent-length: 5", b"", b"5;", b"\xb2", b"9" * 20]


class Parsed:
    """What llhttp makes of some bytes: whole messages and their bodies."""

    def __init__(self, data: bytes) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.sound = True
        try:
            httptools.HttpRequestParser(self).feed_data(data)
        except httptools.HttpParserError:
            self.sound = False

    def on_message_begin(self) -> None:
        self._body = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.bodies.append(self._body)


def head_with(length: bytes) -> bytes:
    return HEAD.replace(b"Length: 12", b"Length: " + length)


@given(
    body=st.binary(max_size=40) | st.just(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"),
    length=st.sampled_from(LENGTHS) | st.integers(0, 60).map(lambda number: b"%d" % number),
    cut=st.integers(0, 120),
    change=st.none() | st.tuples(st.integers(0, len(HEAD) - 1), st.sampled_from(list(b"\r\n :;5aZ\0"))),
)
def test_what_follows_a_known_head_is_the_body_that_a_parser_finds(
    body: bytes, length: bytes, cut: int, change: tuple[int, int] | None
) -> None:
    known = KnownHead.of(HEAD)
    assert known is not None
    data = bytearray(head_with(length) + body)
    if change is not None and change[0] < len(data):
        data[change[0]] = change[1]
    sent = bytes(data[: len(data) - cut] if cut < 10 else data)
    found = known.body_of(sent)
    if found is None:
        return
    parsed = Parsed(sent)
    assert parsed.sound and parsed.bodies == [found]
    others = [header for header in Parsed(HEAD).headers if header[0] != b"Content-Length"]
    assert [header for header in parsed.headers if header[0] != b"Content-Length"] == others


@pytest.mark.parametrize("size", [0, 1, 12, 70_000])
def test_the_same_head_with_another_length_is_known_again(size: int) -> None:
    known = KnownHead.of(HEAD)
    assert known is not None
    assert known.body_of(head_with(b"%d" % size) + b"x" * size) == b"x" * size


def test_a_head_without_a_length_is_not_known() -> None:
    assert KnownHead.of(b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n") is None


class Echo:
    def handle(self, request: Request, reply: Connection) -> None:
        reply.respond(200, request.body)


async def test_a_body_over_the_limit_is_refused_under_a_known_head_too() -> None:
    server = HttpServer(Echo(), HttpLimits(body_bytes_max=1_000))
    client = await RawClient.to(await server.start("127.0.0.1", 0))
    for length, status in ((3, 200), (1_000, 200), (1_001, 413)):
        client.send(head_with(b"%d" % length) + b"x" * length)
        assert (await client.answer()).status == status
    await client.close()
    await server.drain(0)


class Heard:
    """A sink that keeps what it is told."""

    def __init__(self, data_came: asyncio.Event) -> None:
        self.said: list[object] = []
        self.over = asyncio.Event()
        self._data_came = data_came

    def engine_head(self, status: int, content_type: bytes) -> None:
        self.said += [status, content_type]

    def engine_data(self, data: bytes) -> None:
        self.said.append(data)
        self._data_came.set()

    def engine_done(self) -> None:
        self.over.set()

    def engine_failed(self, why: str, *, began: bool, reused: bool) -> None:
        self.said.append(why)
        self.over.set()

    def fault(self, error: BaseException) -> None:
        raise error


class Leaver(Heard):
    """Gives up when the answer comes."""

    def begun(self, connection: EngineConnection) -> bool:
        self._connection = connection
        return True

    def engine_data(self, data: bytes) -> None:
        self._connection.give_up()


PLAIN = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: %d\r\ncontent-type: text/plain\r\n\r\n"


async def test_an_engine_answers_alike_under_heads_known_and_new() -> None:
    answers = {
        b"short": PLAIN % 3 + b"abc",
        b"long": PLAIN % 2_000 + b"x" * 2_000,
        b"empty": PLAIN % 0,
        b"bad": PLAIN.replace(b"200 OK", b"400 Bad") % 3 + b"why",
        b"typed": PLAIN.replace(b"plain", b"other") % 3 + b"abc",
        b"chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"halves": PLAIN % 6 + b"abc",
        b"closing": PLAIN.replace(b"date", b"connection: close\r\ndate") % 3 + b"abc",
        b"more": PLAIN % 3 + b"abcHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nnot",
    }

    half = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while asked := await reader.readline():
            writer.write(answers[asked.strip()])
            await writer.drain()
            if asked.strip() == b"halves":
                await half.wait()
                writer.write(b"def")
            if asked.strip() == b"closing":
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = EnginePool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    async def leave_at_the_last_bytes(what: bytes) -> None:
        leaver = Leaver(half)
        pool.send(what + b"\n", leaver, leaver.begun)
        await asyncio.wait_for(leaver.over.wait(), 5)

    async def ask(what: bytes) -> list[object]:
        heard = Heard(half)
        pool.send(what + b"\n", heard, lambda _: True)
        await asyncio.wait_for(heard.over.wait(), 5)
        return heard.said

    plain = b"text/plain"
    for _ in range(3):
        assert await ask(b"short") == [200, plain, b"abc"]
        assert await ask(b"long") == [200, plain, b"x" * 2_000]
        assert await ask(b"empty") == [200, plain]
        assert await ask(b"bad") == [400, plain, b"why"]
        assert await ask(b"short") == [200, plain, b"abc"]
        assert await ask(b"typed") == [200, b"text/other", b"abc"]
        assert await ask(b"chunked") == [200, b"", b"abc"]
        half.clear()
        assert await ask(b"halves") == [200, plain, b"abc", b"def"]
        assert await ask(b"closing") == [200, plain, b"abc"]
        assert await ask(b"more") == [200, plain, b"abc"]
        assert await ask(b"short") == [200, plain, b"abc"]
        for left in (b"short", b"chunked"):
            await leave_at_the_last_bytes(left)
            assert await ask(b"short") == [200, plain, b"abc"], "what was given up was used again"
    assert pool.known is not None, "nothing was known again"
    pool.abort()
    server.close()
