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
