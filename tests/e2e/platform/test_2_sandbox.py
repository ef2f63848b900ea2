"""A firm's script, run by the platform itself, tries everything that listens or lies around it, and reaches nothing."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from heliu.demo.act2_firm import rival
from heliu.demo.act6_model import POOL
from tests.e2e.platform.conftest import Telling
from tests.support.running_platform import RunningPlatform

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(240, func_only=True)]

RIVALS_PLOT = b"the rival's plot: the ferry sinks in chapter three"
FILES_MAX = 200

# Runs inside. Tells of each target what came of it; what was reached is named so.
PROBE = r"""
import json, os, socket
targets = json.load(open("targets.json"))
tried = {"tcp": {}, "unix": {}, "file": {}, "own": {}}

def attempt(kind, name, act):
    try:
        act()
        tried[kind][name] = "reached"
    except Exception as error:
        tried[kind][name] = type(error).__name__

for host, port in targets["tcp"]:
    attempt("tcp", f"{host}:{port}", lambda: socket.create_connection((host, port), timeout=2).close())
for path in targets["unix"]:
    attempt("unix", path, lambda: socket.socket(socket.AF_UNIX).connect(path))
for path in targets["file"]:
    attempt("file", path, lambda: open(path, "rb").read(1) if not os.path.isdir(path) else os.listdir(path))
with socket.create_server(("127.0.0.1", 0)) as own, socket.socket(socket.AF_UNIX) as beside:
    beside.bind("own.sock")
    beside.listen()
    port = own.getsockname()[1]
    attempt("own", "tcp", lambda: socket.create_connection(("127.0.0.1", port), timeout=2).close())
    attempt("own", "unix", lambda: socket.socket(socket.AF_UNIX).connect("own.sock"))
    attempt("own", "file", lambda: open("targets.json", "rb").read(1))
    attempt("own", "folder", lambda: os.listdir("."))
tried["environment"] = dict(os.environ)
tried["commands"] = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        tried["commands"].append(open(f"/proc/{pid}/cmdline", "rb").read().decode())
        tried["environment"][f"of {pid}"] = open(f"/proc/{pid}/environ", "rb").read().decode()
    except OSError:
        pass
json.dump(tried, open("outputs/tried.json", "w"))
"""


def ports_of(platform: RunningPlatform) -> list[tuple[str, int]]:
    """(host, port) of all that listens, as a program on this machine would reach it."""
    hosts = {"::": "::1", "0.0.0.0": "127.0.0.1"}
    return sorted({(hosts.get(one.ip, one.ip), one.port) for one in platform.listeners()})


def sockets_of(platform: RunningPlatform) -> list[str]:
    """Paths of the Unix sockets that take a connection."""
    pids = {process.pid for process in platform.processes()}
    paths = {str(one.laddr) for one in psutil.net_connections("unix") if one.pid in pids and one.laddr}
    return sorted(filter(_accepts, paths))


def _accepts(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
    except OSError:
        return False
    return True


def lying_around(platform: RunningPlatform) -> list[Path]:
    """What a script would like to read: the home's folders, files of all firms, secrets of processes."""
    home = platform.home
    below = [path for folder in (home, home / "blobs") for path in folder.iterdir()]
    files = [path for path in home.rglob("*") if path.is_file() and path.suffix in ("", ".json", ".jsonl", ".csv")]
    of_processes = [Path(f"/proc/{process.pid}/environ") for process in platform.processes()]
    secrets = [*(home / "secrets").iterdir(), home / "demo.json"]
    return [*below, *secrets, *files[:FILES_MAX], *_holding(home / "blobs", RIVALS_PLOT), *of_processes]


def _holding(folder: Path, content: bytes) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.read_bytes() == content]
    assert found, "the other firm's file is not where it was looked for"
    return found


@pytest.fixture(scope="module")
def targets(telling: Telling, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """All that is there to be reached, seen from outside; another firm's upload is among it."""
    plot = tmp_path_factory.mktemp("rival") / "plot.txt"
    plot.write_bytes(RIVALS_PLOT)
    rival(telling.story).files.upload(plot)
    files = [str(path) for path in lying_around(telling.platform)]
    return {"tcp": ports_of(telling.platform), "unix": sockets_of(telling.platform), "file": files}


@pytest.fixture(scope="module")
def tried(telling: Telling, targets: dict[str, list[Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script says of each, read from its artifact."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.py").write_text(PROBE)
    (folder / "targets.json").write_text(json.dumps(targets))
    developer = telling.story.developer
    inputs = {name: developer.files.upload(folder / name).id for name in ("probe.py", "targets.json")}
    params = {"command": ["python3", "probe.py"], "runtime_seconds_max": 120}
    submitted = developer.jobs.submit("script", pools=[POOL], inputs=inputs, params=params)
    job = developer.jobs.wait(submitted.id, seconds=200)
    assert job.state == "succeeded", job
    (stored,) = [one for one in job.artifacts if one.name == "tried.json"]
    return json.loads(developer.files.download(stored.id))


def test_from_outside_everything_the_script_is_to_try_is_there(
    platform: RunningPlatform, targets: dict[str, list[Any]]
) -> None:
    ports = {port for _, port in targets["tcp"]}
    settings = platform.settings
    assert {settings.api_port, settings.gateway_port, settings.ray_gcs_port, settings.ray_dashboard_port} <= ports
    (engine,) = [one for one in platform.below_ray("serving.node.engine", "--port") if "EngineCore" not in one.name()]
    assert int(engine.cmdline()[engine.cmdline().index("--port") + 1]) in ports, "the live replica"
    assert any(path.rpartition("/")[2].startswith(".s.PGSQL.") for path in targets["unix"]), targets["unix"]
    assert any("raylet" in path for path in targets["unix"]), targets["unix"]
    assert str(settings.secret_file("ray_token").resolve()) in targets["file"]
    assert len(targets["tcp"]) > 8 and len(targets["file"]) > 50


def test_a_script_reaches_what_is_its_own_in_the_way_it_tried_the_rest(tried: dict[str, Any]) -> None:
    assert tried["own"] == {"tcp": "reached", "unix": "reached", "file": "reached", "folder": "reached"}


def test_a_script_reaches_no_port_no_socket_and_no_file_of_the_platform_or_of_another_firm(
    targets: dict[str, list[Any]], tried: dict[str, Any]
) -> None:
    for kind in ("tcp", "unix", "file"):
        assert len(tried[kind]) == len({str(target) for target in targets[kind]})
        reached = [name for name, outcome in tried[kind].items() if outcome == "reached"]
        assert reached == [], kind


def test_a_script_sees_no_variable_and_no_process_of_the_platform(telling: Telling, tried: dict[str, Any]) -> None:
    own = {name: value for name, value in tried["environment"].items() if not name.startswith("of ")}
    assert not [name for name in own if re.match(r"RAY|VLLM|HELIU_(?!WORKDIR$|OUTPUTS$|CHECKPOINT$)|PG|AWS", name)], (
        sorted(own)
    )
    # The sandbox's own first process shows where it was built; what its caller is called is no secret.
    commands = [command for command in tried["commands"] if not command.startswith("bwrap")]
    everything = " ".join([*tried["environment"].values(), *commands])
    assert str(telling.platform.home) not in everything
    for secret in (telling.platform.home / "secrets").iterdir():
        assert secret.read_text().strip() not in " ".join([*tried["environment"].values(), *tried["commands"]])
    assert not re.search(r"ray|vllm|postgres", " ".join(commands)), commands
