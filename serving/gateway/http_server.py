"""HTTP/1.1 towards clients: accepts connections (`http_connection.py`), watches their time limits, drains."""

import asyncio
from email.utils import formatdate

from serving.gateway.http_connection import Connection
from serving.gateway.http_memory import HttpMemory
from serving.gateway.http_messages import Handler, HttpLimits


class HttpServer:
    """Accepts connections for one handler and watches over their time limits."""

    def __init__(self, handler: Handler, limits: HttpLimits) -> None:
        self.handler = handler
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.draining = False
        self.memory = HttpMemory(limits)
        self.date = b""
        self._server: asyncio.Server | None = None
        self._watch: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Listen; returns the port (a free one for port 0). `reuse_port`: share it with other processes that do."""
        self._tick()
        self._server = await self.loop.create_server(
            lambda: Connection(self), host, port, backlog=2048, reuse_port=reuse_port
        )
        return self._server.sockets[0].getsockname()[1]

    async def drain(self, seconds: float) -> None:
        """Accept nothing new, let running answers end for up to `seconds`, then cut what is left."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        deadline = self.loop.time() + seconds
        while self.connections and self.loop.time() < deadline:  # noqa: ASYNC110 - only while the process ends
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.abort()
        if self._watch is not None:
            self._watch.cancel()

    def _tick(self) -> None:
        self.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
        now = self.loop.time()
        for connection in list(self.connections):
            if connection.deadline and connection.deadline <= now:
                connection.time_out()
        self.memory.shed()
        self._watch = self.loop.call_later(0.5, self._tick)
