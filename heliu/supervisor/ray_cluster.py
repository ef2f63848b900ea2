"""How the one-machine Ray cluster is started: a head, and one node that stands for a centre with CPU slots."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from kit.errors import Refused
from kit.secret_files import load_or_create
from kit.settings import Settings

CENTRE = "optics-valley"
ACCELERATOR = "cpu-slot"
SLOTS = 2
NODE_ADDRESS = "127.0.0.1"
OBJECT_STORE_BYTES = 128 * 1024 * 1024
SOCKET_FOLDER_LENGTH_MAX = 40
"""Ray puts Unix sockets about 60 characters below its folder, and their paths end at 107."""


def ray_token_file(settings: Settings) -> Path:
    """File with the one token of the cluster (0600); made on first use."""
    path = settings.secret_file("ray_token").resolve()
    load_or_create(path)
    return path


def ray_environment(settings: Settings) -> dict[str, str]:
    """Variables of everything that speaks to Ray."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ray_token_file(settings)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "DO_NOT_TRACK": "1",
    }


def node_environment(settings: Settings) -> dict[str, str]:
    """Variables of the Ray processes, which the programs of a workload inherit."""
    return (
        ray_environment(settings)
        | _this_checkout()
        | {
            "HELIU_CONTROL_URL": settings.node_control_url,
            "HELIU_HOME": str(settings.home.resolve()),
            "HELIU_MODELS_DIR": str(settings.models.resolve()),
            "HF_HUB_OFFLINE": "1",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_open_telemetry": "0",
            "RAY_LOGGER_LEVEL": "warning",  # below it, the variables of every job, tokens too, are logged
            # Its metrics would be told to anybody on the network without a token.
            "RAY_enable_metrics_collection": "0",
            "DASHBOARD_METRIC_PORT": "-1",
        }
    )


def _this_checkout() -> dict[str, str]:
    """Nodes run the code of this checkout. An installed Heliu stands beside libraries that are not the node's."""
    root = Path(__file__).resolve().parent.parent.parent
    return {"PYTHONPATH": str(root)} if (root / "pyproject.toml").exists() else {}


def temp_folder(home: Path) -> Path:
    """Where Ray keeps sockets and logs: in the home when its path is short enough, else in /tmp."""
    inside = home.resolve() / "ray"
    if len(str(inside)) <= SOCKET_FOLDER_LENGTH_MAX:
        return inside
    name = hashlib.sha256(str(inside).encode()).hexdigest()[:10]
    return Path(f"/tmp/heliu-{name}")  # noqa: S108 - prepare_temp_folder makes it private


def prepare_temp_folder(home: Path) -> None:
    """Make Ray's folder ours alone, without what earlier clusters of this home left. Call only when none runs.

    Raises Refused when somebody else owns a folder of that name.
    """
    folder = temp_folder(home)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise Refused(f"{folder} belongs to somebody else", hint="remove it, or choose another HELIU_HOME")
    folder.chmod(0o700)
    for session in folder.glob("session_*"):
        if session.is_symlink():
            session.unlink(missing_ok=True)
        else:
            shutil.rmtree(session, ignore_errors=True)
    (folder / "ray_current_cluster").unlink(missing_ok=True)


def client_port(settings: Settings) -> int:
    """Where the head's client server listens: one above the head itself."""
    return settings.ray_gcs_port + 1


def head_command(settings: Settings) -> tuple[str, ...]:
    """The head runs no work: no CPUs, no slots; its dashboard and Jobs API listen on loopback."""
    options = {
        "--port": str(settings.ray_gcs_port),
        "--ray-client-server-port": str(client_port(settings)),
        "--include-dashboard": "true",
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": str(settings.ray_dashboard_port),
        "--num-cpus": "0",
        "--labels": "heliu.io/role=head",
    }
    return (*_ray_start(settings, options), "--head", "--no-monitor")  # nothing here is scaled by Ray


def node_command(settings: Settings) -> tuple[str, ...]:
    """The node of the centre: `SLOTS` CPU slots, told apart by its labels."""
    return _ray_start(
        settings,
        {
            "--address": f"{NODE_ADDRESS}:{settings.ray_gcs_port}",
            "--num-cpus": str(SLOTS),
            "--resources": json.dumps({"slot": SLOTS}),
            "--labels": f"heliu.io/centre={CENTRE},heliu.io/accelerator={ACCELERATOR}",
        },
    )


def _ray_start(settings: Settings, options: Mapping[str, str]) -> tuple[str, ...]:
    common = {
        "--node-ip-address": NODE_ADDRESS,
        "--temp-dir": str(temp_folder(settings.home)),
        "--num-gpus": "0",
        "--object-store-memory": str(OBJECT_STORE_BYTES),
        "--dashboard-agent-listen-port": "0",
        "--min-worker-port": "0",
        "--max-worker-port": "0",
    }
    ray = settings.node_venv.resolve() / "bin" / "ray"
    flat = [f"{name}={value}" for name, value in {**common, **options}.items()]
    return (str(ray), "start", "--block", "--disable-usage-stats", "--log-color=false", *flat)
