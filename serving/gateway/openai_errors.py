"""Refusals on /v1 in OpenAI's shape: `{"error": {message, type, param, code}}`. Codes are stable."""

from dataclasses import dataclass

import msgspec

from kit.errors import Forbidden, HeliuError, NoMoney, RateLimited, Refused, Unauthenticated

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal on /v1: HTTP status, stable code, a sentence, the parameter it is about, when to try again."""

    status: int
    code: str
    message: str
    param: str | None = None
    type: str | None = None
    retry_after_seconds: int | None = None

    def body(self, *, anthropic: bool = False) -> bytes:
        """The JSON body, in OpenAI's shape or in Anthropic's."""
        if anthropic:
            kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
            return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": self.message}})
        return error_body(self.status, self.code, self.message, param=self.param, type=self.type)

    def headers(self) -> bytes:
        """Header lines beside the body. SDKs try again after a 429 unless they are told that it is of no use."""
        if self.retry_after_seconds is not None:
            return b"retry-after: %d\r\n" % self.retry_after_seconds
        return b"x-should-retry: false\r\n" if self.status == 429 else b""


NO_KEY = Refusal(401, "missing_api_key", "send your API key as `Authorization: Bearer hl_…`")

UNKNOWN_KEY = Refusal(401, "invalid_api_key", "this API key is unknown, expired or revoked")

INTERNAL = Refusal(500, "internal_error", "the gateway failed on this request, and has noted where; try again")

NO_ANSWER = Refusal(502, "engine_failed", "the model's engine answered what nobody can read; try again")

UNAVAILABLE = Refusal(503, "engine_unavailable", "the model's replicas do not answer", retry_after_seconds=2)

HOLDS_TOO_MUCH = Refusal(
    503, "overloaded", "this gateway holds as much in memory as it may; try again", retry_after_seconds=5
)

ENCODED = Refusal(415, "content_encoding_not_supported", "send the body as it is, without a Content-Encoding")

ADDRESS_NOT_ALLOWED = Refusal(403, "ip_not_allowed", "this key may not be used from this address")


def error_body(status: int, code: str, message: str, *, param: str | None = None, type: str | None = None) -> bytes:
    """The JSON body of a refusal with this status."""
    kind = type or _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def refusal_for(error: HeliuError) -> Refusal:
    """What the control plane refused, as /v1 says it."""
    message = error.message if error.hint is None else f"{error.message} {error.hint}"
    match error:
        case Unauthenticated():
            return Refusal(401, "invalid_api_key", message)
        case Forbidden():
            return Refusal(403, error.code, message)
        case NoMoney():
            code = "insufficient_quota" if error.code == NoMoney.default_code else error.code
            return Refusal(402, code, message)
        case Refused():
            return Refusal(429, error.code, message, type="insufficient_quota")
        case RateLimited():
            return Refusal(429, error.code, message, retry_after_seconds=int(error.retry_after_seconds or 1))
        case _:
            return Refusal(503, error.code, message, retry_after_seconds=2)
