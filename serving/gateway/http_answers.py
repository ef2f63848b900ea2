"""How a handler answers the current request of a connection: at once, or as a stream."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.gateway.http_messages import HEADS, Request

if TYPE_CHECKING:
    from serving.gateway.http_server import HttpServer


class Answers:
    """The answering half of a connection."""

    __slots__ = ()

    server: "HttpServer"
    transport: asyncio.Transport | None
    current: Request | None
    started: bool
    _chunked: bool
    _paused: bool
    _once_sent: list[Callable[[], None]]

    @abstractmethod
    def _ended(self, close: bool) -> None:
        """The current answer is complete."""

    def respond(self, status: int, body: bytes, extra: bytes = b"", content_type: bytes = b"application/json") -> None:
        """The whole answer at once. `extra`: more header lines, each ending in CRLF."""
        request, transport = self.current, self.transport
        if request is None or transport is None:
            return
        server = self.server
        close = not request.keep_alive or server.draining
        head = b"%s%scontent-type: %s\r\n%s%scontent-length: %d\r\n\r\n" % (
            HEADS[status],
            server.date,
            content_type,
            extra,
            b"connection: close\r\n" if close else b"",
            len(body),
        )
        transport.write(head if request.method == b"HEAD" else head + body)
        self._ended(close)

    def start(self, status: int, extra: bytes, content_type: bytes) -> None:
        """Begin a streamed answer."""
        request, transport = self.current, self.transport
        if request is None or transport is None:
            return
        self.started = True
        self._chunked = request.chunks
        transport.write(
            b"%s%scontent-type: %s\r\n%s%scache-control: no-cache\r\n%s\r\n"
            % (HEADS[status], self.server.date, content_type, extra,
               b"connection: close\r\n" if self._closes(request) else b"",
               b"transfer-encoding: chunked\r\n" if request.chunks else b"")
        )  # fmt: skip

    def write(self, data: bytes) -> None:
        """A part of a streamed answer; empty parts are left out, since one would end it."""
        if data and self.transport is not None:
            self.transport.write(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    def finish(self, data: bytes = b"") -> None:
        """The last part of a streamed answer and its end."""
        request, transport = self.current, self.transport
        if request is None or transport is None:
            return
        if self._chunked:
            data = (b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)) if data else b"0\r\n\r\n"
        if data:
            transport.write(data)
        self._ended(self._closes(request))

    def abort(self) -> None:
        """Cut the connection: the client sees that the answer is not complete."""
        if self.transport is not None:
            self.transport.abort()

    def once_sent(self, then: Callable[[], None]) -> None:
        """Have `then` called when what was answered has left, but for a small rest; at once when it has already."""
        if self._paused:
            self._once_sent.append(then)
        else:
            then()

    @property
    def unsent_bytes(self) -> int:
        """How much of its answers waits for its client."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def _sent(self) -> None:
        self.server.memory.caught_up(self)
        waiting, self._once_sent = self._once_sent, []
        for then in waiting:
            then()

    def _closes(self, request: Request) -> bool:
        return not request.keep_alive or self.server.draining
