from pathlib import Path

import pytest
from pydantic import ValidationError

from kit.settings import Settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("HELIU_"):
            monkeypatch.delenv(name)


def test_without_any_variable_everything_is_on_this_machine() -> None:
    settings = Settings()
    assert settings.database_url is None
    assert settings.api_url == "http://127.0.0.1:8700"
    assert settings.gateway_url == "http://127.0.0.1:8701"
    assert settings.ray_dashboard_url == "http://127.0.0.1:8266"
    assert settings.node_control_url == settings.api_url


def test_a_variable_sets_the_field_of_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HELIU_HOME", str(tmp_path))
    monkeypatch.setenv("HELIU_API_PORT", "9700")
    settings = Settings()
    assert settings.api_url == "http://127.0.0.1:9700"
    assert settings.blobs == f"file://{tmp_path}/blobs"
    assert settings.models == tmp_path / "models"
    assert settings.secret_file("signing") == tmp_path / "secrets" / "signing"


def test_a_port_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIU_API_PORT", "eighty")
    with pytest.raises(ValidationError, match="api_port"):
        Settings()


def test_nodes_may_reach_the_control_plane_by_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIU_CONTROL_URL", "https://heliu.example")
    monkeypatch.setenv("HELIU_BLOB_URL", "s3://bucket/prefix")
    assert Settings().node_control_url == "https://heliu.example"
    assert Settings().blobs == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("API_PORT", "-1"),
        ("GATEWAY_PORT", "65536"),
        ("RAY_DASHBOARD_PORT", "99999"),
        ("RAY_GCS_PORT", "65535"),
        ("RAY_GCS_PORT", "0"),
        ("LEASE_SECONDS", "0"),
        ("LEASE_MARGIN_SECONDS", "-5"),
        ("DATABASE_POOL_SIZE", "0"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_what_lies_outside_a_settings_bounds_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"HELIU_{variable}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert variable.lower() in [error["loc"][0] for error in caught.value.errors()]


@pytest.mark.parametrize(("lease", "heartbeat"), [("20", "20"), ("3", None)])
def test_a_heartbeat_that_is_not_shorter_than_the_lease_is_refused(
    monkeypatch: pytest.MonkeyPatch, lease: str, heartbeat: str | None
) -> None:
    monkeypatch.setenv("HELIU_LEASE_SECONDS", lease)
    if heartbeat is not None:
        monkeypatch.setenv("HELIU_HEARTBEAT_SECONDS", heartbeat)
    with pytest.raises(ValidationError, match=f"shorter than HELIU_LEASE_SECONDS, which is {lease}"):
        Settings()


@pytest.mark.parametrize("listed", ["10.0.0.0/8, fd00::/8", '["10.0.0.0/8", "fd00::/8"]'])
def test_networks_are_listed_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch, listed: str) -> None:
    monkeypatch.setenv("HELIU_TRUSTED_PROXIES", listed)
    monkeypatch.setenv("HELIU_PROXY_HEADER", "forwarded")
    settings = Settings()
    assert tuple(map(str, settings.trusted_proxies)) == ("10.0.0.0/8", "fd00::/8")
    assert settings.proxies.header == b"forwarded"


@pytest.mark.parametrize("listed", ["10.0.0.1/8", "ingress", '["10.0.0.0/8"'])
def test_a_network_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, listed: str) -> None:
    monkeypatch.setenv("HELIU_TRUSTED_PROXIES", listed)
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Settings()
