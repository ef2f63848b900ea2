"""The composition of `serving`: its routes, what runs on the leader, and the gateway process."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta

from fastapi import APIRouter

from kit import events
from kit.blobs import Blobs
from kit.clock import Clock
from kit.db import Database
from kit.errors import HeliuError
from kit.settings import Settings
from scheduler.api import Terms
from scheduler.vocabulary import JOBS_CHANNEL
from serving import controller, losses, registrar
from serving.replicas import Policy
from serving.vocabulary import REPLICAS_CHANNEL
from serving.web import internal, routes

log = logging.getLogger(__name__)

PASS_SECONDS = 1.0  # at least this often, whatever is or is not announced
BOOK_EVERY = timedelta(minutes=5)
QUIET_SECONDS = 0.1  # announcements come in bursts: one pass for all of a burst


def routers(db: Database, blobs: Blobs, clock: Clock, settings: Settings) -> list[APIRouter]:
    """Every route of this package. The app carries `db` and `clock` on its state (see `quotas.web.deps`)."""
    return [routes.models, routes.adapter_router(blobs), routes.serving, internal.build_router(blobs)]


async def run_background(db: Database, blobs: Blobs, clock: Clock, settings: Settings, stop: asyncio.Event) -> None:
    """The replica controller and the catalogue registrar, until `stop`. On the leader only."""
    terms = Terms(
        lease_seconds=settings.lease_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        margin_seconds=settings.lease_margin_seconds,
    )
    changed = asyncio.Event()
    book_at = clock.now()
    ear = asyncio.create_task(_listen(db, changed))
    try:
        while not stop.is_set():
            changed.clear()
            await _guarded("register adapters", registrar.register_new(db, blobs, now=clock.now()))
            await _guarded("tend deployments", controller.tend(db, Policy(), terms, now=clock.now()))
            if clock.now() >= book_at:
                book_at = clock.now() + BOOK_EVERY
                await _guarded("book what nobody pays", losses.book(db, now=clock.now()))
            await _first(stop, changed)
    finally:
        ear.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ear


async def _guarded(part: str, work: Awaitable[object]) -> None:
    """What fails now is tried in the next pass, and does not keep the other part from its turn."""
    try:
        await work
    except HeliuError as error:
        log.warning("could not %s; it is tried again", part, extra={"why": error.message})
    except Exception:
        log.exception("could not %s; it is tried again", part)


async def _first(stop: asyncio.Event, changed: asyncio.Event) -> None:
    """Return when told to stop, shortly after something changed, or when the next pass is due."""
    waits = [asyncio.create_task(stop.wait()), asyncio.create_task(changed.wait())]
    try:
        await asyncio.wait(waits, timeout=PASS_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await asyncio.sleep(QUIET_SECONDS)
    finally:
        for wait in waits:
            wait.cancel()


async def _listen(db: Database, changed: asyncio.Event) -> None:
    """Set `changed` at every announcement; subscribe again when the database was away."""
    while True:
        try:
            announcements: AsyncIterator[tuple[str, str]] = db.listen([REPLICAS_CHANNEL, JOBS_CHANNEL, events.CHANNEL])
            async for _ in announcements:
                changed.set()
        except HeliuError:
            await asyncio.sleep(PASS_SECONDS)


def run_gateway(settings: Settings) -> None:
    """Serve /v1 until told to stop. Blocks: the gateway is a process of its own."""
    from serving.gateway.main import run  # its event loop and parsers are not for the other processes

    run(settings)


def run_bench_target(engine: str, *, model: str, port: int, engine_key: str, context_tokens: int) -> None:
    """Serve a furnished gateway in front of any engine, for a load generator. Blocks."""
    from serving.gateway.bench_target import run

    run(engine, model=model, port=port, engine_key=engine_key, context_tokens=context_tokens)
