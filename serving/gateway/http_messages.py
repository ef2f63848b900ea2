"""What an HTTP/1.1 connection is about: its bounds, a request, who hears of its client, and status lines."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from serving.gateway.http_connection import Connection

REASONS: dict[int, bytes] = {
    200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 402: b"Payment Required", 403: b"Forbidden",
    404: b"Not Found", 405: b"Method Not Allowed", 408: b"Request Timeout", 409: b"Conflict",
    413: b"Content Too Large", 414: b"URI Too Long", 415: b"Unsupported Media Type", 417: b"Expectation Failed",
    422: b"Unprocessable Content", 429: b"Too Many Requests", 431: b"Request Header Fields Too Large",
    500: b"Internal Server Error", 501: b"Not Implemented", 502: b"Bad Gateway", 503: b"Service Unavailable",
    504: b"Gateway Timeout", 505: b"HTTP Version Not Supported",
}  # fmt: skip
LENGTH_DIGITS_MAX = 9
UPGRADE = (
    501, "upgrade_not_supported",
    "protocol upgrades (h2c, websocket) and CONNECT are not supported: tell your client to speak HTTP/1.1 "
    "(in Java: HttpClient.Version.HTTP_1_1)",
)  # fmt: skip
_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d+)\r\n", re.IGNORECASE)
HEADS: dict[int, bytes] = {
    status: b"HTTP/1.1 %d %s\r\n" % (status, REASONS.get(status, b"Status")) for status in range(100, 600)
}


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one connection; sizes in bytes, times in seconds."""

    head_bytes_max: int = 32_768
    headers_max: int = 100
    target_bytes_max: int = 8_192
    body_bytes_max: int = 16 << 20
    bodies_bytes_max: int = 256 << 20  # of all bodies that are not complete, and of large ones until they are answered
    sending_bytes_max: int = 256 << 20  # of all answers that clients are slow to read
    head_seconds_max: float = 15
    body_seconds_max: float = 120
    idle_seconds_max: float = 75
    write_stall_seconds_max: float = 60
    write_buffer_bytes: int = 65_536
    connections_max: int = 10_000


class KnownHead:
    """A head that llhttp has parsed once and that comes again with another length: clients and engines repeat theirs.

    To the last byte it is the same but for that one number; whatever differs goes to the parser.
    """

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before  # up to the digits of its content-length
        self._after = after  # from their end to the empty line

    @classmethod
    def of(cls, head: bytes) -> "KnownHead | None":
        """To know this head again; None for one without a length."""
        length = _LENGTH.search(head)
        return None if length is None else cls(head[: length.start(1)], head[length.end(1) :])

    def body_of(self, data: bytes) -> bytes | None:
        """What follows the head if `data` is just one whole message under it."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return None
        end = data.find(b"\r", len(before), len(before) + LENGTH_DIGITS_MAX + 1)
        digits = data[len(before) : end]
        if not digits.isdigit() or not data.startswith(after, end):
            return None
        body = data[end + len(after) :]
        return body if len(body) == int(digits) else None


class Request:
    """One complete request. Header names are lower case."""

    __slots__ = ("bearer", "body", "chunks", "headers", "held", "keep_alive", "method", "path", "query")

    def __init__(self, method: bytes, path: bytes, query: bytes, headers: dict[bytes, bytes], keep_alive: bool) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.keep_alive = keep_alive
        self.chunks = True  # whether it may be answered in chunks
        self.body = b""
        self.held = 0  # bytes of it that count among all bodies (see `HttpMemory.let_go`)
        self.bearer: bytes | None = None  # once somebody has read it off the headers


def head_refusal(
    headers: dict[bytes, bytes], version: str, upgrade: bool, limits: HttpLimits
) -> tuple[int, str, str] | None:
    """(status, code, message) for a head that llhttp lets through and we do not; None for a good one."""
    if upgrade:
        return UPGRADE
    if version not in ("1.1", "1.0"):
        return 505, "http_version_not_supported", "speak HTTP/1.1"
    if b"host" not in headers and version == "1.1":
        return 400, "missing_host", "an HTTP/1.1 request names its host"
    coding = headers.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
        return 501, "transfer_coding_not_supported", "the only transfer coding understood is chunked"
    length = headers.get(b"content-length")
    if length is not None and int(length) > limits.body_bytes_max:
        return 413, "body_too_large", f"the body exceeds {limits.body_bytes_max} bytes"
    expect = headers.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        return 417, "expectation_failed", "the only expectation understood is 100-continue"
    return None


class Listener(Protocol):
    """Who answers a request hears about its client."""

    def client_gone(self) -> None:
        """The client disconnected before its answer was complete."""
        ...

    def client_slow(self, slow: bool) -> None:
        """The client's buffer is full (True) or has room again (False)."""
        ...


class Handler(Protocol):
    def handle(self, request: Request, reply: "Connection") -> None:
        """Answer through `reply`, now or later; one request at a time per connection."""
        ...
