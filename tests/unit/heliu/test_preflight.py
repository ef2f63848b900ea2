"""What `heliu up` refuses before it starts anything, and where Ray keeps its sockets."""

import os
import socket
from pathlib import Path

import psutil
import pytest

from heliu.supervisor import preflight, ray_cluster
from heliu.supervisor.records import InstanceRecord, ProcessRef, RunFolder
from kit.errors import Conflict, InvalidInput, Refused, Unavailable
from kit.settings import Settings
from tests.support.running_platform import free_ports
from tests.support.sources import ROOT


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home that may start: a node environment is there and its ports are free."""
    for program in ("python", "ray"):
        (tmp_path / "node" / "bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / "node" / "bin" / program).touch()
    ports = iter(free_ports(5))
    monkeypatch.setenv("HELIU_GATEWAY_METRICS_PORT", str(next(ports)))
    return Settings(
        home=tmp_path / "home",
        node_venv=tmp_path / "node",
        api_port=next(ports),
        gateway_port=next(ports),
        ray_gcs_port=next(ports),
        ray_dashboard_port=next(ports),
    )


def test_a_machine_that_has_everything_may_start(settings: Settings) -> None:
    preflight.check(settings)


@pytest.mark.parametrize(
    ("variable", "above", "what"),
    [
        ("HELIU_API_PORT", 0, "the control plane"),
        ("HELIU_GATEWAY_PORT", 0, "the gateway"),
        ("HELIU_GATEWAY_METRICS_PORT", 0, "the gateway's metrics"),
        ("HELIU_RAY_GCS_PORT", 0, "the Ray head"),
        ("HELIU_RAY_GCS_PORT", 1, "the Ray head's client server"),
        ("HELIU_RAY_DASHBOARD_PORT", 0, "the Ray dashboard"),
    ],
)
def test_a_taken_port_is_refused_with_what_needs_it_and_the_variable_that_changes_it(
    settings: Settings, variable: str, above: int, what: str
) -> None:
    chosen = os.environ.get(variable) or getattr(settings, variable.removeprefix("HELIU_").lower())
    port = int(chosen) + above
    with socket.create_server(("127.0.0.1", port)), pytest.raises(Conflict) as caught:
        preflight.check(settings)
    assert caught.value.message == f"port {port}, where {what} would listen, is taken by another program"
    assert f"{variable}=" in (caught.value.hint or "")


def test_one_port_for_two_is_refused_with_both_names(settings: Settings) -> None:
    twice = settings.model_copy(update={"gateway_port": settings.ray_gcs_port + 1})
    with pytest.raises(Refused, match="for the gateway and for the Ray head's client server") as caught:
        preflight.check(twice)
    assert "HELIU_RAY_GCS_PORT=" in (caught.value.hint or "")


@pytest.mark.parametrize("value", ["http", "-1", "70000"])
def test_what_is_no_port_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HELIU_GATEWAY_METRICS_PORT", value)
    with pytest.raises(InvalidInput, match="HELIU_GATEWAY_METRICS_PORT is"):
        preflight.check(settings)


def test_an_installed_heliu_does_not_give_its_own_libraries_to_the_node(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray_cluster.node_environment(settings)["PYTHONPATH"] == str(ROOT)
    installed = tmp_path / "site-packages" / "heliu" / "supervisor" / "ray_cluster.py"
    monkeypatch.setattr(ray_cluster, "__file__", str(installed))
    assert "PYTHONPATH" not in ray_cluster.node_environment(settings)


def test_a_missing_node_environment_is_refused_with_the_command_that_builds_it(settings: Settings) -> None:
    (settings.node_venv / "bin" / "ray").unlink()
    with pytest.raises(Unavailable, match="ray is missing") as caught:
        preflight.check(settings)
    assert "make setup" in (caught.value.hint or "")


def test_a_second_platform_in_the_same_home_is_refused(settings: Settings) -> None:
    supervisor = ProcessRef.of(psutil.Process())
    RunFolder(settings.home).write("instance", InstanceRecord(id="0" * 16, supervisor=supervisor))
    with pytest.raises(Conflict, match="already up"):
        preflight.check(settings)


def test_a_record_of_a_dead_supervisor_does_not_stand_in_the_way(settings: Settings) -> None:
    dead = ProcessRef(pid=psutil.Process().pid, create_time=1.0)
    RunFolder(settings.home).write("instance", InstanceRecord(id="0" * 16, supervisor=dead))
    preflight.check(settings)


@pytest.mark.parametrize("home", ["/srv/heliu", "/home/somebody/a/very/long/way/down/to/the/project/.heliu"])
def test_ray_sockets_fit_into_a_unix_address_wherever_the_home_is(home: str) -> None:
    folder = ray_cluster.temp_folder(Path(home))
    deepest = folder / "session_2026-11-22_15-46-33_123456_1234567" / "sockets" / "plasma_store"
    assert len(str(deepest)) < 107


def test_ray_gets_its_token_from_a_file_only_its_owner_reads(settings: Settings) -> None:
    environment = ray_cluster.ray_environment(settings)
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert environment["RAY_AUTH_MODE"] == "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) >= 32
    assert token.read_text() not in " ".join(ray_cluster.head_command(settings))


def test_a_folder_for_sockets_that_is_a_link_of_somebody_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "ray").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(ray_cluster, "temp_folder", lambda _home: tmp_path / "ray")
    with pytest.raises(Refused, match="belongs to somebody else"):
        ray_cluster.prepare_temp_folder(tmp_path)


def test_only_we_can_enter_the_folder_of_ray_and_old_sessions_are_gone(tmp_path: Path) -> None:
    folder = ray_cluster.temp_folder(tmp_path)
    (folder / "session_2026-01-01_00-00-00_1_1").mkdir(parents=True)
    ray_cluster.prepare_temp_folder(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []
    folder.rmdir()
