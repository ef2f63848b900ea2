"""What tests of the demo's command share: a home it can start from, and what it took down."""

from pathlib import Path

import pytest

from heliu.demo import play as playing
from kit.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home whose model is prepared."""
    (tmp_path / "models" / playing.BASE_MODEL).mkdir(parents=True)
    (tmp_path / "models" / playing.BASE_MODEL / "config.json").touch()
    monkeypatch.setenv("HELIU_HOME", str(tmp_path))
    monkeypatch.delenv("HELIU_MODELS_DIR", raising=False)
    monkeypatch.setattr(playing.signal, "signal", lambda *_: None)
    return Settings()


@pytest.fixture
def taken_down(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    homes: list[Path] = []
    monkeypatch.setattr(playing, "take_down", lambda home, _say: homes.append(home))
    return homes
