import json
import stat
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from kit import cli


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HELIU_TOKEN", "HELIU_API_URL", "HELIU_API_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HELIU_HOME", str(tmp_path))
    return tmp_path


def test_a_session_is_kept_for_the_next_command_and_for_nobody_else(home: Path) -> None:
    assert cli.token() is None
    cli.save_token("hs_1")
    assert cli.token() == "hs_1"
    assert stat.S_IMODE((home / "session.json").stat().st_mode) == 0o600


def test_a_token_in_the_environment_comes_before_the_kept_session(monkeypatch: pytest.MonkeyPatch) -> None:
    cli.save_token("hs_1")
    monkeypatch.setenv("HELIU_TOKEN", "hl_2")
    assert cli.token() == "hl_2"
    with cli.remote() as client:
        assert client.headers["authorization"] == "Bearer hl_2"


def test_a_damaged_session_file_means_signed_out(home: Path) -> None:
    (home / "session.json").write_text("{")
    assert cli.token() is None


def test_a_platform_that_does_not_answer_ends_the_command_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HELIU_API_URL", "http://127.0.0.1:1")
    with pytest.raises(typer.Exit) as ended:
        cli.call("GET", "/api/firms")
    assert ended.value.exit_code == cli.UNREACHABLE
    assert "heliu up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (
            httpx.Response(409, json={"detail": "no quota", "hint": "ask for it"}),
            cli.REFUSED,
            ["no quota", "ask for it"],
        ),
        (httpx.Response(401, json={"detail": "who?"}), cli.SIGNED_OUT, ["who?", "heliu login"]),
        (httpx.Response(502, text="<html>bad gateway"), cli.REFUSED, ["502", "bad gateway"]),
    ],
)
def test_a_refusal_is_printed_and_decides_the_exit_code(
    answer: httpx.Response, code: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        cli.unwrap(answer)
    assert ended.value.exit_code == code
    captured = capsys.readouterr()
    assert captured.out == "", "a script that reads standard output sees no complaint there"
    assert all(word in captured.err for word in words)


def test_a_command_asked_for_json_refuses_in_json_with_the_platforms_own_code() -> None:
    app = typer.Typer()

    @app.command()
    def ask(as_json: cli.JsonFlag = False) -> None:
        cli.unwrap(httpx.Response(409, json={"detail": "no quota", "hint": "ask for it", "code": "no_quota"}))

    asked = CliRunner().invoke(app, ["--json"])
    assert (asked.exit_code, asked.stdout) == (cli.REFUSED, "")
    assert json.loads(asked.stderr) == {"code": "no_quota", "message": "no quota", "hint": "ask for it"}
    assert "refused: no quota" in CliRunner().invoke(app, []).stderr, "who asks for none gets none, also afterwards"


def test_what_has_nothing_to_show_is_a_sentence_or_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    cli.tell("budget bud_1 is ended", as_json=False, id="bud_1")
    assert capsys.readouterr().out == "budget bud_1 is ended\n"
    cli.tell("budget bud_1 is ended", as_json=True, id="bud_1")
    assert json.loads(capsys.readouterr().out) == {"id": "bud_1"}


def test_a_good_answer_is_its_json_or_nothing() -> None:
    assert cli.unwrap(httpx.Response(200, json={"id": "job_1"})) == {"id": "job_1"}
    assert cli.unwrap(httpx.Response(204)) is None


def test_json_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = [{"id": "job_1", "name": "合流", "amount_micro_yuan": 5}]
    cli.show(value, as_json=True)
    assert json.loads(capsys.readouterr().out) == value


def test_a_table_shows_the_asked_columns_and_takes_no_markup_from_data(capsys: pytest.CaptureFixture[str]) -> None:
    cli.show(
        [{"id": "job_1", "note": "[red]x[/red]", "hidden": "y"}], as_json=False, columns={"id": "Job", "note": "Note"}
    )
    printed = capsys.readouterr().out
    assert "Job" in printed
    assert "[red]x[/red]" in printed
    assert "y" not in printed.replace("Note", "")


def test_an_empty_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    cli.show([], as_json=False, columns={"id": "Job"})
    assert "nothing yet" in capsys.readouterr().out


def test_one_thing_is_shown_field_by_field(capsys: pytest.CaptureFixture[str]) -> None:
    cli.show({"id": "job_1", "error": None}, as_json=False)
    printed = capsys.readouterr().out
    assert "job_1" in printed
    assert "–" in printed
