"""What all connections hold in memory together: bodies of requests, and answers whose clients are slow to read."""

from typing import Protocol

from serving.gateway.http_messages import HttpLimits, Request

LARGE_BYTES = 64 << 10
"""A body over this counts until its request is answered; a smaller one only while it arrives."""


class SlowReader(Protocol):
    @property
    def unsent_bytes(self) -> int:
        """How much of its answers waits."""
        ...

    def abort(self) -> None:
        """Cut it off."""
        ...


class HttpMemory:
    """Counts bytes against the limits of one server."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._slow: dict[SlowReader, None] = {}  # the slowest first
        self.bodies = 0

    @property
    def full(self) -> bool:
        """Whether more is received than may be."""
        return self.bodies > self._limits.bodies_bytes_max

    def hold(self, request: Request, more: int) -> bool:
        """Count so many bytes more of a request; whether they may be kept."""
        if self.bodies + more > self._limits.bodies_bytes_max:
            return False
        self.bodies += more
        request.held += more
        return True

    def let_go(self, request: Request) -> None:
        """Nobody needs its body any more."""
        self.bodies -= request.held
        request.held = 0

    def slow(self, reader: SlowReader) -> None:
        """Its client does not read as fast as it is written to."""
        self._slow[reader] = None

    def caught_up(self, reader: SlowReader) -> None:
        """Its client has read, or is gone."""
        self._slow.pop(reader, None)

    def shed(self) -> None:
        """Cut off who is slowest to read, until what waits for such clients is no more than it may be."""
        waiting = {reader: reader.unsent_bytes for reader in self._slow}
        over = sum(waiting.values()) - self._limits.sending_bytes_max
        for reader, unsent in waiting.items():
            if over <= 0:
                break
            reader.abort()
            over -= unsent
