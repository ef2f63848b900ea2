"""The composition of `scheduler`: its routes, and what runs on the leader."""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

from fastapi import APIRouter, Depends, Request
from pydantic_settings import BaseSettings, SettingsConfigDict

from kit import collector
from kit.blobs import Blobs
from kit.clock import Clock
from kit.db import Database
from kit.secret_files import load_or_create
from kit.settings import Settings
from scheduler import loop
from scheduler.adapters.ray_runtime import RayCluster, RayRuntime
from scheduler.cycle import Policy
from scheduler.node.environment import CACHE_BYTES
from scheduler.placement import BEST_FIT
from scheduler.preferences import USUAL, Weights
from scheduler.terms import Terms
from scheduler.web import (
    array_routes,
    control_routes,
    file_routes,
    fleet_routes,
    internal,
    recording_routes,
    routes,
    window_routes,
)
from scheduler.web.edge import Edge


class SchedulerSettings(BaseSettings):
    """What only the scheduler is told, from `HELIU_*` variables."""

    model_config = SettingsConfigDict(env_prefix="HELIU_", extra="ignore")

    start_timeout_seconds: int = 180
    grace_seconds: int = 10
    firm_storage_bytes: int = 20 << 30
    half_life_seconds: int = 86_400  # of what firms used, when they borrow
    minimum_runtime_seconds: int = 60  # borrowed work that began less than this ago is not stopped for others
    weight_model: int = USUAL.model  # thousandths of an accelerator that a warm model is worth when a place is chosen
    weight_data: int = USUAL.data  # … that data on the node is worth
    weight_tariff: int = USUAL.tariff  # … that the lowest price is worth, between pools that are liked equally
    node_cache_bytes: int = 32 << 30  # of inputs and checkpoints, kept on each node for the next attempt
    node_python: Path | None = None  # the node environment's interpreter, as nodes see it


def terms_from(settings: Settings) -> Terms:
    """The numbers attempts live by, as this installation sets them."""
    own = SchedulerSettings()
    return Terms(
        lease_seconds=settings.lease_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        margin_seconds=settings.lease_margin_seconds,
        grace_seconds=own.grace_seconds,
        start_timeout_seconds=own.start_timeout_seconds,
        upload_bytes_max=settings.upload_limit_bytes,
        firm_storage_bytes=own.firm_storage_bytes,
        half_life_seconds=own.half_life_seconds,
        policy=Policy(
            grace_seconds=own.grace_seconds,
            minimum_seconds=own.minimum_runtime_seconds,
            scoring=replace(BEST_FIT, weights=Weights(own.weight_model, own.weight_data, own.weight_tariff)),
        ),
    )


def routers(db: Database, blobs: Blobs, clock: Clock, settings: Settings) -> list[APIRouter]:
    """Every route of this package, the node protocol included. The app carries `db` and `clock` on its state."""
    return routers_for(Edge(blobs, terms_from(settings), signing_key(settings)))


def routers_for(edge: Edge) -> list[APIRouter]:
    """Every route of this package on a given edge."""

    async def provide(request: Request) -> None:
        request.state.scheduler = edge

    whole = APIRouter()
    for part in (
        routes,
        control_routes,
        array_routes,
        file_routes,
        fleet_routes,
        window_routes,
        recording_routes,
        internal,
    ):
        whole.include_router(part.router, dependencies=[Depends(provide)])
    return [whole]


async def run_background(db: Database, blobs: Blobs, clock: Clock, settings: Settings, stop: asyncio.Event) -> None:
    """The scheduler's loop, on the leader, until `stop` is set."""
    runtime = RayRuntime(ray_cluster(settings))
    try:
        collector.look_rarely()
        controller = loop.Controller(db, blobs, clock, runtime, runtime, terms_from(settings), token_key(settings))
        await loop.run(controller, stop)
    finally:
        with contextlib.suppress(RuntimeError):
            await runtime.close()


def ray_cluster(settings: Settings) -> RayCluster:
    """The cluster of this installation and what its runners are told."""
    own = SchedulerSettings()
    python = own.node_python or settings.node_venv / "bin" / "python"
    environment = {"HELIU_CONTROL_URL": settings.node_control_url, CACHE_BYTES: str(own.node_cache_bytes)}
    if settings.ray_url is None:  # the cluster is on this machine and shares its folders
        environment |= {
            "HELIU_HOME": str(settings.home.resolve()),
            "HELIU_MODELS_DIR": str(settings.models.resolve()),
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }
        python = Path.cwd() / python  # not resolved: a virtual environment is its path
    token = load_or_create(settings.secret_file("ray_token"))
    return RayCluster(settings.ray_dashboard_url, token, str(python), environment)


def signing_key(settings: Settings) -> bytes:
    """Key of signed links."""
    return load_or_create(settings.secret_file("signing_key")).encode()


def token_key(settings: Settings) -> bytes:
    """Key that attempts' tokens are derived from."""
    return load_or_create(settings.secret_file("attempt_key")).encode()
