"""Every command of the tree offers `--json`, has a sentence, and is the one that texts and hints name."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from heliu import cli
from tests.support.sources import ROOT

run = CliRunner()
WHOLE: Any = typer.main.get_command(cli.complete_app())
TEXTS = [*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md"]
PACKAGES = ("kit", "quotas", "scheduler", "serving", "heliu")
NAMED = re.compile(r"(?<![\w./-])(?<!from )heliu ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?")
TYPED = re.compile(r"^\$ heliu (.*?)(?:\s+#.*)?$", re.MULTILINE)


def leaves(group: Any = WHOLE, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        below = (*path, name)
        if hasattr(command, "commands"):
            yield from leaves(command, below)
        else:
            yield " ".join(below), command


COMMANDS = dict(leaves())


def words_of(command: Any) -> set[str]:
    return {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json(name: str) -> None:
    assert "--json" in words_of(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_in_a_sentence_what_it_does(name: str) -> None:
    said = COMMANDS[name].help.split("\n\n")[0]
    assert said[0].isupper()
    assert said.endswith("."), said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_explains_itself(name: str) -> None:
    shown = [one for one in COMMANDS[name].params if not getattr(one, "hidden", False)]
    assert [one.name for one in shown if not (one.help or "").endswith(".")] == []


def test_every_command_stands_under_a_heading_of_the_help_and_every_group_explains_itself() -> None:
    listed = {name for names in cli.PANELS.values() for name in names}
    assert set(WHOLE.commands) <= listed
    groups = {name: one for name, one in WHOLE.commands.items() if hasattr(one, "commands")}
    assert [name for name, one in groups.items() if not one.help or not one.help.endswith(".")] == []
    told = run.invoke(cli.app, ["--help"]).stdout
    assert [title for title in cli.PANELS if title in told] == list(cli.PANELS)


def strings(file: Path) -> Iterator[str]:
    """String literals of a source file, f-strings with a hole for each value."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def named() -> Mapping[str, str]:
    """`heliu …` as texts and strings name it → where."""
    found: dict[str, str] = {}
    texts = [(file, file.read_text(encoding="utf-8")) for file in TEXTS]
    sources = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    texts += [(file, text) for file in sources for text in strings(file)]
    for file, text in texts:
        for first, second in NAMED.findall(text):
            found.setdefault(f"{first} {second}".strip(), str(file.relative_to(ROOT)))
    return found


def test_every_command_that_a_text_or_a_hint_names_is_one() -> None:
    wrong: list[str] = []
    seen = named()
    for phrase, where in seen.items():
        first, _, second = phrase.partition(" ")
        command = WHOLE.commands.get(first)
        if command is None or (second and second not in getattr(command, "commands", {second})):
            wrong.append(f"{where}: heliu {phrase}")
    assert wrong == []
    assert {"up", "down", "job logs", "approval approve", "statement"} <= set(seen), "the search finds nothing"


def test_every_line_to_type_in_the_readme_has_options_that_are_there() -> None:
    lines = [line for file in TEXTS for line in TYPED.findall(file.read_text(encoding="utf-8"))]
    assert len(lines) > 10
    for line in lines:
        words = line.split()
        name = next(name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS)
        for option in (word for word in words if word.startswith("-") and word != "-"):
            assert option in words_of(COMMANDS[name]), f"heliu {line}"


def test_a_refusal_is_json_when_json_was_asked_for(tmp_path: Path) -> None:
    told = run.invoke(cli.app, ["queue", "--json"], env={"HELIU_API_URL": "http://127.0.0.1:1"})
    assert (told.exit_code, told.stdout) == (3, "")
    refusal = json.loads(told.stderr)
    assert refusal["code"] == "unreachable"
    assert refusal["hint"] == "start it: heliu up"
    told = run.invoke(cli.app, ["queue"], env={"HELIU_API_URL": "http://127.0.0.1:1"})
    assert told.exit_code == 3
    assert "refused:" in told.stderr, "the next command asked for no JSON"
    environment = {"HELIU_HOME": str(tmp_path), "HELIU_NODE_VENV": str(tmp_path / "nowhere")}
    told = run.invoke(cli.app, ["up", "--detach", "--json"], env=environment)
    assert (told.exit_code, json.loads(told.stderr)["code"]) == (1, "no_node_environment")


def heliu(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "heliu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, cwd=ROOT)


def test_what_was_typed_wrong_is_json_too_and_still_exit_code_2() -> None:
    told = heliu("job", "show", "--json")
    assert (told.returncode, told.stdout) == (2, "")
    refusal = json.loads(told.stderr)
    assert refusal["code"] == "wrong_usage"
    assert "job_id" in refusal["message"].lower()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HELIU_API_PORT", "eighty"),
        ("HELIU_API_PORT", "99999"),
        ("HELIU_RAY_GCS_PORT", "65535"),
        ("HELIU_LOG_LEVEL", "loud"),
    ],
)
def test_a_setting_that_is_none_is_refused_by_the_name_of_its_variable(variable: str, value: str) -> None:
    told = heliu("status", "--json", **{variable: value})
    assert told.returncode == 1
    refusal = json.loads(told.stderr)
    assert refusal["code"] == "wrong_setting"
    assert refusal["message"].startswith(f"{variable} is '{value}': ")
    assert refusal["hint"] == f"set {variable} right, or leave it unset"


def test_a_gateways_setting_that_is_none_is_refused_by_the_name_of_its_variable() -> None:
    told = heliu("gateway", HELIU_DATABASE_URL="postgresql:///none", HELIU_GATEWAY_IMAGE_NETWORKS="everywhere")
    assert told.returncode == 1
    assert "HELIU_GATEWAY_IMAGE_NETWORKS is 'everywhere'" in " ".join(told.stderr.split())


def test_the_shell_completes_commands_and_their_options() -> None:
    def completed(typed: str) -> list[str]:
        words = typed.split(" ")
        variables = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1), "_HELIU_COMPLETE": "complete_bash"}
        program = [sys.executable, "-c", "import sys; sys.argv = ['heliu']; from heliu.cli import main; main()"]
        told = subprocess.run(program, capture_output=True, text=True, env=os.environ | variables, cwd=ROOT)
        return told.stdout.split()

    assert completed("heliu stat") == ["status", "statement"]
    assert completed("heliu job l") == ["list", "logs"]
    assert "--json" in completed("heliu job logs --")


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = {name for line in re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE) for name in line.split()}
    told = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    listed = set(re.findall(r"^  make ([a-z-]+) ", told, re.MULTILINE))
    assert listed == {name for name in phony if not name.startswith(".")}
