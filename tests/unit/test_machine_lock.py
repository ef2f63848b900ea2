"""Locks of the machine never let a test session wait for itself, nor for ever for another one."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.machine_lock import DeadlockByConstruction, machine_locks
from tests.support.sources import ROOT

HOLD = """
import sys
from tests.support.machine_lock import machine_locks
with machine_locks("b"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def another_session(folder: Path) -> Iterator[int]:
    environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other.pid


def test_a_lock_another_session_holds_is_waited_for_until_the_deadline_and_the_holder_named(folder: Path) -> None:
    with another_session(folder) as pid:
        sentence = rf"b\.lock was not free within 0\.1 s; process {pid} holds it"
        with pytest.raises(AssertionError, match=sentence), machine_locks("a", "b", seconds=0.1):
            raise AssertionError("it was held by two")
        with machine_locks("a", seconds=0):
            pass
    with machine_locks("b", seconds=5):
        pass


def test_who_holds_a_lock_is_told_at_once_that_it_would_wait_for_itself() -> None:
    refused = pytest.raises(DeadlockByConstruction, match="'b' and holds it already")
    with machine_locks("b"), refused, machine_locks("b"):
        raise AssertionError("one process held it twice")
    with machine_locks("b"):
        pass


def test_locks_asked_for_out_of_order_are_refused_for_two_sessions_could_wait_in_a_circle() -> None:
    with machine_locks("b"):
        with pytest.raises(DeadlockByConstruction, match="'a', which comes before it"), machine_locks("a"):
            raise AssertionError("out of order")
        with machine_locks("c"):
            pass
    with machine_locks("c", "a", "b"):
        pass
