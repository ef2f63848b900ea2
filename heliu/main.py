"""The composition: which routers the control plane has, what the controller runs. Only here do the packages meet."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

import quotas.api
import quotas.main
import scheduler.api
import scheduler.main
import serving.api
import serving.main
from kit.blobs import Blobs
from kit.clock import SystemClock
from kit.db import Database, wait_until_ready
from kit.errors import InvalidInput, Unavailable
from kit.leadership import Leader, leadership
from kit.migrate import run_migrations
from kit.settings import Settings
from kit.telemetry import configure_logging
from kit.web import create_app

log = logging.getLogger(__name__)

MIGRATIONS = (quotas.api.MIGRATIONS, scheduler.api.MIGRATIONS, serving.api.MIGRATIONS)
STATIC = Path(__file__).parent / "static"
UNLIMITED_PREFIXES = ("/api/uploads", "/internal/v1/attempts", "/api/usage-imports", "/api/documents")
"""Routes that take files; they bound their own bodies."""
RESTART_SECONDS = 2.0
CONTROLLER = "controller"


def database_url(settings: Settings) -> str:
    """URL of the database. Raises InvalidInput when there is none to be found."""
    if settings.database_url:
        return settings.database_url
    try:
        return (settings.home / "run" / "database_url").read_text()
    except FileNotFoundError:
        raise InvalidInput(
            "no database is known", hint="start the platform (heliu up), or set HELIU_DATABASE_URL"
        ) from None


def build_api(settings: Settings) -> FastAPI:
    """The control plane as one ASGI app: firms, jobs and models under /api, nodes under /internal, /docs."""
    clock = SystemClock()
    db = Database(database_url(settings), pool_size=settings.database_pool_size)
    blobs = Blobs(settings.blobs)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await db.close()

    routers = [
        *quotas.main.routers(db, clock, settings),
        *scheduler.main.routers(db, blobs, clock, settings),
        *serving.main.routers(db, blobs, clock, settings),
    ]
    app = create_app(
        "Heliu",
        version("heliu"),
        routers,
        body_limit_bytes=settings.body_limit_bytes,
        unlimited_prefixes=UNLIMITED_PREFIXES,
        proxies=settings.proxies,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.db, app.state.blobs, app.state.clock, app.state.settings = (db, blobs, clock, settings)
    _add_docs(app)
    return app


def _add_docs(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        assets = "/static/swagger-ui"
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Heliu API",
            swagger_js_url=f"{assets}/swagger-ui-bundle.js",
            swagger_css_url=f"{assets}/swagger-ui.css",
            swagger_favicon_url=f"{assets}/favicon-32x32.png",
        )

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")


def run_api(settings: Settings) -> None:
    """Serve the control plane until told to end."""
    configure_logging("api", level=settings.log_level)
    app = build_api(settings)
    uvicorn.run(
        app, host=settings.host, port=settings.api_port, log_config=None, timeout_graceful_shutdown=5,
        proxy_headers=False,  # it would believe anybody on this machine
    )  # fmt: skip


def run_gateway(settings: Settings) -> None:
    """Serve the OpenAI-compatible gateway until told to end."""
    configure_logging("gateway", level=settings.log_level)
    with_database = settings.model_copy(update={"database_url": database_url(settings)})
    serving.main.run_gateway(with_database)


def run_controller(settings: Settings) -> None:
    """Work as the controller whenever this process leads, until told to end."""
    configure_logging(CONTROLLER, level=settings.log_level)
    asyncio.run(control(settings))


async def control(settings: Settings) -> None:
    """Wait for leadership, run every package's background work, begin again when the database or the work breaks."""
    while True:
        try:
            async with leadership(database_url(settings), CONTROLLER) as leader:
                log.info("this process leads")
                await _lead(settings, leader)
                log.warning("leadership was lost")
        except Unavailable as error:
            log.warning("the controller waits: %s", error.message)
        except Exception:
            log.exception("background work broke; it starts again in %.0f s", RESTART_SECONDS)
        await asyncio.sleep(RESTART_SECONDS)


async def _lead(settings: Settings, leader: Leader) -> None:
    clock = SystemClock()
    db = Database(database_url(settings), pool_size=settings.database_pool_size)
    blobs = Blobs(settings.blobs)
    stop = asyncio.Event()
    work: Sequence[Awaitable[None]] = (
        quotas.main.run_background(db, clock, stop),
        scheduler.main.run_background(db, blobs, clock, settings, stop),
        serving.main.run_background(db, blobs, clock, settings, stop),
    )
    tasks = [asyncio.ensure_future(part) for part in work]
    lost: asyncio.Task[bool] = asyncio.create_task(leader.lost.wait())
    try:
        done, _ = await asyncio.wait({*tasks, lost}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {lost}:
            task.result()
    finally:
        stop.set()
        lost.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await db.close()


def migrate(settings: Settings) -> None:
    """Bring the database to this version's schema; the platform's own firm comes with it."""
    url = database_url(settings)
    asyncio.run(_with_database(url, _wait))
    run_migrations(url, MIGRATIONS)


def admin_link(settings: Settings) -> str:
    """A link that makes its first visitor the administrator: one use, 15 minutes."""
    tokens: list[str] = []

    async def issue(db: Database) -> None:
        async with db.transaction() as tx:
            tokens.append(await quotas.api.issue_admin_link(tx, SystemClock().now()))

    asyncio.run(_with_database(database_url(settings), issue))
    return f"{settings.api_url}/admin/claim?token={tokens[0]}"


async def _with_database(url: str, work: Callable[[Database], Awaitable[None]]) -> None:
    db = Database(url, pool_size=1)
    try:
        await work(db)
    finally:
        await db.close()


async def _wait(db: Database) -> None:
    await wait_until_ready(db)
