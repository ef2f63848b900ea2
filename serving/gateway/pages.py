"""The paths that are answered without an engine: health, the models a key may use, what it has spent."""

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import msgspec

from kit.clock import utc_now
from kit.errors import HeliuError
from quotas.vocabulary import KeyGrant
from serving.gateway.endpoints import ENDPOINTS
from serving.gateway.http_connection import Connection
from serving.gateway.http_messages import Request
from serving.gateway.openai_errors import ADDRESS_NOT_ALLOWED, NO_KEY, UNKNOWN_KEY, Refusal, refusal_for
from serving.gateway.ports import Spending

if TYPE_CHECKING:
    from serving.gateway.gateway import Gateway


_PATHS = ENDPOINTS.keys() | {b"/v1/models", b"/v1/usage"}
_SLASHES = re.compile(rb"//+")


class Pages:
    """Answers what is no endpoint of an engine."""

    def __init__(self, gateway: "Gateway", spending: Spending) -> None:
        self._gateway = gateway
        self._spending = spending

    def handle(self, request: Request, reply: Connection) -> None:
        """Start answering one request."""
        gateway, path = self._gateway, request.path
        if path == b"/healthz":
            reply.respond(200, b'{"status":"ok"}')
        elif path == b"/readyz":
            ready = (
                self._gateway.directory.table is not None
                and not self._gateway.draining
                and self._gateway.closed() is None
            )
            reply.respond(200 if ready else 503, b'{"status":"ready"}' if ready else b'{"status":"not_ready"}')
        elif path == b"/v1/models" or path.startswith(b"/v1/models/") or path == b"/v1/usage":
            if request.method in (b"GET", b"HEAD"):
                gateway.spawn(self._for_key(request, reply), lambda error: gateway.fault(error, request, reply))
            else:
                self._gateway.answer(
                    reply, Refusal(405, "method_not_allowed", "this path takes GET"), b"allow: GET, HEAD\r\n"
                )
        else:
            self._gateway.answer(reply, _unknown(path))

    async def _for_key(self, request: Request, reply: Connection) -> None:
        """What a key may read about itself."""
        bearer = bearer_of(request)
        try:
            grant = (self._gateway.keys.cached(bearer) or await self._gateway.keys.load(bearer)) if bearer else None
            if grant is None:
                self._gateway.answer(reply, UNKNOWN_KEY if bearer else NO_KEY)
            elif not self._gateway.allows_address(grant, request, reply):
                self._gateway.answer(reply, ADDRESS_NOT_ALLOWED)
            elif request.path == b"/v1/usage":
                spent = await self._spending.spend(grant, utc_now())
                reply.respond(200, msgspec.json.encode(spent))
            else:
                self._models(request, reply, grant)
        except HeliuError as error:
            self._gateway.answer(reply, refusal_for(error))

    def _models(self, request: Request, reply: Connection, grant: KeyGrant) -> None:
        rows = [
            {
                "id": name,
                "object": "model",
                "created": int((model if adapter is None else adapter).created_at.timestamp()),
                "owned_by": model.owner if adapter is None else adapter.firm_id,
                "root": model.name,
                "parent": None if adapter is None else model.name,
                "max_model_len": model.context_tokens,
                "version": model.revision,
                "deprecated_at": model.deprecated_at,
                "retires_at": model.retires_at,
            }
            for name, model, adapter in self._gateway.directory.names(grant.firm_id, grant.models)
            if model.retires_at is None or model.retires_at > utc_now()
        ]
        if request.path == b"/v1/models":
            reply.respond(200, msgspec.json.encode({"object": "list", "data": rows}))
            return
        wanted = request.path.removeprefix(b"/v1/models/").decode("utf-8", "replace")
        found = next((row for row in rows if row["id"] == wanted), None)
        if found is None:
            self._gateway.answer(
                reply, Refusal(404, "model_not_found", f"the model `{wanted}` does not exist or is not yours", "model")
            )
        else:
            reply.respond(200, msgspec.json.encode(found))


def plain_path(path: bytes) -> bytes:
    """The path that a request target of another form names: an absolute one (RFC 9112 §3.2.2), one with escapes.

    Slashes at the end or doubled come from base URLs that end in one, and say nothing.
    """
    if path[:8].lower().startswith((b"http://", b"https://")):
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return _SLASHES.sub(b"/", unquote_to_bytes(path)).removesuffix(b"/") or b"/"


def _unknown(path: bytes) -> Refusal:
    """No such path; what a client most likely meant."""
    shown = path[:200].decode("utf-8", "replace")
    if b"/v1" + path in _PATHS:
        hint = "the base URL ends in /v1"
    elif path.startswith(b"/v1/v1/"):
        hint = "the base URL has one /v1 too many (Anthropic's clients add it themselves)"
    else:
        hint = "the API is under /v1, and GET /v1/models lists what is served"
    return Refusal(404, "unknown_path", f"there is no `{shown}` here; {hint}")


def bearer_of(request: Request) -> bytes:
    """The key a request carries, in either header; empty for none."""
    if request.bearer is None:
        request.bearer = _bearer(request)
    return request.bearer


def _bearer(request: Request) -> bytes:
    authorization = request.headers.get(b"authorization")
    if authorization is None:
        return request.headers.get(b"x-api-key", b"").strip()
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""
