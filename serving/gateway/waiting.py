"""Requests that no replica can take now: they wait, fairly among firms, until one can.

Two lines per service. In `places` wait those that some replica will serve as soon as it has room; who comes later goes
behind them. In `adapters` wait those whose adapter is loaded nowhere: they stand in nobody's way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.fairness import FairQueue
from serving.gateway.directory import Service
from serving.gateway.openai_errors import Refusal
from serving.gateway.settings import GatewaySettings
from serving.routing import Ask, NoRoute, Target, candidates, route

if TYPE_CHECKING:
    from serving.gateway.dispatch import Dispatch

QUIET_MS = 60_000
"""When nobody has waited for so long, what the firms were served before counts no more."""
_NO_ROUTE = {
    NoRoute.NO_REPLICA: ("model_not_ready", "no replica of this model is ready yet"),
    NoRoute.NO_ADAPTER: ("adapter_not_ready", "no replica has loaded this adapter yet"),
    NoRoute.UNHEALTHY: ("engine_unavailable", "the model's replicas do not answer"),
    NoRoute.FULL: ("overloaded", "every replica of this model is full"),
}


@dataclass(slots=True)
class Lines:
    """Who waits for one service."""

    places: "FairQueue[Dispatch]"
    adapters: "FairQueue[Dispatch]"
    used_ms: int

    def __len__(self) -> int:
        return len(self.places) + len(self.adapters)


@dataclass(slots=True)
class _Waiting:
    service: Service
    deadline_ms: int


class WaitingRoom:
    """All lines of one gateway. `guarded` runs a step of one request, whatever goes wrong in it."""

    def __init__(self, settings: GatewaySettings, now_ms: Callable[[], int], guarded: Callable[..., None]) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._guarded = guarded
        self._waiting: dict[Dispatch, _Waiting] = {}
        self._services: list[Service] = []
        self._coin = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def route(self, service: Service, ask: Ask) -> Target | NoRoute:
        """A replica for a request, now; those that wait for a place go first."""
        if service.lines is not None and service.lines.places:
            return NoRoute.FULL
        return self._route(service, ask)

    def only(self, service: Service) -> Target | None:
        """The single replica of a service, if it takes any request now: what the router would say, without asking."""
        if len(service.targets) != 1 or (service.lines is not None and service.lines.places):
            return None
        only = service.targets[0]
        return only if only.running < only.capacity and only.breaker.calm else None

    def wait(self, exchange: "Dispatch", service: Service, why: NoRoute) -> Refusal | None:
        """Let a request wait for a replica, an adapter or a place; a Refusal when too many wait already.

        One that comes back from a busy replica has no more time than it had.
        """
        if not exchange.waits_until_ms:
            exchange.waits_until_ms = self._now_ms() + int(self._settings.wait_seconds * 1_000)
        refusal = self._push(exchange, service, exchange.waits_until_ms, for_adapter=why is NoRoute.NO_ADAPTER)
        if refusal is None:
            self._fill(service)
        return refusal

    def leave(self, exchange: "Dispatch") -> bool:
        """Its client left; whether it was waiting."""
        waiting = self._waiting.pop(exchange, None)
        lines = None if waiting is None else waiting.service.lines
        return lines is not None and (lines.places.remove(exchange) or lines.adapters.remove(exchange))

    def served(self, service: Service, firm_id: str, tokens: int) -> None:
        """While firms compete, what each is served counts; negative: it was charged that many too much."""
        if service.lines is not None and tokens:
            service.lines.places.charge(firm_id, tokens)

    def freed(self, service: Service) -> None:
        """A place at one of the service's replicas is free."""
        if service.lines is not None and service.lines.places:
            self._fill(service)

    def changed(self, service: Service) -> None:
        """The service has other replicas, or they have other adapters."""
        lines = service.lines
        if lines is None:
            return
        moved: list[Dispatch] = []
        while (exchange := lines.adapters.pop(lambda one: not _without_adapter(service, one))) is not None:
            moved.append(exchange)
        for exchange in moved:
            waiting = self._waiting.pop(exchange)
            refusal = self._push(exchange, service, waiting.deadline_ms, for_adapter=False)
            if refusal is not None:
                self._guarded(exchange, exchange.refuse, refusal)
        self._fill(service)

    def tick(self) -> None:
        """Refuse who waited too long; send who can go now that a broken replica may be tried again.

        In this order: who comes back from a busy replica is over time at last.
        """
        now_ms = self._now_ms()
        for service in list(self._services):
            lines = service.lines
            assert lines is not None
            if not lines:
                if now_ms - lines.used_ms > QUIET_MS:
                    self._services.remove(service)
                    service.lines = None
                continue
            for exchange in (*lines.places.expire(now_ms), *lines.adapters.expire(now_ms)):
                del self._waiting[exchange]
                found = candidates(service.targets, exchange.need(), now_ms=now_ms)
                code, message = _NO_ROUTE[found if isinstance(found, NoRoute) else NoRoute.FULL]
                waited = f"{message}; the request waited {self._settings.wait_seconds:g} s"
                self._guarded(exchange, exchange.refuse, Refusal(503, code, waited, retry_after_seconds=5))
            self._fill(service)

    def _push(self, exchange: "Dispatch", service: Service, deadline_ms: int, *, for_adapter: bool) -> Refusal | None:
        lines = service.lines
        if lines is None:
            lines = service.lines = Lines(self._queue(), self._queue(), 0)
            self._services.append(service)
        lines.used_ms = self._now_ms()
        queue = lines.adapters if for_adapter else lines.places
        refused = queue.push(exchange.firm_id, exchange, deadline_ms=deadline_ms, tokens=exchange.reserved_tokens)
        if refused is not None:
            return Refusal(503, str(refused), "as many requests wait for this model as may", retry_after_seconds=5)
        self._waiting[exchange] = _Waiting(service, deadline_ms)
        return None

    def _queue(self) -> "FairQueue[Dispatch]":
        return FairQueue(self._settings.queue_max, self._settings.queue_per_firm_max)

    def _fill(self, service: Service) -> None:
        """Send waiting requests for as long as a replica has room for one."""
        lines = service.lines
        if lines is None:
            return
        while lines.places:
            now_ms = self._now_ms()
            if not any(one.has_room(now_ms) and one.breaker.allows(now_ms) for one in service.targets):
                return
            # Many wait for the same: ask once for each need, not once for each of them.
            able: dict[Ask, bool] = {}

            def ready(exchange: "Dispatch", able: dict[Ask, bool] = able, now_ms: int = now_ms) -> bool:
                need = exchange.need()
                if need not in able:
                    able[need] = not isinstance(candidates(service.targets, need, now_ms=now_ms), NoRoute)
                return able[need]

            exchange = lines.places.pop(ready)
            if exchange is None:
                return
            del self._waiting[exchange]
            exchange.charged_tokens = exchange.reserved_tokens
            self._guarded(exchange, self._send, exchange, service)

    def _send(self, exchange: "Dispatch", service: Service) -> None:
        target = self._route(service, exchange.ask())
        assert isinstance(target, Target), "a replica was free a moment ago"
        exchange.send(service.engines[target.id])

    def _route(self, service: Service, ask: Ask) -> Target | NoRoute:
        self._coin += 1
        return route(service.targets, ask, now_ms=self._now_ms(), coin=self._coin)


def _without_adapter(service: Service, exchange: "Dispatch") -> bool:
    adapter = exchange.need().adapter
    return adapter is not None and not any(adapter in target.adapters for target in service.targets)
