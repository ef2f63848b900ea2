"""Ctrl-C stops what was started, and only that."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from heliu.demo import play as playing
from heliu.supervisor import up
from heliu.supervisor.records import InstanceRecord, ProcessRef, RunFolder
from kit.settings import Settings


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop_after", [False, True])
def test_an_interrupted_demo_stops_the_platform_it_started(
    settings: Settings, taken_down: list[Path], monkeypatch: pytest.MonkeyPatch, stop_after: bool
) -> None:
    monkeypatch.setattr(playing, "platform_is_up", interrupt)
    assert playing.play(stop_after=stop_after) == 130
    assert taken_down == [settings.home]


def test_an_interrupted_demo_leaves_the_platform_that_ran_before(
    settings: Settings, taken_down: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = ProcessRef.of(psutil.Process())
    RunFolder(settings.home).write("instance", InstanceRecord(id="0" * 16, supervisor=supervisor, ready=True))
    monkeypatch.setattr(playing, "platform_is_up", interrupt)
    assert playing.play(stop_after=False) == 130
    assert taken_down == []


def test_an_interrupted_start_in_the_background_ends_what_it_started(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    command = [sys.executable, "-c", "import time; time.sleep(600)"]

    def follow(process: subprocess.Popen[bytes], *_: Any) -> None:
        started.append(process)
        raise KeyboardInterrupt

    really = subprocess.Popen
    monkeypatch.setattr(up.preflight, "check", lambda _settings: None)
    monkeypatch.setattr(up.subprocess, "Popen", lambda _command, **how: really(command, **how))
    monkeypatch.setattr(up, "_follow", follow)
    with pytest.raises(KeyboardInterrupt):
        up.start_detached(settings, lambda _name, _what: None)
    assert [process.poll() is not None for process in started] == [True]
