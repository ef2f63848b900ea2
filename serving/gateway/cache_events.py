"""What a replica's engine tells of its cache: which prefix blocks it holds, how far prompts sent to it are computed.

One answer without an end (serving/node/cache_relay.py), read for as long as the replica is there.
"""

import base64
import struct
from collections.abc import Sequence

import msgspec

from serving.gateway.directory import Engine
from serving.gateway.http_client import EngineConnection
from serving.prefix_index import BLOCK_BYTES, PrefixIndex
from serving.routing import Prefills

PATH = b"/heliu/cache"
LINE_BYTES_MAX = 8 << 20
SILENT_SECONDS_MAX = 20.0
RETRY_SECONDS = 2.0
NOT_OFFERED_RETRY_SECONDS = 60.0


class Change(msgspec.Struct):
    """`serving.node.cache_map.Change`."""

    cleared: bool = False
    stored: list[int] = msgspec.field(default_factory=list[int])
    removed: list[int] = msgspec.field(default_factory=list[int])
    left: dict[str, int] = msgspec.field(default_factory=dict[str, int])


_change = msgspec.json.Decoder(Change)


class Telling:
    """Takes over what one replica tells."""

    def __init__(self, replica: str, index: PrefixIndex, prefills: Prefills) -> None:
        self._replica = replica
        self._index = index
        self._prefills = prefills
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Any piece of the stream. Raises ValueError for what is not understood."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            raise ValueError("a line without an end")
        for line in lines:
            if line:  # an empty one says that the replica still lives
                self._take(_change.decode(line))

    def _take(self, change: Change) -> None:
        if change.cleared:
            self._index.forget(self._replica)
        self._index.stored(self._replica, change.stored)
        self._index.removed(self._replica, change.removed)
        for request, tokens in change.left.items():
            self._prefills.left(request, tokens)


class Hearing:
    """Listens to one engine; `engine.hears` while it does."""

    def __init__(self, engine: Engine, now: float) -> None:
        self._engine = engine
        self._heard_at = now
        self._connection: EngineConnection | None = None
        self._status = 0
        self._telling = Telling(engine.target.id, engine.prefixes, engine.target.prefills)

    def check(self, now: float) -> None:
        if now - self._heard_at > SILENT_SECONDS_MAX and self._connection is not None:
            transport = self._connection.transport
            if transport is not None:
                transport.abort()

    def begun(self, connection: EngineConnection) -> bool:
        """It is this connection."""
        self._connection = connection
        return True

    def engine_head(self, status: int, content_type: bytes) -> None:
        self._status = status

    def engine_data(self, data: bytes) -> None:
        if self._engine.pool.closed:
            raise ValueError("the replica is no longer in the route table")  # ends the connection
        if self._status == 200:
            self._heard_at = self._engine.pool.loop.time()
            self._telling.feed(data)
            if not self._engine.hears:
                self._engine.hears = True
                self._engine.prefixes.bound(self._engine.target.id, None)

    def engine_done(self) -> None:
        self._over()

    def engine_failed(self, why: str, *, began: bool, reused: bool) -> None:
        self._over()

    def fault(self, error: BaseException) -> None:
        self._over()

    def _over(self) -> None:
        engine = self._engine
        offered = engine.hears or not self._status
        engine.hears, engine.hearing = False, None
        wait = RETRY_SECONDS if offered else NOT_OFFERED_RETRY_SECONDS
        engine.hear_again_at = engine.pool.loop.time() + wait


def hear(engine: Engine, now: float) -> None:
    """Listen to an engine, unless that is being done already or was tried a moment ago."""
    if engine.hearing is not None:
        engine.hearing.check(now)
    elif now >= engine.hear_again_at:
        engine.hearing = hearing = Hearing(engine, now)
        engine.pool.send(
            b"GET %s%s HTTP/1.1\r\n%scontent-length: 0\r\n\r\n" % (engine.pool.prefix, PATH, engine.head),
            hearing,
            hearing.begun,
            fresh=True,
        )


def prompt_header(request: str, blocks: Sequence[int], prompt_bytes: int) -> bytes:
    """The header line that says to a replica that tells which prefix blocks this request's prompt is made of."""
    hashes = base64.b64encode(struct.pack(f"<{len(blocks)}Q", *blocks))
    return b"x-heliu-prompt: %s %.3f %s\r\n" % (request.encode(), prompt_bytes / BLOCK_BYTES, hashes)
