"""What a refusal tells people to do can be done: a thing that is not there is listed somewhere, a command exists."""

import ast
import re
from collections.abc import Iterator

from typer.core import TyperGroup
from typer.main import get_command

from heliu.cli import complete_app
from tests.support.sources import ROOT

PACKAGES = ("kit", "quotas", "scheduler", "serving")
NOT_FOR_PEOPLE = {
    "kit/blobs.py": "it knows no commands; who asks says what is missing",
    "quotas/allowances.py": "gateways ask for their leases",
    "quotas/holds.py": "other packages ask, by an id that they were given",
    "scheduler/checkpoints.py": "runners ask",
    "scheduler/replicas.py": "other packages ask, by an id that they were given",
    "scheduler/web/internal.py": "runners ask",
    "serving/replica_sync.py": "replica hosts ask",
    "serving/web/internal.py": "replica hosts ask",
}
"""Files in which what is missing comes without a place to look, and why that is right."""

COMMAND = re.compile(r"\bheliu ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)")


def calls(name: str) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    """Where something of that name is called, and with which named arguments."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                    place = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield place, {word.arg: word.value for word in node.keywords if word.arg}


def hints() -> Iterator[tuple[str, str]]:
    """Every text that stands in a `hint=`, and where."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "hint":
                    for part in ast.walk(node.value):
                        if isinstance(part, ast.Constant) and isinstance(part.value, str):
                            yield f"{path.relative_to(ROOT)}:{part.lineno}", part.value


def test_what_is_not_found_is_told_with_where_to_look() -> None:
    silent = [place for place, words in calls("NotFound") if "hint" not in words]
    files = {place.partition(":")[0] for place in silent}
    assert [place for place in silent if place.partition(":")[0] not in NOT_FOR_PEOPLE] == []
    assert files == NOT_FOR_PEOPLE.keys(), "what has a hint by now needs no excuse"


def test_every_command_that_a_hint_names_exists() -> None:
    root = get_command(complete_app())
    assert isinstance(root, TyperGroup)
    named = {(place, command) for place, text in hints() for command in COMMAND.findall(text)}
    assert len(named) > 50
    assert {(place, command) for place, command in named if not exists(root, command)} == set()


def exists(root: TyperGroup, command: str) -> bool:
    """Whether it is a command; the second word counts only below a group."""
    first, _, second = command.partition(" ")
    found = root.commands.get(first)
    return found is not None and (not isinstance(found, TyperGroup) or second in found.commands)
