"""What one machine runs, in the order it starts: each service with its command, its variables and its sign of life."""

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from heliu.supervisor import ray_cluster
from kit.settings import Settings

ReadyCheck = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Service:
    """One child of the supervisor. `environment` is asked at each start, when the services in `after` are ready."""

    name: str
    command: tuple[str, ...]
    environment: Callable[[], Mapping[str, str]]
    ready: ReadyCheck
    after: tuple[str, ...] = ()
    ends_with: tuple[str, ...] = ()
    """Services without which this one is worth nothing: when one of them dies, this one is ended and starts again."""
    once: bool = False
    """A step that runs to its end before those after it; it is not started again once it succeeded."""
    ready_seconds_max: float = 60
    stop_seconds_max: float = 10
    sweeps_below: bool = True
    """Whether what it left running when it died is ended too; a database that outlives its keeper is kept."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths and addresses the services agree on."""

    settings: Settings
    home: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "home", self.settings.home.resolve())

    @property
    def database_folder(self) -> Path:
        """Data of the embedded PostgreSQL."""
        return self.home / "postgres"

    @property
    def database_url_file(self) -> Path:
        """Where the keeper says how to reach the embedded PostgreSQL."""
        return self.home / "run" / "database_url"

    def database_url(self) -> str:
        """URL of the database in use. Raises FileNotFoundError before the embedded one has started once."""
        return self.settings.database_url or self.database_url_file.read_text()

    def log_file(self, name: str) -> Path:
        """Log of a service."""
        return self.home / "logs" / f"{name}.log"


def services(settings: Settings) -> list[Service]:
    """All services of one machine; an external database (`HELIU_DATABASE_URL`) has no service."""
    layout = Layout(settings)
    database = [] if settings.database_url else [_postgres(layout)]
    after_database = tuple(service.name for service in database)
    return [
        *database,
        *_ray(layout),
        Service(
            "migrate", _heliu("migrate"), lambda: _control_environment(layout), _always, after=after_database, once=True
        ),
        _http("api", settings.api_port, layout, ("migrate",)),
        _http("gateway", settings.gateway_port, layout, ("migrate",), stop_seconds_max=30),  # running streams may end
        Service("controller", _heliu("controller"), lambda: _control_environment(layout), _always, after=("migrate",)),
    ]


def _postgres(layout: Layout) -> Service:
    layout.home.mkdir(parents=True, exist_ok=True)

    async def ready() -> bool:
        return layout.database_url_file.exists()

    def environment() -> Mapping[str, str]:
        layout.database_url_file.unlink(missing_ok=True)
        return {}

    keeper = (sys.executable, "-m", "heliu.supervisor.postgres_keeper")
    return Service(
        "postgres",
        (*keeper, str(layout.database_folder), str(layout.database_url_file)),
        environment,
        ready,
        sweeps_below=False,
        stop_seconds_max=30,
    )


def _ray(layout: Layout) -> list[Service]:
    settings = layout.settings
    cluster = RayProbe(settings)
    return [
        Service(
            "ray-head",
            ray_cluster.head_command(settings),
            lambda: ray_cluster.node_environment(settings),
            cluster.head_answers,
            ready_seconds_max=120,
            stop_seconds_max=3,  # it would wait half a minute for nodes that are gone
        ),
        Service(
            "ray-node",
            ray_cluster.node_command(settings),
            lambda: ray_cluster.node_environment(settings),
            cluster.node_joined,
            after=("ray-head",),
            ends_with=("ray-head",),
            ready_seconds_max=120,
            stop_seconds_max=6,
        ),
    ]


@dataclass(frozen=True, slots=True)
class RayProbe:
    """Asks the Ray dashboard what is there."""

    settings: Settings

    async def head_answers(self) -> bool:
        """Whether the dashboard and its Jobs API answer."""
        return (await self._get("/api/version")) is not None

    async def node_joined(self) -> bool:
        """Whether a living node carries the centre's labels."""
        reply = await self._get("/api/v0/nodes?detail=true&limit=100")
        rows = reply.json()["data"]["result"]["result"] if reply else []
        return any(
            row["state"] == "ALIVE" and (row.get("labels") or {}).get("heliu.io/centre") == ray_cluster.CENTRE
            for row in rows
        )

    async def _get(self, path: str) -> httpx.Response | None:
        token = ray_cluster.ray_token_file(self.settings).read_text().strip()
        url = f"http://127.0.0.1:{self.settings.ray_dashboard_port}{path}"
        return await _get(url, headers={"Authorization": f"Bearer {token}"})


def _http(name: str, port: int, layout: Layout, after: tuple[str, ...], stop_seconds_max: float = 10) -> Service:
    async def ready() -> bool:
        return (await _get(f"http://{layout.settings.host}:{port}/healthz")) is not None

    environment = partial(_control_environment, layout)
    return Service(name, _heliu(name), environment, ready, after=after, stop_seconds_max=stop_seconds_max)


def _control_environment(layout: Layout) -> dict[str, str]:
    return ray_cluster.ray_environment(layout.settings) | {
        "HELIU_HOME": str(layout.home),
        "HELIU_NODE_VENV": str(layout.settings.node_venv.resolve()),
        "HELIU_MODELS_DIR": str(layout.settings.models.resolve()),
        "HELIU_DATABASE_URL": layout.database_url(),
    }


def _heliu(command: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "heliu", command)


async def _always() -> bool:
    return True


async def _get(url: str, headers: Mapping[str, str] | None = None) -> httpx.Response | None:
    try:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            reply = await client.get(url, headers=dict(headers or {}))
    except httpx.HTTPError:
        return None
    return reply if reply.status_code == 200 else None
