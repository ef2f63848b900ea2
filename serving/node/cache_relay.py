"""Between an engine's cache events and the gateways, inside the engine's API server.

vLLM publishes what its cache stores and lets go with the tokens of the prompts. That stays in a socket in a private
folder of this node; gateways are told salted hashes of the prefix blocks that they named themselves (`PROMPT`), and how
far their prompts have been computed.
"""

import asyncio
import base64
import struct
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import msgspec

from serving.node.cache_map import CacheMap, Prompt

ENDPOINT = "HELIU_ENGINE_CACHE_EVENTS"
PROMPT = b"x-heliu-prompt"
ALIVE_SECONDS = 5.0
_BEHIND_BYTES_MAX = 4 << 20
_PREFIXES_MAX = 512


class _Stored(msgspec.Struct, tag="BlockStored"):
    """`vllm.distributed.kv_events.BlockStored` without the tokens and what names them."""

    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    block_size: int
    group_idx: int | None = None
    session_id: str | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[bytes | int]
    group_idx: int | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[_Stored | _Removed | _Cleared]


_batch = msgspec.msgpack.Decoder(_Batch)


@dataclass(frozen=True, slots=True)
class Named:
    """What a gateway said of a request."""

    relay: "CacheRelay"
    request: str
    prefixes: tuple[int, ...]
    blocks: float

    def enters(self, tokens: int) -> None:
        """Its prompt has so many tokens."""
        self.relay.map.expect(self.request, Prompt(self.prefixes, self.blocks, tokens))


current: ContextVar[Named | None] = ContextVar("current", default=None)
"""The request that is being served."""


class _Listener:
    """A gateway's open answer and what it has not been sent yet."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.size = 0
        self.more = asyncio.Event()

    def tell(self, line: bytes) -> None:
        self.lines.append(line)
        self.size += len(line)
        self.more.set()

    def take(self) -> bytes:
        data = b"".join(self.lines)
        self.lines.clear()
        self.size = 0
        self.more.clear()
        return data


class CacheRelay:
    """Hears the engine and tells the gateways."""

    def __init__(self, endpoint: str) -> None:
        self.map = CacheMap()
        self._endpoint = endpoint
        self._listeners: set[_Listener] = set()
        self._hearing: asyncio.Task[None] | None = None
        self._next = 0

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "CacheRelay | None":
        """None where the engine publishes nothing."""
        return cls(environ[ENDPOINT]) if ENDPOINT in environ else None

    def start(self) -> None:
        """Hear the engine from now on."""
        if self._hearing is None:
            self._hearing = asyncio.get_running_loop().create_task(self._hear())

    def name(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Note what the request that is being served says of its prompt."""
        said = next((value for name, value in headers if name == PROMPT), None)
        current.set(None if said is None else self._read(said))

    async def tell(self) -> AsyncGenerator[bytes]:
        """All that is held, then what changes; an empty line now and then shows that this end lives."""
        listener = _Listener()
        listener.tell(self.map.all().line())
        self._listeners.add(listener)
        try:
            while True:
                yield listener.take() or b"\n"
                try:
                    async with asyncio.timeout(ALIVE_SECONDS):
                        await listener.more.wait()
                except TimeoutError:
                    pass
        finally:
            self._listeners.discard(listener)

    def _read(self, said: bytes) -> Named | None:
        try:
            request, blocks, hashes = said.split(b" ")
            packed = base64.b64decode(hashes, validate=True)
            prefixes = struct.unpack(f"<{min(len(packed) // 8, _PREFIXES_MAX)}Q", packed[: _PREFIXES_MAX * 8])
            return Named(self, request.decode("ascii"), prefixes, float(blocks))
        except (ValueError, struct.error):
            return None

    async def _hear(self) -> None:
        import zmq
        from zmq.asyncio import Context

        socket = Context.instance().socket(zmq.SUB)
        socket.connect(self._endpoint)
        socket.subscribe(b"")
        while True:
            _, number, payload = await socket.recv_multipart()
            self._take(int.from_bytes(number, "big"), payload)

    def _take(self, number: int, payload: bytes) -> None:
        if number != self._next:
            self.map.cleared()
        self._next = number + 1
        for event in _batch.decode(payload).events:
            match event:
                case _Stored(group_idx=None | 0):
                    self.map.stored(event.session_id, event.block_hashes, event.parent_block_hash, event.block_size)
                case _Removed(group_idx=None | 0):
                    self.map.removed(event.block_hashes)
                case _Cleared():
                    self.map.cleared()
                case _Stored() | _Removed():
                    pass  # of another kind of layer; the first kind tells enough
        change = self.map.take()
        if change:
            line = change.line()
            for listener in self._listeners:
                if listener.size > _BEHIND_BYTES_MAX:
                    listener.take()
                    listener.tell(self.map.all().line())
                else:
                    listener.tell(line)


def tag_requests() -> None:
    """Make vLLM's cache events say for which request a block was stored."""
    from vllm.v1.engine.async_llm import AsyncLLM

    given = AsyncLLM.add_request

    async def add_request(self: Any, request_id: str, prompt: Any, *rest: Any, **named: Any) -> Any:
        said = current.get()
        tokens = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        if said is not None and tokens:
            said.enters(len(tokens))
            named["session_id"] = said.request
        return await given(self, request_id, prompt, *rest, **named)

    AsyncLLM.add_request = add_request
