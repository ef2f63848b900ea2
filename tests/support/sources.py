"""What belongs to the project: the files of this checkout that version control knows or would take in."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENDORED = "heliu/static/"
"""Libraries of others, kept as they came."""


@cache
def project_files() -> tuple[Path, ...]:
    """Tracked files, and new ones that are not ignored; without vendored libraries."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = sorted(set(listed.stdout.split("\0")) - {""})
    return tuple(ROOT / name for name in names if not name.startswith(VENDORED) and (ROOT / name).is_file())


def python_files() -> Iterator[Path]:
    """The project's Python files."""
    return (path for path in project_files() if path.suffix == ".py")


def texts() -> Iterator[tuple[Path, str]]:
    """The project's text files and what they say."""
    for path in project_files():
        try:
            yield path, path.read_text("utf-8")
        except UnicodeDecodeError:
            continue


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions and classes defined in a Python file, nested ones too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def name_of(path: Path) -> str:
    """A file's path inside the project."""
    return str(path.relative_to(ROOT))
