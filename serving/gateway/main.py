"""The gateway process: the composition root, and a graceful end on SIGTERM."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import uvloop

from kit import collector
from kit.db import Database
from kit.errors import HeliuError
from kit.ids import new_id
from kit.settings import Settings
from kit.telemetry import configure_logging
from serving.gateway.control_plane import ControlPlane
from serving.gateway.ledger_process import LedgerProcess
from serving.gateway.server import RunningGateway, build
from serving.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)


def name_of(folder: Path) -> str:
    """The gateway's name in the ledger: it belongs to the folder, so that a restart is the same gateway."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / "name"
    if not file.exists():
        file.write_text(new_id("gw"))
    return file.read_text().strip()


async def serve(
    settings: Settings, gateway_settings: GatewaySettings, *, ready: Callable[[int], None] = lambda _: None
) -> None:
    """Run until SIGTERM or SIGINT; `ready` is told the port once requests are taken."""
    folder = gateway_settings.folder or settings.home / "gateway"
    assert settings.database_url, "the composition names the database"
    db = Database(settings.database_url, pool_size=settings.database_pool_size)
    control = ControlPlane(db, holder=name_of(folder), lease_seconds=gateway_settings.lease_seconds)
    ledger = LedgerProcess(control, settings.database_url)
    running = build(
        gateway_settings, folder, keys=control, routes=control, treasury=control, rates=control, places=control,
        ledger=ledger, spending=control, proxies=settings.proxies,
    )  # fmt: skip
    dead = await _left_behind(control)
    returning = asyncio.get_running_loop().create_task(_return_dead_leases(running, control, dead))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await running.start(settings.host, settings.gateway_port)
        log.info("the gateway listens", extra={"port": running.port, "metrics_port": running.metrics_port})
        await running.gateway.routes_known.wait()
        collector.look_rarely()
        ready(running.port)
        await stop.wait()
    finally:
        unreturned = not returning.done()
        returning.cancel()
        await running.stop()
        if unreturned and dead and not running.gateway.shipper.backlog:
            with contextlib.suppress(HeliuError, OSError):  # else they end when their time is over
                await control.give_back(dead)
        await ledger.close()
        await db.close()


async def _left_behind(control: ControlPlane) -> Sequence[str]:
    """Leases of this gateway's earlier process. Waits for the database: without it nothing can be served anyway."""
    while True:
        try:
            return await control.left_behind()
        except (HeliuError, OSError) as error:
            log.warning("waiting for the database", extra={"why": str(error)})
            await asyncio.sleep(0.5)


async def _return_dead_leases(running: RunningGateway, control: ControlPlane, lease_ids: Sequence[str]) -> None:
    """Give an earlier process's leases back as soon as its usage is in the ledger."""
    while lease_ids:
        try:
            if await running.gateway.shipper.ship():
                await control.give_back(lease_ids)
                return
        except (HeliuError, OSError) as error:
            log.warning("an earlier process's leases could not be returned yet", extra={"why": str(error)})
        await asyncio.sleep(1)


def run(settings: Settings) -> None:
    """Run a gateway in this process until it is told to stop."""
    configure_logging("gateway", level=settings.log_level)
    uvloop.run(serve(settings, GatewaySettings()))
