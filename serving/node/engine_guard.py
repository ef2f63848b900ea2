"""In front of vLLM: without this start's key nothing but the health check answers, and what we do not use is not there.

vLLM's own key guards /v1 only; /invocations, /inference/v1/generate and /adapters would answer anybody on the node.
"""

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

KEY = "VLLM_API_KEY"
_OPEN = frozenset({"/health"})
_KEYED = ("/v1/", "/tokenize", "/detokenize", "/metrics", "/load", "/version")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class OnlyWithKey:
    """ASGI middleware; the key is read from the environment."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._digest = hashlib.sha256(os.environ[KEY].encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in _OPEN:
            await self._app(scope, receive, send)
        elif scope["type"] != "http" or not str(scope["path"]).startswith(_KEYED):
            await _refuse(send, 404)
        elif not self._has_key(scope):
            await _refuse(send, 401)
        else:
            await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                return hmac.compare_digest(hashlib.sha256(value[7:]).digest(), self._digest)
        return False


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
