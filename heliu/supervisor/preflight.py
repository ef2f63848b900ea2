"""What must hold before anything is started; each refusal says what to do."""

import os
import shutil
import socket
from pathlib import Path

from heliu.supervisor import ray_cluster
from heliu.supervisor.records import InstanceRecord, RunFolder
from kit.errors import Conflict, InvalidInput, Refused, Unavailable
from kit.settings import Settings

FREE_BYTES_MIN = 1 << 30
GATEWAY_METRICS_PORT = 8702
PORT_MAX = 65535


def check(settings: Settings) -> None:
    """Raises Conflict, Refused or Unavailable with the first thing that stands in the way."""
    refuse_second_instance(settings.home)
    _need_node_environment(settings.node_venv)
    _need_room(settings.home)
    _need_ports(settings)


def running_instance(home: Path) -> InstanceRecord | None:
    """The instance of this home whose supervisor runs, if there is one."""
    instance = RunFolder(home).instance()
    return instance if instance and instance.supervisor.find() else None


def refuse_second_instance(home: Path) -> None:
    """Raises Conflict when a platform with this home is up already."""
    if instance := running_instance(home):
        raise Conflict(
            f"Heliu is already up in {home} (process {instance.supervisor.pid})",
            code="already_up",
            hint="look at it: heliu status; stop it: heliu down",
        )


def _need_node_environment(node_venv: Path) -> None:
    for program in ("python", "ray"):
        if not (node_venv / "bin" / program).exists():
            raise Unavailable(
                f"the node environment {node_venv} is not there or not complete ({program} is missing)",
                code="no_node_environment",
                hint="make setup builds it; HELIU_NODE_VENV names another one",
            )


def _need_room(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if free < FREE_BYTES_MIN:
        raise Refused(
            f"only {free >> 20} MiB are free in {home}; at least {FREE_BYTES_MIN >> 20} MiB are needed",
            code="disk_full",
            hint="free some space, or set HELIU_HOME to another disk",
        )


def _need_ports(settings: Settings) -> None:
    metrics = _metrics_port()
    wanted = [
        ("HELIU_API_PORT", "the control plane", settings.host, settings.api_port),
        ("HELIU_GATEWAY_PORT", "the gateway", settings.host, settings.gateway_port),
        ("HELIU_GATEWAY_METRICS_PORT", "the gateway's metrics", "127.0.0.1", metrics),
        ("HELIU_RAY_GCS_PORT", "the Ray head", "127.0.0.1", settings.ray_gcs_port),
        ("HELIU_RAY_GCS_PORT", "the Ray head's client server", "127.0.0.1", ray_cluster.client_port(settings)),
        ("HELIU_RAY_DASHBOARD_PORT", "the Ray dashboard", "127.0.0.1", settings.ray_dashboard_port),
    ]
    given: dict[int, str] = {}
    for variable, what, host, port in wanted:
        if port == 0:
            continue  # a free one is chosen
        if port in given:
            raise Refused(
                f"port {port} is meant for {given[port]} and for {what}",
                code="port_twice",
                hint=f"give {what} another one: {variable}={max(given) + 100} heliu up",
            )
        given[port] = what
        if not port_is_free(host, port):
            raise Conflict(
                f"port {port}, where {what} would listen, is taken by another program",
                code="port_taken",
                hint=f"stop that program, or choose another port: {variable}={port + 100} heliu up",
            )


def _metrics_port() -> int:
    text = os.environ.get("HELIU_GATEWAY_METRICS_PORT", str(GATEWAY_METRICS_PORT))
    if not text.isdecimal() or int(text) > PORT_MAX:
        raise InvalidInput(
            f"HELIU_GATEWAY_METRICS_PORT is {text!r}, which is not a port number",
            code="wrong_setting",
            hint=f"set it to 0 (any free one) to {PORT_MAX}, or leave it unset",
        )
    return int(text)


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
