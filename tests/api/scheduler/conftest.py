"""A city for every test."""

from pathlib import Path

import pytest

from kit.clock import FixedClock
from kit.db import Database
from tests.support.scheduling import City, make_city


@pytest.fixture
async def city(db: Database, clock: FixedClock, tmp_path: Path) -> City:
    """A city with one node of two slots that the controller has seen."""
    made = await make_city(db, clock, tmp_path)
    made.add_node("n1", 2)
    await made.step()
    return made
