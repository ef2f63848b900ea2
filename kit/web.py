"""The one place that knows HTTP: the app factory, problem details (RFC 9457), body limits, request ids."""

import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from time import perf_counter
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, PydanticCustomError, PydanticSerializationError, core_schema, to_json
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kit import errors
from kit.db import is_conflict
from kit.ids import new_id
from kit.proxies import NOBODY, TrustedProxies

log = logging.getLogger(__name__)

STATUS: dict[type[errors.HeliuError], int] = {
    errors.InvalidInput: 422,
    errors.TooLarge: 413,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.NoMoney: 402,
    errors.Refused: 409,
    errors.RateLimited: 429,
    errors.Unavailable: 503,
}

REQUESTS = Counter("heliu_http_requests_total", "HTTP requests answered", ["method", "route", "status"])
SECONDS = Histogram("heliu_http_request_seconds", "Time to answer an HTTP request", ["method", "route"])

_KIND = re.compile(r"(list|function-[a-z]+)\[.*\]")
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Body(BaseModel):
    """What a request may carry: unknown fields and silent conversions are refused."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        str_strip_whitespace=True,
        hide_input_in_errors=True,  # an error may end in a log, and what was sent may be a password
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read as JSON what FastAPI hands over parsed: strictly as Python no text is an enum, an instant or a tuple."""

        def read(value: Any, strictly: ValidatorFunctionWrapHandler) -> Any:
            if not isinstance(value, dict):
                return strictly(value)
            written = _written(value)
            try:
                return strictly(value)
            except ValidationError:
                return cls.model_validate_json(written)

        model = handler(source)
        return core_schema.json_or_python_schema(model, core_schema.no_info_wrap_validator_function(read, model))


def _written(value: dict[Any, Any]) -> bytes:
    """`value` as JSON. Refuses text that no database can keep: NUL and half a surrogate pair."""
    try:
        written = to_json(value, fallback=str)
    except PydanticSerializationError:
        raise PydanticCustomError("text", "Text must be valid Unicode") from None
    if _ESCAPED_NUL.search(written):
        raise PydanticCustomError("text", "Text must not contain the character NUL")
    return written


class View(BaseModel):
    """What an answer carries."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


def create_app(
    title: str,
    version: str,
    routers: Sequence[APIRouter],
    *,
    body_limit_bytes: int,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    unlimited_prefixes: Sequence[str] = (),
    proxies: TrustedProxies | None = None,
    **options: Any,
) -> FastAPI:
    """A FastAPI app with Heliu's manners. Routes under `unlimited_prefixes` bound their own bodies."""
    app = FastAPI(title=title, version=version, lifespan=lifespan, **options)
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(errors.HeliuError, _on_heliu_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(DBAPIError, _on_database_error)
    app.add_exception_handler(Exception, _on_surprise)
    app.add_middleware(RequestEnvelope, body_limit_bytes=body_limit_bytes, unlimited=tuple(unlimited_prefixes))
    if proxies is not None:
        app.add_middleware(BehindProxies, proxies=proxies)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


def status_of(error: errors.HeliuError) -> int:
    """HTTP status for an error: that of its nearest known class."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def bearer_of(request: Request) -> str | None:
    """The bearer token of a request, or None when it carries none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    hint: str | None = None,
    retryable: bool = False,
    headers: dict[str, str] | None = None,
    **members: Any,
) -> JSONResponse:
    """Problem details (RFC 9457) with Heliu's `code`, `hint` and `retryable`."""
    content = {
        "type": f"https://heliu.dev/problems/{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "hint": hint,
        "retryable": retryable,
        **members,
    }
    return JSONResponse(content, status, headers, media_type="application/problem+json")


async def _on_heliu_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.HeliuError)
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return problem(
        status_of(error),
        error.code,
        error.message,
        hint=error.hint,
        retryable=error.retryable,
        headers=headers,
        **({"details": error.details} if error.details else {}),
    )


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    faults = [{"field": _field(fault["loc"]), "message": fault["msg"]} for fault in found]
    deepest = max((len(fault["loc"]) for fault in found), default=0)  # of what may be this or that: what came furthest
    told = (one for one, fault in zip(faults, found, strict=True) if len(fault["loc"]) == deepest)
    first = next(told, {"field": "", "message": "it does not fit the schema"})
    where = f"{first['field']}: " if first["field"] else ""
    return problem(
        422, "invalid_input", where + first["message"], hint="see /docs for what this route takes", faults=faults
    )


def _field(place: Sequence[str | int]) -> str:
    """Where it is, without what pydantic calls the kinds that it may be."""
    return ".".join(str(part) for part in place if part != "body" and not _KIND.fullmatch(str(part)))


async def _on_http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, errors.HeliuError):  # FastAPI hides what broke off the reading of a body
        return await _on_heliu_error(_request, error.__cause__)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return problem(error.status_code, code, str(error.detail), headers=dict(error.headers or {}))


async def _on_database_error(_request: Request, error: Exception) -> Response:
    """A deadlock, a serialization failure or a lock that nobody let go undid the transaction; again it may succeed."""
    assert isinstance(error, DBAPIError)
    if not is_conflict(error):
        raise error
    log.warning("a conflict in the database reached a caller", exc_info=error)
    return problem(
        503,
        "busy",
        "others are changing the same things at this moment",
        hint="send it again",
        retryable=True,
        headers={"Retry-After": "1"},
    )


async def _on_surprise(request: Request, error: Exception) -> Response:
    log.error("unhandled error", exc_info=error)
    repeatable = request.method in ("GET", "HEAD") or "idempotency-key" in request.headers
    hint = "send it again" if repeatable else "look whether it was done before you send it again"
    return problem(500, "internal", "something broke on our side", hint=hint, retryable=repeatable)


class BehindProxies:
    """Names the client that a trusted proxy passes on in the place of the proxy."""

    def __init__(self, app: ASGIApp, *, proxies: TrustedProxies) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on whatever comes."""
        peer = scope.get("client")
        if peer is not None and "headers" in scope:
            said = b", ".join(value for name, value in scope["headers"] if name == self._proxies.header)
            client = self._proxies.client_of(peer[0], said)
            if client != peer[0]:
                scope = {**scope, "client": None if client == NOBODY else (client, 0)}
        await self._app(scope, receive, send)


class RequestEnvelope:
    """Around every request: an id, a limit on its body, a count and a time. Bodies are never logged."""

    def __init__(self, app: ASGIApp, *, body_limit_bytes: int, unlimited: tuple[str, ...]) -> None:
        self._app = app
        self._limit = body_limit_bytes
        self._unlimited = unlimited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; anything else passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, request_id = perf_counter(), 500, new_id("req")
        limited = not scope["path"].startswith(self._unlimited) if self._unlimited else True
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        seen = 0

        async def bounded_receive() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if limited and seen > self._limit:
                raise errors.TooLarge(f"the body is over {self._limit} bytes", hint="send less, or use an upload")
            return message

        async def tagged_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
                answer = problem(422, "invalid_input", "the address contains the character NUL")
                await answer(scope, receive, tagged_send)
            elif limited and declared.isdigit() and int(declared) > self._limit:
                answer = problem(413, "too_large", f"the body is over {self._limit} bytes", hint="send less")
                await answer(scope, receive, tagged_send)
            else:
                await self._app(scope, bounded_receive, tagged_send)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            REQUESTS.labels(scope["method"], route, status).inc()
            SECONDS.labels(scope["method"], route).observe(perf_counter() - started)


async def chunks_of(request: Request) -> AsyncIterator[bytes]:
    """The body of a request as a stream."""
    async for chunk in request.stream():
        if chunk:
            yield chunk
