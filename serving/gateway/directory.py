"""Which model a firm means by a name, and the replicas that can answer: the route table as the gateway holds it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from quotas.vocabulary import PLATFORM_FIRM
from serving.admission import FREE, Rate
from serving.gateway.http_client import EnginePool
from serving.gateway.lifetimes import notices, retires_ms
from serving.prefix_index import PrefixIndex
from serving.routing import Breaker, Target
from serving.vocabulary import AdapterRoute, DeploymentKind, ModelRoute, ReplicaRoute, RouteTable

if TYPE_CHECKING:
    from serving.gateway.waiting import Lines

PREFIX_BLOCKS = 8_192
"""Blocks remembered of each replica's cache, 1 KiB of prompt text each: what some two million tokens of cache hold."""


class Hearing(Protocol):
    """An open answer in which a replica tells of its cache (cache_events.py)."""

    def check(self, now: float) -> None:
        """End it when it has been silent for too long."""
        ...


@dataclass(slots=True)
class Engine:
    """A replica this gateway can reach: how, and what the router knows about it."""

    route: ReplicaRoute
    target: Target
    pool: EnginePool
    head: bytes  # header lines of every request to it
    prefixes: PrefixIndex  # of its service
    looking: bool = False  # its metrics are being read
    hearing: Hearing | None = None  # what its cache tells is being read
    hears: bool = False  # and it tells
    hear_again_at: float = 0.0


@dataclass(slots=True)
class Service:
    """The replicas that serve one model to one circle: everybody (`firm_id` None), or one firm that pays for them."""

    model: ModelRoute
    firm_id: str | None
    engines: dict[str, Engine] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    notices: bytes = b""  # header lines about the model's end
    retires_ms: int = 0  # 0: never
    prefixes: PrefixIndex = field(default_factory=lambda: PrefixIndex(PREFIX_BLOCKS))
    lines: "Lines | None" = None  # who waits, once somebody did

    @property
    def dedicated(self) -> bool:
        """Tokens of a dedicated service are metered at price zero."""
        return self.firm_id is not None


class Destination(NamedTuple):
    """What a name means to one firm."""

    service: Service
    adapter: AdapterRoute | None
    rate: Rate | None  # None: nobody has set a price, so nothing can be sold


class Directory:
    """The current route table; `update` keeps what is known about replicas that stay."""

    def __init__(self) -> None:
        self.version = ""
        self.table: RouteTable | None = None
        self.rates: Mapping[str, Rate] = {}
        self.services: dict[tuple[str, str | None], Service] = {}
        self._engines: dict[str, Engine] = {}
        self._found: dict[tuple[str, str], Destination] = {}

    def update(self, table: RouteTable, rates: Mapping[str, Rate]) -> bool:
        """Take over a newer table; whether anything that routing depends on differs."""
        self.rates = dict(rates)
        self._found.clear()
        if table.version == self.version and self.table is not None:
            return False
        self.version, self.table = table.version, table
        before, self._engines = self._engines, {}
        services: dict[tuple[str, str | None], Service] = {}
        for deployment in table.deployments.values():
            model = table.models.get(deployment.model)
            if model is not None:
                firm_id = deployment.firm_id if deployment.kind is DeploymentKind.DEDICATED else None
                # A circle that is already being used stays the same object, so that who waits in it is found again.
                service = self.services.get((model.name, firm_id)) or Service(model, firm_id)
                service.model, service.engines, service.targets = model, {}, []
                service.notices, service.retires_ms = notices(model), retires_ms(model)
                services[model.name, firm_id] = service
        for route in table.replicas:
            deployment = table.deployments.get(route.deployment_id)
            if deployment is None:
                continue
            firm_id = deployment.firm_id if deployment.kind is DeploymentKind.DEDICATED else None
            service = services.get((route.model, firm_id))
            if service is not None:
                engine = _engine(route, before.get(route.id), service.prefixes)
                self._engines[route.id] = service.engines[route.id] = engine
                service.targets.append(engine.target)
        for id, engine in before.items():
            if self._engines.get(id) is not engine:
                engine.pool.close()
                for service in services.values():
                    service.prefixes.forget(id)
        for name, gone in self.services.items():
            if name not in services:
                gone.engines, gone.targets = {}, []  # who still waits there is sent nowhere
        self.services = services
        return True

    @property
    def engines(self) -> Collection[Engine]:
        """Every replica this gateway can reach."""
        return self._engines.values()

    def close(self) -> None:
        """Cut every connection to an engine."""
        for engine in self._engines.values():
            engine.pool.abort()

    def find(self, firm_id: str, name: str, allowed: frozenset[str] | None) -> Destination | None:
        """What `name` means to this firm; None for a name that is unknown, foreign, or not allowed to the key."""
        if allowed is not None and name not in allowed:
            return None
        return self._found.get((firm_id, name)) or self._look_up(firm_id, name)

    def _look_up(self, firm_id: str, name: str) -> Destination | None:
        if self.table is None:
            return None
        adapter = self.table.adapters.get((firm_id, name))
        base = name if adapter is None else adapter.base_model
        service = self.services.get((base, firm_id)) or self.services.get((base, None))
        if service is None:
            return None
        free = service.dedicated or firm_id == PLATFORM_FIRM  # the platform does not charge itself
        found = self._found[firm_id, name] = Destination(service, adapter, FREE if free else self.rates.get(base))
        return found

    def names(self, firm_id: str, allowed: frozenset[str] | None) -> list[tuple[str, ModelRoute, AdapterRoute | None]]:
        """Every name this firm may use: served base models, then its own adapters on them."""
        if self.table is None:
            return []
        served = {model for model, owner in self.services if owner in (None, firm_id)}
        found: list[tuple[str, ModelRoute, AdapterRoute | None]] = [
            (name, route, None) for name, route in sorted(self.table.models.items()) if name in served
        ]
        found += [
            (name, self.table.models[adapter.base_model], adapter)
            for (owner, name), adapter in sorted(self.table.adapters.items())
            if owner == firm_id and adapter.base_model in served
        ]
        return [entry for entry in found if allowed is None or entry[0] in allowed]


def _engine(route: ReplicaRoute, before: Engine | None, prefixes: PrefixIndex) -> Engine:
    capacity = route.max_concurrency + route.max_waiting
    if before is not None and before.route.engine_start == route.engine_start and before.route.url == route.url:
        before.route = route
        before.target.adapters = route.adapters_ready
        before.target.capacity = capacity
        return before
    pool = EnginePool(route.url)
    head = b"host: %s\r\nauthorization: Bearer %s\r\ncontent-type: application/json\r\n" % (
        pool.authority,
        route.engine_key.encode(),
    )
    return Engine(route, Target(route.id, route.adapters_ready, capacity, breaker=Breaker()), pool, head, prefixes)
