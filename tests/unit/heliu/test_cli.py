"""The command's own words: exit codes, JSON, refusals without a traceback."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heliu import cli

run = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HELIU_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_status_of_a_platform_that_is_not_up_is_exit_code_3() -> None:
    told = run.invoke(cli.app, ["status", "--json"])
    assert told.exit_code == 3
    assert json.loads(told.stdout) | {"addresses": None} == {"state": "down", "services": [], "addresses": None}


def test_down_where_nothing_runs_says_so_and_is_no_error() -> None:
    told = run.invoke(cli.app, ["down"])
    assert told.exit_code == 0
    assert "nothing runs" in told.stdout


def test_up_without_the_node_environment_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIU_NODE_VENV", str(tmp_path / "nowhere"))
    told = run.invoke(cli.app, ["up", "--detach"])
    assert told.exit_code == 1
    assert "is not there or not complete" in " ".join(told.stderr.split())
    assert "make setup" in told.stderr
    assert "Traceback" not in told.output


def test_a_wrong_option_is_exit_code_2() -> None:
    assert run.invoke(cli.app, ["up", "--sideways"]).exit_code == 2


def test_the_version_is_also_there_as_json() -> None:
    told = run.invoke(cli.app, ["version", "--json"])
    assert told.exit_code == 0
    assert set(json.loads(told.stdout)) == {"version"}
