"""HTTP/1.1 towards engines: pooled keep-alive connections on llhttp, one request at a time on each.

When a request is given up its sending side is shut and the rest is read to the end: the engine stops, and what it had
sent until then is still counted.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import httptools

from serving.gateway.http_messages import KnownHead

IDLE_SECONDS_MAX = 4.0  # below uvicorn's keep-alive of 5 s, so that the engine is never the first to close
IDLE_MAX = 512
CONNECT_SECONDS_MAX = 3.0
LINGER_SECONDS_MAX = 2.0


class Sink(Protocol):
    """Who reads an engine's answer."""

    __slots__ = ()

    def engine_head(self, status: int, content_type: bytes) -> None: ...
    def engine_data(self, data: bytes) -> None: ...
    def engine_done(self) -> None: ...
    def engine_failed(self, why: str, *, began: bool, reused: bool) -> None:
        """It broke off. `began`: bytes of the answer had arrived. `reused`: the connection had served before."""
        ...

    def fault(self, error: BaseException) -> None:
        """Reading the answer raised what nobody foresaw: nothing more of it comes."""
        ...


class Known(NamedTuple):
    """How an engine began a good answer: it begins others in the same way."""

    head: KnownHead
    content_type: bytes


class EngineConnection(asyncio.Protocol):
    """A connection to one engine; `sink` is set while a request runs on it."""

    __slots__ = ("_began", "_bodies", "_content_type", "_head", "_keep", "idle_since", "is_slow", "linger",
                 "parser", "pool", "served", "sink", "transport")  # fmt: skip

    def __init__(self, pool: "EnginePool") -> None:
        self.pool = pool
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.sink: Sink | None = None
        self.served = 0
        self.idle_since = 0.0
        self.linger: asyncio.TimerHandle | None = None
        self._began = self._head = self._keep = self.is_slow = False
        self._content_type = b""
        self._bodies: list[bytes] = []

    def request(self, data: bytes, sink: Sink) -> None:
        """Send a complete request; the answer goes to `sink`."""
        assert self.sink is None and self.transport is not None, "one request at a time"
        self.sink = sink
        self._began = self._head = self._keep = False
        self._content_type = b""
        self.transport.write(data)

    def give_up(self) -> None:
        """Make the engine stop. What it already sent still reaches the sink, then `engine_done` or `engine_failed`."""
        if self.transport is None or self.transport.is_closing() or self.linger is not None:
            return
        self.slow(False)
        self.transport.write_eof()
        self.linger = self.pool.loop.call_later(LINGER_SECONDS_MAX, self.transport.abort)

    def slow(self, slow: bool) -> None:
        """Back-pressure: stop or go on reading from the engine."""
        if slow is self.is_slow:
            return
        self.is_slow = slow
        if self.transport is not None and not self.transport.is_closing():
            (self.transport.pause_reading if slow else self.transport.resume_reading)()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self.pool.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self.sink is None:
            if self.transport is not None:
                self.transport.abort()  # nobody asked: never hand these bytes to the next request
            return
        sink, alone = self.sink, not self._began
        self._began = True
        try:
            if alone and self._repeats(data):
                return
            self.parser.feed_data(data)
            if self._bodies:
                self._pass_on()
            if alone and self.sink is None:
                self._remember(data)
        except httptools.HttpParserCallbackError as error:
            self._fault(sink, error.__context__ or error)
        except httptools.HttpParserError as error:
            self._fail(f"the engine's answer is not HTTP: {type(error).__name__}")
            if self.transport is not None:
                self.transport.abort()
        except Exception as error:
            self._fault(sink, error)

    def _repeats(self, data: bytes) -> bool:
        """Whether this was a whole answer under the head of one before, from whichever connection: it is passed on."""
        known = self.pool.known
        body = None if known is None else known.head.body_of(data)
        if known is None or body is None or self.sink is None:
            return False
        self._head = True
        self.sink.engine_head(200, known.content_type)
        if body:
            self._bodies.append(body)
        self._complete(stays=True)
        return True

    def _remember(self, data: bytes) -> None:
        """Keep the head of an answer that came alone and whole, on a connection that stays."""
        idle = self.pool.idle
        if idle and idle[-1] is self and self.parser.get_status_code() == 200:
            head = KnownHead.of(data[: data.find(b"\r\n\r\n") + 4])
            whole = head is not None and head.body_of(data) is not None
            self.pool.known = Known(head, self._content_type) if head is not None and whole else None

    def _fault(self, sink: Sink, error: BaseException) -> None:
        self.sink = None
        self._bodies.clear()
        if self.transport is not None:
            self.transport.abort()
        sink.fault(error)

    def _pass_on(self) -> None:
        """All chunks of one read at once: an engine in a hurry packs many into it."""
        bodies = self._bodies
        data = bodies[0] if len(bodies) == 1 else b"".join(bodies)
        bodies.clear()
        if self.sink is not None:
            self.sink.engine_data(data)

    def eof_received(self) -> bool:
        if self.sink is not None and self._head and not self._keep:
            sink, self.sink = self.sink, None
            sink.engine_done()  # an answer without a length ends where the connection does
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.linger is not None:
            self.linger.cancel()
        self.pool.forget(self)
        self._fail("the engine closed the connection")

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"content-type":
            self._content_type = value
        elif lower in (b"content-length", b"transfer-encoding"):
            self._keep = True

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status >= 200 and self.sink is not None:
            self._head = True
            self.sink.engine_head(status, self._content_type)

    def on_body(self, body: bytes) -> None:
        self._bodies.append(body)

    def on_message_complete(self) -> None:
        self._complete(stays=self.parser.should_keep_alive())

    def _complete(self, *, stays: bool) -> None:
        if self._bodies:
            self._pass_on()
        sink = self.sink
        if sink is None or not self._head:
            return
        self.sink = None
        self.served += 1
        if stays and self.linger is None:
            self.pool.release(self)
        elif self.transport is not None:
            self.transport.close()
        sink.engine_done()

    def _fail(self, why: str) -> None:
        if self._bodies and self.sink is not None:
            try:
                self._pass_on()  # what came before it broke off is still counted
            except Exception as error:
                self._fault(self.sink, error)
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.engine_failed(why, began=self._began, reused=self.served > 0)


class EnginePool:
    """Connections to one engine's address."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.scheme == "http" and parts.hostname, "engines are reached by http://host:port"
        self.host, self.port = parts.hostname, parts.port or 80
        self.authority = parts.netloc.encode()
        self.prefix = parts.path.rstrip("/").encode()
        self.loop = asyncio.get_running_loop()
        self.idle: list[EngineConnection] = []
        self.connections: set[EngineConnection] = set()
        self.known: Known | None = None
        self.closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, data: bytes, sink: Sink, begun: Callable[[EngineConnection], bool], *, fresh: bool = False) -> None:
        """Send `data` on an idle connection, or on a new one (always when `fresh`).

        `begun` is told which connection it is, and may say False: nothing is sent then. A connection that
        cannot be made is reported by `sink.engine_failed`.
        """
        now = self.loop.time()
        while self.idle and not fresh:
            connection = self.idle.pop()
            transport = connection.transport
            if transport is None or transport.is_closing():
                continue
            if now - connection.idle_since > IDLE_SECONDS_MAX:
                transport.close()
                continue
            if begun(connection):
                connection.request(data, sink)
            else:
                self.release(connection)
            return
        task = self.loop.create_task(self._connect_and_send(data, sink, begun))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect_and_send(self, data: bytes, sink: Sink, begun: Callable[[EngineConnection], bool]) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                _, connection = await self.loop.create_connection(lambda: EngineConnection(self), self.host, self.port)
        except (OSError, TimeoutError) as error:
            sink.engine_failed(f"no connection to the engine: {type(error).__name__}", began=False, reused=False)
            return
        try:
            if not begun(connection):
                self.release(connection)
            elif connection.transport is None:
                sink.engine_failed("the engine closed the connection", began=False, reused=False)
            else:
                connection.request(data, sink)
        except Exception as error:
            sink.fault(error)

    def release(self, connection: EngineConnection) -> None:
        """Keep a connection for the next request."""
        if self.closed or len(self.idle) >= IDLE_MAX:
            if connection.transport is not None:
                connection.transport.close()
            return
        if connection.is_slow:
            connection.slow(False)
        connection.idle_since = self.loop.time()
        self.idle.append(connection)

    def forget(self, connection: EngineConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def close(self) -> None:
        """Close idle connections; running ones end with their requests."""
        self.closed = True
        for connection in self.idle:
            if connection.transport is not None:
                connection.transport.close()
        self.idle.clear()

    def abort(self) -> None:
        """Cut every connection: the process ends."""
        self.closed = True
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.abort()
