"""Calls to addresses that a customer named: webhooks, images. Nothing private is reached, nothing runs for ever.

The name is looked up once; every address it stands for is checked, and the connection goes to a checked one, so a
second answer of the name server changes nothing. Redirects are looked up and checked anew.
"""

import asyncio
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx

from kit.addresses import check_address, check_url
from kit.errors import InvalidInput, TooLarge, Unavailable

LOOKUPS_MAX = 32
REDIRECTS = frozenset({301, 302, 303, 307, 308})
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host and port → addresses; raises OSError when there are none."""


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What a call may do. `allowed`: networks (CIDR) that may be called though they are not public."""

    bytes_max: int
    seconds_max: float = 10.0
    redirects_max: int = 0
    schemes: tuple[str, ...] = ("https",)
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer, whole. `url` is where it came from after redirects; header names are lower case."""

    status: int
    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether the other side says it worked."""
        return 200 <= self.status < 300


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as this machine's resolver tells them."""
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_lookups(), look_up)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


async def fetch(
    url: str,
    policy: FetchPolicy,
    *,
    method: str = "GET",
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    resolver: Resolve = resolve,
) -> Fetched:
    """One answer, whatever its status; redirects are followed only as far as the policy says.

    Raises InvalidInput (`url_invalid`, `address_private`, `too_many_redirects`, `encoding_unwanted`), TooLarge,
    Unavailable when nobody answers in time.
    """
    try:
        async with asyncio.timeout(policy.seconds_max):
            return await _follow(url, policy, method, content, dict(headers or {}), resolver)
    except TimeoutError:
        raise Unavailable(
            f"{_host(url)} did not answer within {policy.seconds_max:g} s", code="fetch_timeout"
        ) from None


async def _follow(
    url: str, policy: FetchPolicy, method: str, content: bytes | None, headers: dict[str, str], resolver: Resolve
) -> Fetched:
    for _ in range(policy.redirects_max + 1):
        answer = await _once(url, policy, method, content, headers, resolver)
        location = answer.headers.get("location")
        if answer.status not in REDIRECTS or location is None or policy.redirects_max == 0:
            return answer
        before, url = url, urljoin(url, location)
        if urlsplit(url).netloc != urlsplit(before).netloc:
            headers = {}  # they were meant for the first host
        if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
            method, content = "GET", None
    raise InvalidInput(
        f"{_host(url)} redirects more than {policy.redirects_max} times.",
        code="too_many_redirects",
        hint="Name the final address.",
    )


async def _once(
    url: str, policy: FetchPolicy, method: str, content: bytes | None, headers: dict[str, str], resolver: Resolve
) -> Fetched:
    parts = check_url(url, allowed=policy.allowed, schemes=policy.schemes)
    failure: Exception | None = None
    for address in await _addresses(parts, policy, resolver):
        try:
            return await _ask(url, parts, address, policy, method, content, headers)
        except httpx.ConnectError as error:  # not connected, so nothing was sent: the next one may answer
            failure = error
        except httpx.HTTPError as error:
            failure = error
            break
    raise Unavailable(f"{parts.hostname} does not answer: {failure}", code="fetch_failed") from failure


async def _addresses(parts: SplitResult, policy: FetchPolicy, resolver: Resolve) -> list[str]:
    host = parts.hostname or ""
    try:
        found = await resolver(host, parts.port or (443 if parts.scheme == "https" else 80))
    except OSError as error:
        raise Unavailable(f"{host} cannot be looked up: {error}", code="fetch_failed") from error
    if not found:
        raise Unavailable(f"{host} has no address", code="fetch_failed")
    return [check_address(address, allowed=policy.allowed) for address in found]


async def _ask(
    url: str,
    parts: SplitResult,
    address: str,
    policy: FetchPolicy,
    method: str,
    content: bytes | None,
    headers: dict[str, str],
) -> Fetched:
    """One exchange with one checked address; TLS still proves the host's name."""
    try:
        named = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidInput(f"{_host(url)!r} is no web address: {error}", code="url_invalid") from None
    sent = {"Accept-Encoding": "identity", **headers, "Host": named.netloc.decode("ascii")}
    extensions = {"sni_hostname": named.raw_host.decode("ascii")} if parts.scheme == "https" else {}
    pinned = named.copy_with(host=address)
    async with (
        httpx.AsyncClient(timeout=policy.seconds_max, trust_env=False, verify=_tls()) as client,
        client.stream(method, pinned, content=content, headers=sent, extensions=extensions) as answer,
    ):
        seen = {name.lower(): value for name, value in answer.headers.items()}
        if answer.status_code in REDIRECTS and policy.redirects_max:
            return Fetched(answer.status_code, url, seen)
        return Fetched(answer.status_code, url, seen, await _body(answer, policy, parts))


async def _body(answer: httpx.Response, policy: FetchPolicy, parts: SplitResult) -> bytes:
    if answer.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidInput(f"{parts.hostname} sent compressed data nobody asked for.", code="encoding_unwanted")
    told = answer.headers.get("content-length", "")
    body = bytearray()
    if not (told.isascii() and told.isdigit() and int(told) > policy.bytes_max):
        async for chunk in answer.aiter_raw():
            body += chunk
            if len(body) > policy.bytes_max:
                break
        else:
            return bytes(body)
    raise TooLarge(f"{parts.hostname} answers with more than {policy.bytes_max} bytes.", code="fetch_too_large")


@functools.cache
def _lookups() -> ThreadPoolExecutor:
    """Threads of their own: a customer's name server that does not answer keeps them for longer than any deadline."""
    return ThreadPoolExecutor(LOOKUPS_MAX, "lookup")


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # SSL_CERT_FILE adds a company's own authority


def _host(url: str) -> str:
    return url.partition("://")[2].partition("/")[0][:200]
