"""Who may import what: the contracts hold, they bite, and they cover what the design says."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from grimp import ImportGraph

from tests.support.only_contract import OnlyContract
from tests.support.sources import ROOT, name_of, python_files

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = {contract["name"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}
PURE = CONTRACTS["Pure files decide: no I/O, no clock, no libraries but NumPy"]


def test_every_import_contract_is_kept() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-logo",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("importer", "imported", "kept"),
    [
        ("scheduler.cycle", "scheduler.vocabulary", True),
        ("scheduler.cycle", "quotas.vocabulary", True),
        ("scheduler.cycle", "kit.units", True),
        ("scheduler.cycle", "dataclasses", True),
        ("scheduler.cycle", "numpy", True),
        ("scheduler.cycle", "asyncio", False),
        ("scheduler.cycle", "time", False),
        ("scheduler.cycle", "ray", False),
        ("scheduler.cycle", "kit.db", False),
        ("scheduler.cycle", "scheduler.jobs", False),
        ("scheduler.cycle", "quotas.api", False),
        ("scheduler.jobs", "asyncio", True),
    ],
)
def test_a_pure_file_may_import_what_is_pure_and_nothing_else(importer: str, imported: str, kept: bool) -> None:
    graph = ImportGraph()
    for module in (importer, imported):
        graph.add_module(module)
    graph.add_import(importer=importer, imported=imported, line_number=1, line_contents=f"import {imported}")
    options = {key: PURE[key] for key in ("modules", "may_import", "outside", "without")}
    contract = OnlyContract(name="pure", session_options={}, contract_options=options)
    check = contract.check(graph, verbose=False)
    assert check.kept is kept
    if not kept:
        assert check.metadata["faults"] == [f"{importer} may not import {imported} (line 1)"]


def test_pure_files_and_vocabularies_are_the_ones_checked_most_strictly() -> None:
    strict = {name.removesuffix(".py").replace("/", ".") for name in PYPROJECT["tool"]["basedpyright"]["strict"]}
    vocabularies = {name for name in strict if ".vocabulary" in name}
    kit = {"kit.clock", "kit.errors", "kit.ids", "kit.units"}
    assert strict - vocabularies - kit == set(PURE["modules"])


def test_the_two_environments_are_pinned_by_name_and_version_only() -> None:
    for name in ("constraints.txt", "constraints-node.txt"):
        lines = (ROOT / name).read_text().splitlines()
        assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[\w.!]+", line)] == []
        names = [line.partition("==")[0] for line in lines]
        assert names == sorted(set(names))


def test_every_dependency_is_declared_by_name_sorted_and_pinned() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    control = project["dependencies"], extras["server"], extras["dev"]
    node = extras["node"], extras["model"]
    for constraints, groups in (("constraints.txt", control), ("constraints-node.txt", node)):
        pinned = {line.partition("==")[0] for line in (ROOT / constraints).read_text().splitlines()}
        for group in groups:
            assert group == sorted(group)
            names = {re.sub(r"\[.*\]", "", requirement).replace("_", "-").lower() for requirement in group}
            assert names <= pinned, f"{constraints} pins what pyproject.toml asks for"


def test_what_runs_on_nodes_imports_only_what_the_node_environment_declares() -> None:
    declared = {
        re.sub(r"\[.*\]", "", name).replace("-", "_") for name in PYPROJECT["project"]["optional-dependencies"]["node"]
    }
    of_the_engine = {"torch", "vllm", "huggingface_hub", "zmq"}
    own = {"kit", "scheduler", "serving"}
    undeclared = {
        f"{name_of(path)}: {root}"
        for path in python_files()
        if path.relative_to(ROOT).parts[:2] in {("scheduler", "node"), ("serving", "node")}
        for root in imported_roots(path)
        if root not in declared | of_the_engine | own | sys.stdlib_module_names
    }
    assert undeclared == set()


def imported_roots(path: Path) -> set[str]:
    """Top-level names of everything a file imports, inside functions too."""
    roots: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            roots.add(node.module.partition(".")[0])
    return roots
