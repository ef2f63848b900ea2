"""The wheel has everything that a checkout has and a run needs: pages, static files, migrations, examples."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.sources import ROOT

PACKAGES = ("kit", "quotas", "scheduler", "serving", "heliu")
GENERATED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, without a network."""
    place = tmp_path_factory.mktemp("wheel")
    for folder in (*PACKAGES, "examples"):
        shutil.copytree(ROOT / folder, place / "source" / folder, symlinks=True, ignore=GENERATED)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, place / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*command, "-w", str(place), str(place / "source")], check=True, capture_output=True, text=True)
    (built,) = place.glob("heliu-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The wheel unpacked where nothing of the checkout is beside it."""
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def heliu(installed: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HELIU_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "heliu", *arguments],
        env=environment | {"PYTHONPATH": str(installed), "HELIU_HOME": str(installed.parent / "home")} | variables,
        cwd=installed.parent,
        capture_output=True,
        text=True,
    )


def wanted(folder: Path) -> set[str]:
    """Every file below a package folder that is no rubbish, links followed, relative to the checkout."""
    return {
        str((Path(base) / name).relative_to(ROOT))
        for base, _, names in os.walk(folder, followlinks=True)
        for name in names
        if "__pycache__" not in base
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_in_the_wheel(wheel: Path, package: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    missing = wanted(ROOT / package) - shipped
    assert missing == set()


def test_the_wheel_has_the_pages_migrations_and_examples_and_nothing_of_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = archive.namelist()
    assert "heliu/demo/examples/lore.jsonl" in shipped
    assert "heliu/demo/examples/prompts.csv" in shipped
    assert any(name.startswith("heliu/static/swagger-ui/") for name in shipped)
    assert any(name.startswith("quotas/adapters/migrations/") for name in shipped)
    assert any(name.startswith("quotas/web/templates/") for name in shipped)
    tops = {name.partition("/")[0] for name in shipped if ".dist-info/" not in name}
    assert tops == set(PACKAGES)


def test_an_installed_heliu_runs_without_a_checkout(installed: Path) -> None:
    told = heliu(installed, "version", "--json")
    assert told.returncode == 0, told.stderr
    assert "version" in json.loads(told.stdout)
    look = "import heliu, json; from heliu.demo import act4_quote as a, act8_batch as b; "
    look += "print(json.dumps([heliu.__file__, a.LORE.is_file(), b.PROMPTS.is_file()]))"
    seen = subprocess.run(
        [sys.executable, "-P", "-c", look],
        env=os.environ | {"PYTHONPATH": str(installed)},
        cwd=installed.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(seen.stdout) == [str(installed / "heliu" / "__init__.py"), True, True]


def test_an_installed_demo_says_what_it_lacks(installed: Path) -> None:
    nowhere = str(installed.parent / "nowhere")
    told = heliu(installed, "demo", "--json", HELIU_MODELS_DIR=nowhere)
    assert told.returncode == 1
    refusal = json.loads(told.stderr)
    assert refusal["code"] == "demo_lacks"
    assert nowhere in refusal["message"]
    assert "HELIU_MODELS_DIR" in refusal["hint"]
