"""A city for every test."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from kit.clock import FixedClock
from kit.db import Database
from quotas.members import issue_admin_link
from tests.support.scheduling import City, make_city


@pytest.fixture
async def city(db: Database, clock: FixedClock, tmp_path: Path) -> City:
    """A city with one node of two slots that the controller has seen."""
    made = await make_city(db, clock, tmp_path)
    made.add_node("n1", 2)
    await made.step()
    return made


@pytest.fixture
async def staff(city: City) -> AsyncIterator[httpx.AsyncClient]:
    """The platform's administrator, signed in."""
    async with city.db.transaction() as tx:
        token = await issue_admin_link(tx, city.clock.now())
    body = {"token": token, "email": "admin@heliu.example", "name": "管理员", "password": "a long enough password"}
    async with city.client() as anonymous:
        claimed = await anonymous.post("/api/admin/claim", json=body)
    assert claimed.status_code in (200, 201), claimed.text
    async with city.client(claimed.json()["token"]) as client:
        yield client
