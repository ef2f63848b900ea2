"""A gateway in the test's own loop, over control-plane ports that live in memory; and raw HTTP to talk to it."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kit.errors import Refused, Unavailable
from kit.proxies import TrustedProxies
from quotas.vocabulary import (
    FirmId,
    FirmState,
    KeyGrant,
    KeyId,
    PlaceAsk,
    PlaceLease,
    ProjectId,
    RateAsk,
    RateLease,
    RateLimits,
    Scope,
)
from serving.admission import Lease, Rate, TopUp
from serving.gateway.server import RunningGateway, build
from serving.gateway.settings import GatewaySettings
from serving.metering import Closed, Outcome, Tokens
from serving.vocabulary import (
    AdapterId,
    AdapterRoute,
    Capability,
    DeploymentId,
    DeploymentKind,
    DeploymentRoute,
    EngineStartId,
    ModelName,
    ModelRoute,
    ReplicaId,
    ReplicaRoute,
    RouteTable,
)
from tests.support.until import until_async
from tests.support.usage import closed_requests

BORN = datetime(2026, 11, 1, tzinfo=UTC)
KEY = "hl_key1_secret"
MODEL = "mock-model"
ANSWER_SECONDS = 60
"""Of silence until a test gives up; a real engine on a busy machine may take ten for a few tokens."""


def grant(number: int = 1, *, firm: int = 1, **changes: Any) -> KeyGrant:
    """What a key allows: everything, unless changed."""
    plain = KeyGrant(
        KeyId(f"key_{number}"), FirmId(f"firm_{firm}"), ProjectId(f"prj_{firm}"), frozenset({Scope.INFERENCE}), None,
        None, None, None, None, None, FirmState.ACTIVE,
    )  # fmt: skip
    return replace(plain, **changes)


@dataclass
class FakePlane:
    """The control plane's ports in memory. Money is one number per firm; leases take from it."""

    grants: dict[str, KeyGrant] = field(default_factory=lambda: {KEY: grant()})
    engines: list[str] = field(default_factory=list)
    adapters: dict[tuple[str, str], str] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    money: dict[str, int] = field(default_factory=lambda: {"firm_1": 10**12, "firm_2": 10**12})
    rate: Rate | None = field(default_factory=lambda: Rate(1_000_000, 500_000, 2_000_000))
    tokens_left: int = 10**9
    rule: Refused | None = None
    context: int = 2048
    deprecated_at: datetime | None = None
    retires_at: datetime | None = None
    capabilities: frozenset[Capability] = frozenset(Capability)
    max_concurrency: int = 64
    records: list[Closed] = field(default_factory=list)
    dedicated_to: str | None = None
    down: bool = False
    asked_adapters: set[str] = field(default_factory=set)
    notices: "asyncio.Queue[str]" = field(default_factory=asyncio.Queue)
    generation: int = 0
    windows: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    elsewhere: tuple[int, int] = (0, 0)
    places: dict[str, int] = field(default_factory=dict)
    places_elsewhere: int = 0

    def _up(self) -> None:
        if self.down:
            raise Unavailable("the database does not answer")

    async def load(self, bearer: str) -> KeyGrant | None:
        self._up()
        return self.grants.get(bearer)

    async def reload(self, key_ids: Sequence[KeyId]) -> dict[KeyId, KeyGrant]:
        self._up()
        return {grant.key_id: grant for grant in self.grants.values() if grant.key_id in key_ids}

    async def over(self, key_ids: Sequence[KeyId]) -> set[KeyId]:
        self._up()
        return set(key_ids) - {grant.key_id for grant in self.grants.values()}

    async def key_changes(self) -> AsyncIterator[str]:
        yield "*"
        while True:
            yield await self.notices.get()

    async def table(self) -> tuple[RouteTable, dict[str, Rate]]:
        self._up()
        name = ModelName(MODEL)
        kind = DeploymentKind.SHARED if self.dedicated_to is None else DeploymentKind.DEDICATED
        replicas = tuple(
            ReplicaRoute(
                ReplicaId(f"rep_{n}"), DeploymentId("dep_1"), name, url, "engine-secret", EngineStartId(f"eng_{n}"),
                MODEL, frozenset(map(AdapterId, self.loaded)), self.max_concurrency, 0,
            )
            for n, url in enumerate(self.engines)
        )  # fmt: skip
        adapters = {
            names: AdapterRoute(AdapterId(id), names[1], names[0], name, BORN) for names, id in self.adapters.items()
        }
        model = ModelRoute(
            name, self.context, self.capabilities, BORN, "platform", self.deprecated_at, self.retires_at, "7"
        )
        deployment = DeploymentRoute(DeploymentId("dep_1"), name, kind, self.dedicated_to)
        seen = repr(
            (self.engines, sorted(self.loaded), self.adapters, self.max_concurrency, self.dedicated_to, self.retires_at)
        )
        version = hashlib.sha256(seen.encode()).hexdigest()
        table = RouteTable(version, {name: model}, adapters, {deployment.id: deployment}, replicas)
        return table, {} if self.rate is None else {MODEL: self.rate}

    async def route_changes(self) -> AsyncIterator[str]:
        yield "*"
        await asyncio.Event().wait()

    async def wanted(self, adapters: dict[str, datetime]) -> None:
        self.asked_adapters |= adapters.keys()

    async def grow(
        self, payer: str, lease: Lease | None, *, least: TopUp, wanted: int, tokens_wanted: int
    ) -> Lease | None:
        self._up()
        firm_id = payer.partition(" ")[0]
        granted = min(wanted, self.money.get(firm_id, 0))
        tokens = min(tokens_wanted, self.tokens_left)
        if granted < least.missing or tokens < least.tokens:
            return lease
        self.money[firm_id] -= granted
        self.tokens_left -= tokens
        until = int(time.time() * 1000) + 360_000
        if lease is None:
            return Lease(f"lse_{firm_id}", payer, granted, until, tokens_left=tokens)
        lease.left += granted
        lease.tokens_left += tokens
        lease.expires_ms = until
        return lease

    async def renew(self, lease: Lease) -> None:
        self._up()
        lease.expires_ms = int(time.time() * 1000) + 360_000

    async def shrink(self, lease: Lease, *, keep: int, keep_tokens: int) -> None:
        self._up()

    async def rule_against(self, payer: str, missing: TopUp) -> Refused | None:
        return self.rule

    async def recall(self, firm_id: str) -> bool:
        return False

    async def recalls(self) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""

    async def lease_windows(self, minute: int, asks: Sequence[RateAsk]) -> list[RateLease]:
        self._up()
        return [self._window(minute, ask, give_back=False) for ask in asks]

    async def return_windows(self, minute: int, keeps: Sequence[RateAsk]) -> list[RateLease]:
        self._up()
        return [self._window(minute, keep, give_back=True) for keep in keeps]

    def _window(self, minute: int, ask: RateAsk, *, give_back: bool) -> RateLease:
        """A window of which other gateways have `elsewhere`."""
        limit = self._limit_of(ask.subject)
        had = self.windows.get((minute, ask.subject), (0, 0))
        limits = (limit.requests_per_minute, limit.tokens_per_minute)
        has = [
            min(mine, wanted) if give_back else max(mine, wanted if limit is None else min(wanted, limit - taken))
            for mine, wanted, limit, taken in zip(had, (ask.requests, ask.tokens), limits, self.elsewhere, strict=True)
        ]
        self.windows[minute, ask.subject] = (has[0], has[1])
        free = [
            None if limit is None else max(0, limit - mine - taken)
            for limit, mine, taken in zip(limits, has, self.elsewhere, strict=True)
        ]
        return RateLease(ask.subject, minute, "me", has[0], has[1], free[0], free[1])

    def _limit_of(self, subject: str) -> RateLimits:
        for grant in self.grants.values():
            if grant.key_id == subject:
                return RateLimits(grant.requests_per_minute, grant.tokens_per_minute, grant.requests_at_once)
            for model, limits in grant.rates:
                if subject == (f"{grant.firm_id}/{model}" if model else grant.firm_id):
                    return limits
        return RateLimits()

    async def recall_window(self, subject: str, minute: int) -> bool:
        self._up()
        return False

    async def lease_places(self, asks: Sequence[PlaceAsk]) -> list[PlaceLease]:
        """Places of which other gateways have `places_elsewhere`."""
        self._up()
        leases: list[PlaceLease] = []
        for ask in asks:
            had, limit = self.places.get(ask.subject, 0), self._limit_of(ask.subject).requests_at_once
            if limit is not None:
                has = max(min(had, ask.used), min(max(had, ask.wanted), limit - self.places_elsewhere))
                self.places[ask.subject] = has
                leases.append(PlaceLease(ask.subject, has, limit - has - self.places_elsewhere, False, False))
        return leases

    async def return_places(self, keeps: Sequence[PlaceAsk]) -> list[PlaceLease]:
        self._up()
        for keep in keeps:
            self.places[keep.subject] = min(self.places.get(keep.subject, 0), keep.used)
        return []

    async def recall_places(self, subject: str) -> bool:
        self._up()
        return False

    async def forget_places(self) -> None:
        self.places.clear()

    async def limit_recalls(self) -> AsyncIterator[tuple[str, int | None]]:
        await asyncio.Event().wait()
        yield "", 0

    async def ingest(self, lines: Sequence[bytes]) -> None:
        self._up()
        known = {record.subject.id for record in self.records}
        self.records += [record for record in closed_requests(lines) if record.subject.id not in known]

    async def spend(self, grant: KeyGrant, now: datetime) -> dict[str, object]:
        return {"key_id": grant.key_id}


@asynccontextmanager
async def running(
    plane: FakePlane, folder: Path, *, port: int = 0, proxies: TrustedProxies | None = None, **settings: Any
) -> AsyncIterator[RunningGateway]:
    """A listening gateway over `plane`, stopped afterwards."""
    chosen = GatewaySettings(**{"metrics_port": 0, "drain_seconds": 2, "ship_every_seconds": 0.02} | settings)
    gateway = build(
        chosen,
        folder,
        keys=plane,
        routes=plane,
        treasury=plane,
        rates=plane,
        places=plane,
        ledger=plane,
        spending=plane,
        proxies=proxies,
    )
    await gateway.start("127.0.0.1", port)
    try:
        deadline = time.monotonic() + 5
        while gateway.gateway.directory.table is None and not plane.down:
            assert time.monotonic() < deadline, "the gateway read no route table"
            await asyncio.sleep(0.01)
        yield gateway
    finally:
        await gateway.stop()


@dataclass
class Answer:
    """A parsed HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool = True

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of each server-sent event, decoded but for [DONE]."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


class RawClient:
    """One connection over which a test says exactly what it wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> "RawClient":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer."""
        raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), ANSWER_SECONDS)
        first, *lines = raw.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        return int(first.split(" ")[1]), headers

    async def answer(self) -> Answer:
        """The next whole answer."""
        status, headers = await self.head()
        if status == 100:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") != "chunked":
            length = int(headers.get("content-length", "0"))
            return Answer(status, headers, await asyncio.wait_for(self.reader.readexactly(length), ANSWER_SECONDS))
        body = b""
        try:
            while chunk := await self.chunk():
                body += chunk
        except asyncio.IncompleteReadError:
            return Answer(status, headers, body, complete=False)
        return Answer(status, headers, body)

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        size = int((await asyncio.wait_for(self.reader.readuntil(b"\r\n"), ANSWER_SECONDS)).strip(), 16)
        return (await asyncio.wait_for(self.reader.readexactly(size + 2), ANSWER_SECONDS))[:-2]

    async def closed(self) -> bool:
        """Whether the server has closed its side, with nothing more to read."""
        return await asyncio.wait_for(self.reader.read(), ANSWER_SECONDS) == b""

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, BrokenPipeError):
            pass


def request(body: Any, *, path: str = "/v1/chat/completions", key: str = KEY, extra: str = "") -> bytes:
    """A POST as clients send it."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\n{extra}Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def chat(text: str = "hello", *, model: str = MODEL, **more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


async def post(port: int, body: Any, **how: Any) -> Answer:
    """One request on a connection of its own."""
    client = await RawClient.to(port)
    client.send(request(body, **how))
    try:
        return await client.answer()
    finally:
        await client.close()


async def billed(plane: FakePlane, count: int = 1) -> list[tuple[Tokens, Outcome]]:
    """What was shipped, once there are `count` records."""

    async def shipped() -> bool:
        return len(plane.records) >= count

    await until_async(shipped, seconds=5, what="the usage to be shipped")
    return [(record.tokens, record.outcome) for record in plane.records]
