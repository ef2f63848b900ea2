"""A gateway that listens: its parts put together over the ports, what runs beside requests, and a graceful end."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from kit.errors import HeliuError
from kit.proxies import TrustedProxies
from serving.gateway.engine_watch import replica_gauges, watch
from serving.gateway.gate import Gate
from serving.gateway.gateway import Gateway
from serving.gateway.http_connection import Connection
from serving.gateway.http_messages import HttpLimits, Request
from serving.gateway.http_server import HttpServer
from serving.gateway.keys import KeyRing
from serving.gateway.places import Places
from serving.gateway.ports import Keys, Ledger, PlaceSource, Rates, Routes, Spending, Treasury
from serving.gateway.purses import Purses
from serving.gateway.settings import GatewaySettings
from serving.gateway.shipper import Shipper
from serving.gateway.tracing import from_environment
from serving.gateway.usage_log import UsageLog
from serving.gateway.windows import Windows

log = logging.getLogger(__name__)

SETTLE_SECONDS = 15
"""How long the end of a gateway waits for the ledger to take its last usage and its leases back."""


class RunningGateway:
    """A gateway that listens; `port` and `metrics_port` say where."""

    def __init__(self, gateway: Gateway, server: HttpServer, metrics: HttpServer, usage_log: UsageLog) -> None:
        self.gateway = gateway
        self.port = 0
        self.metrics_port = 0
        self._server = server
        self._metrics = metrics
        self._log = usage_log
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int) -> None:
        """Read the route table once, begin the tasks that run beside requests, then listen."""
        gateway, settings = self.gateway, self.gateway.settings
        loop = asyncio.get_running_loop()
        for work in (
            gateway.follow_routes, gateway.keys.listen, gateway.keys.confirm, gateway.count_streams, gateway.watch_time,
            gateway.note_adapters, gateway.purses.tend, gateway.purses.hear,
            gateway.gate.windows.tend, gateway.gate.windows.hear,
            partial(watch, lambda: gateway.directory.engines, gateway.now_ms),
            partial(gateway.shipper.run, settings.ship_every_seconds),
        ):  # fmt: skip
            self._tasks.append(loop.create_task(_forever(work)))
        self.metrics_port = await self._metrics.start("127.0.0.1", settings.metrics_port)
        self.port = await self._server.start(host, port, reuse_port=settings.reuse_port)

    async def stop(self) -> None:
        """Drain: nothing new, running answers end within the set time, usage is shipped, leases go back. Once."""
        gateway = self.gateway
        if gateway.draining:
            return
        gateway.draining = True
        drained = asyncio.get_running_loop().create_task(self._server.drain(gateway.settings.drain_seconds))
        drained.add_done_callback(lambda _: None)
        await asyncio.sleep(0)
        gateway.cutting = False
        try:
            async with asyncio.timeout(gateway.settings.drain_seconds):
                await gateway.until_idle()
        except TimeoutError:
            gateway.cutting = True
            for exchange in [exchange for exchange in gateway.active if exchange.gone]:
                exchange.client_gone()  # nobody waits for these: they were only let finish to be counted
        await drained
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await gateway.until_idle()
        with contextlib.suppress(HeliuError, OSError, TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await gateway.shipper.ship()
                await gateway.purses.close()
                await gateway.gate.windows.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if gateway.traces is not None:
            await gateway.traces.close()
        await self._metrics.drain(0)
        gateway.directory.close()
        await asyncio.sleep(0)  # lost connections say so once before the loop is gone
        self._log.close()


async def _forever(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `work`; what it did not foresee is logged, and it begins again: nothing beside requests ends silently."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a background task of the gateway failed; it begins again")
        await asyncio.sleep(1)


class _MetricsPage:
    """Answers /metrics on the loopback port."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def handle(self, request: Request, reply: Connection) -> None:
        if request.path == b"/metrics":
            page = self._gateway.metrics.render(
                self._gateway.gauges(), replica_gauges(self._gateway.directory.engines, self._gateway.now_ms())
            )
            reply.respond(200, page, content_type=b"text/plain; version=0.0.4; charset=utf-8")
        else:
            reply.respond(404, b"", content_type=b"text/plain")


def build(
    settings: GatewaySettings,
    folder: Path,
    *,
    keys: Keys,
    routes: Routes,
    treasury: Treasury,
    rates: Rates,
    places: PlaceSource,
    ledger: Ledger,
    spending: Spending,
    proxies: TrustedProxies | None = None,
) -> RunningGateway:
    """A gateway over these ports, with its usage log in `folder`."""
    usage_log = UsageLog(folder)
    shipper = Shipper(usage_log, ledger, backlog_bytes_max=settings.backlog_bytes_max)
    held = Places(places, lease_seconds=settings.lease_seconds)
    windows = Windows(rates, held, offline_seconds=settings.offline_seconds)
    gateway = Gateway(
        settings,
        keys=KeyRing(keys, refresh_seconds=settings.key_seconds, offline_seconds=settings.offline_seconds),
        routes=routes,
        purses=Purses(treasury, shipper, lease_ms=settings.lease_seconds * 1_000, chunk=settings.lease_micro_yuan),
        gate=Gate(windows, at_once_here=settings.concurrency_per_key),
        shipper=shipper,
        spending=spending,
        proxies=proxies or TrustedProxies(),
        traces=from_environment(),
    )
    usage_log.at_work = lambda: len(gateway.active)
    limits = HttpLimits(
        body_bytes_max=settings.body_limit_bytes, bodies_bytes_max=settings.bodies_bytes_max,
        sending_bytes_max=settings.sending_bytes_max, head_seconds_max=settings.head_seconds_max,
    )  # fmt: skip
    return RunningGateway(
        gateway, HttpServer(gateway, limits), HttpServer(_MetricsPage(gateway), HttpLimits()), usage_log
    )
