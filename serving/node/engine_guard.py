"""In front of vLLM: without this start's key nothing but the health check answers, and what we do not use is not there.

Only `CACHE` is ours: it tells gateways what the engine's cache holds.

vLLM's own key guards /v1 only; /invocations, /inference/v1/generate and /adapters would answer anybody on the node.
"""

import asyncio
import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.node.cache_relay import CacheRelay

KEY = "VLLM_API_KEY"
CACHE = "/heliu/cache"
_OPEN = frozenset({"/health"})
_KEYED = ("/v1/", "/tokenize", "/detokenize", "/metrics", "/load", "/version", CACHE)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class OnlyWithKey:
    """ASGI middleware; the key is read from the environment."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._digest = hashlib.sha256(os.environ[KEY].encode()).digest()
        self._relay = CacheRelay.of(os.environ)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        relay = self._relay
        if relay is not None and scope["type"] == "http":
            relay.start()
        if scope["type"] == "lifespan" or scope.get("path") in _OPEN:
            await self._app(scope, receive, send)
        elif scope["type"] != "http" or not str(scope["path"]).startswith(_KEYED):
            await _refuse(send, 404)
        elif not self._has_key(scope):
            await _refuse(send, 401)
        elif scope["path"] == CACHE:
            await (_refuse(send, 404) if relay is None else _tell(relay, receive, send))
        else:
            if relay is not None:
                relay.name(scope["headers"])
            await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                return hmac.compare_digest(hashlib.sha256(value[7:]).digest(), self._digest)
        return False


async def _tell(relay: CacheRelay, receive: Receive, send: Send) -> None:
    """An answer without an end; it is over soon after its reader has gone."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]})
    gone = asyncio.create_task(_until_gone(receive))
    try:
        async for data in relay.tell():
            if gone.done():
                return
            await send({"type": "http.response.body", "body": data, "more_body": True})
    finally:
        gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
