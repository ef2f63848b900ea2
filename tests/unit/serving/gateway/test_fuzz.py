"""Anything at all may arrive on the socket: it is answered or refused, nothing breaks, and nothing hangs.

`make fuzz` runs the same over far more inputs.
"""

import json
import os
from collections.abc import AsyncIterator

import httptools
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.gateway.endpoints import ENDPOINTS, Asked, decode
from serving.gateway.http_connection import Connection
from serving.gateway.http_messages import HttpLimits, Request
from serving.gateway.http_server import HttpServer
from serving.gateway.openai_errors import Refusal

EXAMPLES = int(os.environ.get("HELIU_FUZZ_EXAMPLES", "400"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

METHODS = [b"GET", b"POST", b"HEAD", b"PUT", b"CONNECT", b"PRI", b"get", b""]
TARGETS = [b"/v1/chat/completions", b"/", b"*", b"/" + b"a" * 300, b"http://x/y", b"/%00", b"/\xff", b""]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1", b""]
HEADERS = [
    b"Host: a", b"Host: b", b"Content-Length: 3", b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 3, 3",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding : chunked", b"X: a\r\n b",
    b"Connection: close", b"Connection: Upgrade", b"Upgrade: websocket", b"Expect: 100-continue", b"Expect: x",
    b"Authorization: Bearer hl_a_b", b"X: " + b"a" * 3_000, b"X\x00: a", b": a", b"X: \xff", b"",
]  # fmt: skip
BODIES = [b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"3\r\nabcd\r\n", b"-1\r\n", b"0\r\nT: x\r\n\r\n", b"{}", b"\x00" * 20]
ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"]


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Almost a request: parts that are right and wrong, put together, sometimes bitten."""
    end = draw(st.sampled_from(ENDS))
    head = b" ".join([draw(st.sampled_from(METHODS)), draw(st.sampled_from(TARGETS)), draw(st.sampled_from(VERSIONS))])
    lines = [head, *draw(st.lists(st.sampled_from(HEADERS), max_size=6)), b""]
    whole = end.join(lines) + end + draw(st.sampled_from(BODIES))
    bitten = draw(st.integers(0, 8))
    return whole[: draw(st.integers(0, len(whole)))] if bitten == 0 else whole


class Transport:
    """A socket that remembers what was written and whether it was closed."""

    def __init__(self) -> None:
        self.written, self.closed, self.ended = b"", False, False

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    def write(self, data: bytes) -> None:
        assert not self.closed, "nothing is written after the end"
        assert not self.ended, "nothing is said after the end"
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    @property
    def over(self) -> bool:
        """Whether the other side has been told that nothing more comes."""
        return self.closed or self.ended

    def is_closing(self) -> bool:
        return self.closed

    def write_eof(self) -> None:
        self.ended = True

    def set_write_buffer_limits(self, high: int) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Echo:
    """Answers each request with its body's length."""

    def __init__(self) -> None:
        self.seen: list[Request] = []

    def handle(self, request: Request, reply: Connection) -> None:
        self.seen.append(request)
        reply.respond(200, b"%d" % len(request.body))


class Answers:
    """Counts answers, and finds that each is well-formed."""

    def __init__(self) -> None:
        self.statuses: list[int] = []

    def on_headers_complete(self) -> None:
        self.statuses.append(self.parser.get_status_code())

    def read(self, data: bytes) -> list[int]:
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(data)
        return self.statuses


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    started = HttpServer(Echo(), HttpLimits(head_bytes_max=2_000, target_bytes_max=200, body_bytes_max=1_000))
    yield started
    await started.drain(0)


def send(server: HttpServer, pieces: list[bytes]) -> tuple[Transport, list[Request]]:
    echo = server.handler = Echo()
    connection, transport = Connection(server), Transport()
    connection.connection_made(transport)  # pyright: ignore[reportArgumentType]
    for piece in pieces:
        if not transport.closed:
            connection.data_received(piece)
    connection.connection_lost(None)
    assert connection not in server.connections, "nothing is kept of a connection that is gone"
    return transport, echo.seen


@FUZZ
@given(st.lists(messages(), min_size=1, max_size=3), st.lists(st.integers(1, 400), max_size=4))
async def test_whatever_arrives_is_answered_or_refused(server: HttpServer, sent: list[bytes], cuts: list[int]) -> None:
    data = b"".join(sent)
    pieces = [data[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True)]
    transport, seen = send(server, pieces)
    if b"HEAD" not in data:  # an answer to HEAD has a length and no body
        statuses = [status for status in Answers().read(transport.written) if status != 100]
        assert statuses.count(200) == len(seen)
        assert all(status in (200, 400, 413, 414, 417, 431, 501, 503, 505) for status in statuses)
        assert sum(status != 200 for status in statuses) <= 1, "a refusal is the last thing said"
        assert transport.over or statuses.count(200) == len(statuses)
    whole, alike = send(server, [data])
    assert [r.body for r in seen] == [r.body for r in alike], "how the bytes were cut changes nothing"
    # Of a head without end the first bytes may come behind another request: it is refused with the next ones then.
    assert whole.over == transport.over or b" 431 " in whole.written + transport.written


@FUZZ
@given(st.lists(st.integers(1, 3_900), max_size=6))
async def test_a_head_that_fits_is_heard_however_it_is_cut(server: HttpServer, cuts: list[int]) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nX: %b\r\nY: %b\r\nContent-Length: 1\r\n\r\n" % (b"x" * 900, b"y" * 900)
    data = head + b"1" + head + b"2"
    pieces = [data[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True)]
    _, seen = send(server, pieces)
    assert [request.body for request in seen] == [b"1", b"2"]


@FUZZ
@given(st.binary(max_size=200))
async def test_noise_is_refused(server: HttpServer, noise: bytes) -> None:
    transport, seen = send(server, [noise])
    assert seen == [], "noise is nobody's request"
    assert all(status >= 400 for status in Answers().read(transport.written))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["model", "messages", "prompt", "input", "stream", "stream_options", "n", "max_tokens", "tools", "priority",
     "query", "documents", "system", "cache_salt", "logprobs"]
)  # fmt: skip


@FUZZ
@given(st.sampled_from(sorted(ENDPOINTS)), st.dictionaries(FIELDS, JSON, max_size=6), st.integers(0, 60))
def test_any_json_is_understood_or_refused(path: bytes, fields: dict[str, object], cut: int) -> None:
    body = json.dumps({"model": "m"} | fields).encode()
    for data in (body, body[:cut]):
        asked = decode(ENDPOINTS[path], data, b"application/json")
        if isinstance(asked, Refusal):
            assert asked.status in (400, 415)
        else:
            assert isinstance(asked, Asked)
            json.loads(asked.for_engine(engine_model="e", salt="s", output_tokens_max=5))
