"""`heliu demo --exit` stops the platform however its story ends, and its exit code says how that was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heliu.demo import play as playing
from heliu.demo.stage import Stage
from kit.errors import Refused
from kit.settings import Settings


@pytest.fixture(autouse=True)
def platform_is_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playing, "platform_is_up", lambda *_: None)


def one_check_fails(_settings: Settings, stage: Stage) -> None:
    with stage.step(9, "The statement and the ledger"):
        stage.check(True, "the voucher paid half of each")
        stage.check(False, "the lines add up")


def unpacks_too_few(_settings: Settings, stage: Stage) -> None:
    with stage.step(6, "The model is served"):
        (_,) = list[int]()


def refuses_between_steps(*_: Any) -> None:
    raise Refused("demo.json is damaged", code="demo_memory")


@pytest.mark.parametrize(
    ("story", "said"),
    [
        (one_check_fails, "the lines add up"),
        (unpacks_too_few, "6. The model is served: ValueError: not enough values to unpack (expected 1, got 0)"),
    ],
)
def test_a_story_that_does_not_hold_exits_with_1_and_is_taken_down(
    settings: Settings,
    taken_down: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    story: Callable[[Settings, Stage], None],
    said: str,
) -> None:
    monkeypatch.setattr(playing, "_tell", story)
    assert playing.play(stop_after=True, as_json=True) == 1
    assert taken_down == [settings.home]
    told = json.loads(capsys.readouterr().out)
    assert (told["failed"], told["running"]) == ([said], False)


def test_a_refusal_between_two_steps_is_told_after_the_platform_was_taken_down(
    settings: Settings, taken_down: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playing, "_tell", refuses_between_steps)
    with pytest.raises(Refused, match="damaged"):
        playing.play(stop_after=True)
    assert taken_down == [settings.home]


def test_a_platform_that_cannot_be_taken_down_is_a_broken_promise(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stuck(*_: Any) -> None:
        raise OSError("the run folder cannot be read")

    monkeypatch.setattr(playing, "_tell", lambda *_: None)
    monkeypatch.setattr(playing, "take_down", stuck)
    assert playing.play(stop_after=True, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == [
        "10. Everything stops: OSError: the run folder cannot be read"
    ]
