"""The gateway: what its requests share."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

from kit.clock import utc_now
from kit.errors import HeliuError, Unavailable
from kit.fetch import FetchPolicy
from kit.ids import new_id
from kit.proxies import TrustedProxies
from quotas.api import ip_allowed
from quotas.vocabulary import KeyGrant
from serving.gateway.answer_room import AnswerRoom
from serving.gateway.directory import Destination, Directory
from serving.gateway.endpoints import ENDPOINTS
from serving.gateway.exchange import Exchange
from serving.gateway.faults import where
from serving.gateway.gate import Gate
from serving.gateway.http_connection import Connection
from serving.gateway.http_messages import Request
from serving.gateway.images import ImageBounds, ImageFetcher
from serving.gateway.keys import KeyRing
from serving.gateway.metrics import NO_MODEL, GatewayMetrics
from serving.gateway.openai_errors import INTERNAL, NO_KEY, Refusal
from serving.gateway.pages import Pages, bearer_of, plain_path
from serving.gateway.ports import Routes, Spending
from serving.gateway.purses import Purses
from serving.gateway.settings import GatewaySettings
from serving.gateway.shipper import Shipper
from serving.gateway.tracing import Traces
from serving.gateway.waiting import WaitingRoom
from serving.metering import COUNT_EVERY_MS, Outcome, Tokens

log = logging.getLogger(__name__)

COUNT_SECONDS = COUNT_EVERY_MS / 1000 / 2
ROUTES_SECONDS = 1.0


class Gateway:
    """One process's shared state; `handle` is where a request comes in."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        keys: KeyRing,
        routes: Routes,
        purses: Purses,
        gate: Gate,
        shipper: Shipper,
        spending: Spending,
        proxies: TrustedProxies,
        traces: Traces | None = None,
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.purses = purses
        self.gate = gate
        self.shipper = shipper
        self.metrics = GatewayMetrics()
        self.directory = Directory()
        self.waiting = WaitingRoom(settings, self.now_ms, _guarded)
        self.traces = traces
        self.images = ImageFetcher(
            FetchPolicy(
                settings.image_bytes_max, redirects_max=3, schemes=settings.image_schemes,
                allowed=tuple(map(str, settings.image_networks)),
            ),
            ImageBounds(
                settings.images_bytes_max, settings.images_seconds_max, settings.image_fetches_per_firm_max,
                settings.image_fetches_max,
            ),
        )  # fmt: skip
        self.answers = AnswerRoom(settings.answers_bytes_max)
        self.active: set[Exchange] = set()
        self.streams: set[Exchange] = set()
        self.draining = False
        self.cutting = False
        """Set when a drain ran out of time and open streams are cut by us."""
        self.routes_known = asyncio.Event()
        self._routes = routes
        self._pages = Pages(self, spending)
        self._proxies = proxies
        self._adapters_wanted: dict[str, datetime] = {}
        self._boot = new_id("req")
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what a request asks for ----------------------------------------------------------------------------------

    def next_id(self) -> str:
        """A request id: unique over every start of every gateway."""
        self._count += 1
        return f"{self._boot}{self._count:08x}"

    def now_ms(self) -> int:
        """Wall-clock milliseconds."""
        return time.time_ns() // 1_000_000

    def spawn(self, work: Coroutine[Any, Any, None], on_fault: Callable[[BaseException], None]) -> None:
        """Run beside the loop's callbacks; `on_fault` is told what nobody foresaw."""

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                on_fault(error)

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(done)

    def allows_address(self, grant: KeyGrant, request: Request, reply: Connection) -> bool:
        """Whether the key may be used from where the request comes from."""
        if grant.ip_ranges is None:
            return True
        client = self._proxies.client_of(reply.peer, request.headers.get(self._proxies.header))
        return ip_allowed(grant.ip_ranges, client)

    def adapter_wanted(self, adapter_id: str) -> None:
        """An adapter was asked for; said to the control plane within a second, at once when nobody has it loaded."""
        if adapter_id not in self._adapters_wanted:
            self._adapters_wanted[adapter_id] = utc_now()

    def observe(self, exchange: Exchange, destination: Destination | None, tokens: Tokens, outcome: Outcome) -> None:
        """Count a request that an engine has answered."""
        if destination is None:
            return
        model = destination.service.model.name
        metrics = self.metrics
        metrics.total(model).finished(tokens, outcome)
        if exchange.sent_at:
            metrics.served(model, exchange.replica).finished(
                tokens, began=exchange.began, sent=exchange.sent_at, first=exchange.first_at, ended=time.monotonic()
            )

    # --- requests -------------------------------------------------------------------------------------------------

    def handle(self, request: Request, reply: Connection) -> None:
        """Start answering one request; whatever goes wrong, it gets an answer and the gateway goes on."""
        try:
            self._handle(request, reply)
        except Exception as error:
            self.fault(error, request, reply)

    def fault(self, error: BaseException, request: Request, reply: Connection) -> None:
        """Answer for what nobody foresaw."""
        exchange = reply.listener
        if isinstance(exchange, Exchange):
            exchange.fault(error)
            return
        log.error("a request failed in a way nobody foresaw", extra={"fault": where(error)})
        if reply.current is request:
            self.answer(reply, INTERNAL)

    def _handle(self, request: Request, reply: Connection) -> None:
        endpoint = ENDPOINTS.get(request.path)
        if endpoint is None:
            request.path = plain_path(request.path)
            endpoint = ENDPOINTS.get(request.path)
        if endpoint is None:
            self._pages.handle(request, reply)
            return
        if request.method != b"POST":
            self.answer(reply, Refusal(405, "method_not_allowed", "this path takes POST"), b"allow: POST\r\n")
            return
        exchange = Exchange(self, request, reply, endpoint)
        reply.listener = exchange
        self.active.add(exchange)
        bearer = bearer_of(request)
        refusal = self.closed() if bearer else NO_KEY
        if refusal is not None:
            exchange.refuse(refusal)
            return
        grant = self.keys.cached(bearer)
        if grant is None:
            self.spawn(exchange.authenticate(bearer), exchange.fault)
        else:
            exchange.admit(grant)

    def closed(self) -> Refusal | None:
        """Why nothing is admitted now, if so."""
        if self.directory.table is None:
            why = "this gateway has just started and does not know yet what is served"
            return Refusal(503, "starting", why, retry_after_seconds=1)
        if not self.shipper.log.healthy:
            why = "this gateway cannot write its usage log (disk full?); nothing is admitted"
            return Refusal(503, "usage_log_unwritable", why, retry_after_seconds=5)
        if self.shipper.full:
            why = "usage waits for the ledger and no more fits; try again later"
            return Refusal(503, "ledger_unreachable", why, retry_after_seconds=30)
        return None

    def answer(self, reply: Connection, refusal: Refusal, extra: bytes = b"") -> None:
        """Refuse what never became an exchange."""
        self.metrics.refusals[NO_MODEL, refusal.code] += 1
        anthropic = reply.current is not None and reply.current.path.startswith(b"/v1/messages")
        reply.respond(refusal.status, refusal.body(anthropic=anthropic), refusal.headers() + extra)

    # --- what runs beside requests --------------------------------------------------------------------------------

    async def follow_routes(self) -> None:
        """Keep the route table fresh: on every notice, and at least once a second."""
        changed = asyncio.Event()
        self.spawn(self._hear_routes(changed), _log_fault)
        while True:
            changed.clear()
            try:
                table, rates = await self._routes.table()
                changed_routes = self.directory.update(table, rates)
                self.routes_known.set()
                if changed_routes:
                    self.metrics.forget({engine.route.id for engine in self.directory.engines})
                    for service in list(self.directory.services.values()):
                        self.waiting.changed(service)
            except (HeliuError, OSError) as error:
                log.warning("the route table could not be read; the last one stays", extra={"why": str(error)})
            try:
                async with asyncio.timeout(ROUTES_SECONDS):
                    await changed.wait()
            except TimeoutError:
                pass

    async def _hear_routes(self, changed: asyncio.Event) -> None:
        while True:
            try:
                async for _ in self._routes.route_changes():
                    changed.set()
            except Unavailable:
                pass  # the once-a-second look goes on and says so
            await asyncio.sleep(0.5)

    async def count_streams(self) -> None:
        """Log the running counts of open streams, often enough that a kill loses at most 200 ms of them."""
        while True:
            await asyncio.sleep(COUNT_SECONDS)
            if self.shipper.log.healthy:
                for exchange in list(self.streams):
                    _guarded(exchange, exchange.count)

    async def note_adapters(self) -> None:
        """Pass on which adapters are wanted."""
        while True:
            await asyncio.sleep(0.5)
            if self._adapters_wanted:
                wanted, self._adapters_wanted = self._adapters_wanted, {}
                try:
                    await self._routes.wanted(wanted)
                except (HeliuError, OSError):
                    self._adapters_wanted = wanted | self._adapters_wanted

    async def watch_time(self) -> None:
        """End what waits or hangs for too long."""
        while True:
            await asyncio.sleep(0.25)
            self.waiting.tick()
            now = time.monotonic()
            for exchange in list(self.active):
                overdue = exchange.deadline and exchange.deadline < now
                if overdue or exchange.stalled(now, self.settings.stall_seconds):
                    _guarded(exchange, exchange.overdue)

    async def until_idle(self) -> None:
        """Return once nothing is being answered."""
        while self.active:  # noqa: ASYNC110 - asked only while the process ends; requests pay nothing for it
            await asyncio.sleep(0.02)

    def gauges(self) -> dict[str, float]:
        """What is the case now."""
        return {
            "requests_running": len(self.active),
            "streams_open": len(self.streams),
            "requests_waiting": len(self.waiting),
            "answers_bytes": self.answers.used,
            "answers_waiting": self.answers.waiting,
            "usage_backlog": self.shipper.backlog,
            "usage_quarantined": self.shipper.quarantined,
            "usage_shipped_total": self.shipper.shipped,
            "usage_log_healthy": self.shipper.log.healthy,
            "ledger_late": self.shipper.late,
            "database_offline": self.keys.offline,
            "replicas": sum(len(service.engines) for service in self.directory.services.values()),
        }


def _guarded(exchange: Exchange, act: Callable[..., None], *arguments: object) -> None:
    """A fault in what one request needs is that request's alone."""
    try:
        act(*arguments)
    except Exception as error:
        exchange.fault(error)


def _log_fault(error: BaseException) -> None:
    log.error("something beside requests failed", extra={"fault": where(error)})
