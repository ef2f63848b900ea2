"""One client's connection, HTTP/1.1: an asyncio protocol on llhttp that hands complete requests to a handler, in order.

llhttp refuses what request smuggling needs (two lengths, a length beside a transfer coding, folded or malformed
headers, bare line feeds); what it lets through and we do not want is refused in `head_refusal`.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from serving.gateway.http_answers import Answers
from serving.gateway.http_memory import LARGE_BYTES
from serving.gateway.http_messages import HEADS, UPGRADE, KnownHead, Listener, Request, head_refusal
from serving.gateway.openai_errors import error_body

if TYPE_CHECKING:
    from serving.gateway.http_server import HttpServer

BURST = 64
"""So many pipelined requests are answered in one turn of the loop; then other connections have theirs."""
LINGER_SECONDS = 2.0
_SINGLE = frozenset({b"host", b"authorization", b"content-type", b"content-length", b"expect", b"x-api-key"})


class Connection(Answers, asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_begun", "_body", "_body_bytes", "_broken", "_chunked", "_continue", "_head_bytes", "_headers", "_in_head",
        "_in_message", "_known", "_known_head", "_once_sent", "_paused", "_plain_bytes_max", "_pumping", "_queue",
        "_reading", "_refused", "_target", "_without_body",
        "current", "deadline", "limits", "listener", "parser", "peer", "server", "started", "transport",
    )  # fmt: skip

    def __init__(self, server: "HttpServer") -> None:
        self.server = server
        self.limits = server.limits
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpRequestParser(self)
        self.listener: Listener | None = None
        self.current: Request | None = None
        self.started = False
        self._chunked = True
        self.deadline = 0.0
        self.peer = ""
        self._queue: deque[Request] = deque()
        self._headers: dict[bytes, bytes] = {}
        self._target = b""
        self._body: list[bytes] = []
        self._begun = 0  # messages
        self._head_bytes = self._body_bytes = 0
        self._without_body = 0  # bytes in a row: of a head that is not complete, of trailers
        self._in_head = self._in_message = self._continue = False
        self._paused = self._pumping = False
        self._reading = True
        self._refused = False
        self._once_sent = []
        self._broken: tuple[int, str, str] | None = None
        self._known: Request | None = None
        self._known_head: KnownHead | None = None
        self._plain_bytes_max = min(LARGE_BYTES, self.limits.body_bytes_max)

    # --- the socket -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self.transport.set_write_buffer_limits(high=self.limits.write_buffer_bytes)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if peer else ""
        if len(self.server.connections) >= self.limits.connections_max:
            self._refuse(503, "too_many_connections", "this gateway holds as many connections as it may; try again")
            return
        self.server.connections.add(self)
        self.deadline = self.server.loop.time() + self.limits.head_seconds_max

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self.transport = None
        self.deadline = 0.0
        self._received()
        for request in self._queue:
            self.server.memory.let_go(request)
        self._queue.clear()
        if self.listener is None and self.current is not None:
            self.server.memory.let_go(self.current)
        listener, self.listener, self.current = self.listener, None, None
        if listener is not None:
            listener.client_gone()
        self._sent()

    def data_received(self, data: bytes) -> None:
        if self._broken is not None or self.transport is None:
            return
        if self._in_message:
            self._parse(data)
        elif not self._repeats(data):
            waiting = len(self._queue)
            self._parse(data)
            if len(self._queue) == waiting + 1 and not self._in_message:
                self._remember(data)
        self._pump()

    def _repeats(self, data: bytes) -> bool:
        """Whether this is one request under the head of one before: then that one's parse holds."""
        known, head = self._known, self._known_head
        body = None if head is None else head.body_of(data)
        if known is None or body is None or len(body) > self._plain_bytes_max:
            return False
        request = Request(known.method, known.path, known.query, known.headers, True)
        request.body, request.bearer = body, known.bearer
        self._queue.append(request)
        return True

    def _remember(self, data: bytes) -> None:
        """Keep the head of a request that came alone and whole, with a stated length."""
        request = self._queue[-1]
        head_bytes = len(data) - len(request.body)
        plain = request.keep_alive and b"transfer-encoding" not in request.headers and b"expect" not in request.headers
        if plain and data.find(b"\r\n\r\n") + 4 == head_bytes:
            self._known, self._known_head = request, KnownHead.of(data[:head_bytes])
            request.headers.pop(b"content-length", None)  # of those that follow it is another

    def _parse(self, data: bytes) -> None:
        expected = self._begun + (not self._in_message)  # the message that goes on, or begins, with the first byte
        body_bytes = self._body_bytes
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._break(*UPGRADE)
        except httptools.HttpParserCallbackError:
            if self._broken is None:
                raise
        except httptools.HttpParserError as error:
            self._break(400, "malformed_http", f"this is not well-formed HTTP/1.1: {error}")
        if self._in_message and self._begun == expected and self._body_bytes == body_bytes:
            self._without_body += len(data)
            if self._without_body > self.limits.head_bytes_max:
                self._break(431, "headers_too_large", f"request headers exceed {self.limits.head_bytes_max} bytes")
        else:
            self._without_body = 0

    def eof_received(self) -> bool:
        return False  # a client that closes its side is gone

    def pause_writing(self) -> None:
        # Until there is room again nothing more is answered or begun, and only this deadline counts.
        self._paused = True
        self.server.memory.slow(self)
        self.deadline = self.server.loop.time() + self.limits.write_stall_seconds_max
        if self.listener is not None:
            self.listener.client_slow(True)

    def resume_writing(self) -> None:
        self._paused = False
        self._sent()
        if self.transport is None or self.transport.is_closing():
            return
        self.deadline = 0.0 if self.current is not None else self._idle_deadline()
        if self.listener is not None:
            self.listener.client_slow(False)
        self._pump()

    # --- llhttp's callbacks ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._in_head = self._in_message = True
        self._headers = {}
        self._target = b""
        self._body = []
        self._begun += 1
        self._head_bytes = self._body_bytes = 0
        if self.current is None and not self._paused:
            self.deadline = self.server.loop.time() + self.limits.head_seconds_max

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > self.limits.target_bytes_max:
            self._break(414, "uri_too_long", f"the request target exceeds {self.limits.target_bytes_max} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nothing here reads one
        name = name.lower()
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self.limits.head_bytes_max or len(self._headers) >= self.limits.headers_max:
            self._break(431, "headers_too_large", f"request headers exceed {self.limits.head_bytes_max} bytes")
        elif name in self._headers:
            if name in _SINGLE:
                self._break(400, "duplicate_header", f"header {name.decode('latin-1')!r} may come once")
            self._headers[name] += b", " + value
        else:
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self.parser
        refusal = head_refusal(self._headers, parser.get_http_version(), parser.should_upgrade(), self.limits)
        if refusal is not None:
            self._break(*refusal)
            return
        if self.current is None and not self._paused:
            self.deadline = self.server.loop.time() + self.limits.body_seconds_max
        if self._headers.get(b"expect"):
            self._continue = True
            self._send_continue()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self.server.memory.bodies += len(body)
        if self._body_bytes > self.limits.body_bytes_max:
            self._break(413, "body_too_large", f"the body exceeds {self.limits.body_bytes_max} bytes")
        elif self.server.memory.full:
            self._break(503, "receiving_too_much", "this gateway receives as much as it may; try again")
        elif self._broken is None:
            self._body.append(body)

    def _received(self) -> None:
        """What was being received is complete, or will not be."""
        self.server.memory.bodies -= self._body_bytes
        self._body_bytes = 0

    def on_message_complete(self) -> None:
        large = self._body_bytes if self._body_bytes > LARGE_BYTES else 0
        self._received()
        self._in_message = self._continue = False
        if self._broken is not None:
            return
        path, _, query = self._target.partition(b"?")
        request = Request(self.parser.get_method(), path, query, self._headers, self.parser.should_keep_alive())
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        if large:
            self.server.memory.hold(request, large)
        if self.parser.get_http_version() == "1.0":  # it knows no chunks, and nothing of connections that stay
            request.chunks = request.keep_alive = False
        self._queue.append(request)

    # --- the order of answers -------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Hand over requests one after another; answers given at once do not nest, and wait for room."""
        if self._pumping:
            return
        self._pumping = True
        burst = BURST
        try:
            while self.current is None and self._queue and not self._paused and self.transport is not None:
                if burst == 0:
                    self.server.loop.call_soon(self._pump)
                    break
                burst -= 1
                request = self.current = self._queue.popleft()
                self.started = False
                self.deadline = 0.0
                self.server.handler.handle(request, self)
        finally:
            self._pumping = False
        if self.transport is None or self.transport.is_closing():
            return  # the last answer said `connection: close`: what followed is not heard
        if self._queue:
            if self._reading:
                self._reading = False  # a pipelined request waits its turn; more of them wait in the kernel
                self.transport.pause_reading()
        elif self.current is None and not self._paused:
            self._after_last()

    def _after_last(self) -> None:
        if self._broken is not None:
            self._refuse(*self._broken)
            return
        self._resume_reading()
        self._send_continue()

    def _resume_reading(self) -> None:
        if not self._reading and self.transport is not None:
            self._reading = True
            self.transport.resume_reading()

    def _send_continue(self) -> None:
        if self._continue and self.current is None and not (self._queue or self._paused) and self.transport is not None:
            self._continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _break(self, status: int, code: str, message: str) -> None:
        """What follows on this connection cannot be trusted: answer what is complete, then refuse and close."""
        if self._broken is None:
            self._broken = (status, code, message)

    def _refuse(self, status: int, code: str, message: str) -> None:
        transport = self.transport
        if transport is None or self._refused:
            return
        self._refused = True
        self._broken = self._broken or (status, code, message)
        body = error_body(status, code, message)
        transport.write(
            HEADS[status]
            + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        if self._in_message and self in self.server.connections:
            # Closed while it sends, it would be reset before it reads this: for a while what comes is thrown away.
            transport.write_eof()
            self._received()
            self._body = []
            self._resume_reading()
            self.deadline = self.server.loop.time() + LINGER_SECONDS
        else:
            self._close(transport)

    def _close(self, transport: asyncio.Transport) -> None:
        """Close once all is sent; a client that does not read it is cut (see `time_out`)."""
        self.deadline = self.server.loop.time() + self.limits.write_stall_seconds_max
        transport.close()

    # --- its end --------------------------------------------------------------------------------------------------

    def close_if_idle(self) -> None:
        """Close when nothing is being answered or received; otherwise it closes after the current answer."""
        if self.current is None and not self._queue and not self._in_message and self.transport is not None:
            self._close(self.transport)

    def time_out(self) -> None:
        """The deadline passed: a slow sender is told so, an idle or stalled connection is closed."""
        self.deadline = 0.0
        transport = self.transport
        if transport is None:
            return
        if self._paused or self._refused or transport.is_closing():
            transport.abort()
        elif self._in_message and self.current is None:
            self._refuse(408, "request_timeout", "the request did not arrive in time")
        else:
            self._close(transport)

    def _ended(self, close: bool) -> None:
        if self.current is not None and self.current.held:
            self.server.memory.let_go(self.current)
        self.current = self.listener = None
        self.started = False
        if close and self.transport is not None:
            self._queue.clear()
            self._close(self.transport)
            return
        if not self._paused:
            self.deadline = self._idle_deadline()
        if not self._pumping and (self._queue or self._continue or not self._reading or self._broken is not None):
            self._pump()

    def _idle_deadline(self) -> float:
        seconds = self.limits.body_seconds_max if self._in_message else self.limits.idle_seconds_max
        return self.server.loop.time() + seconds
