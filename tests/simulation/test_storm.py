"""Fifty storms. The nightly target has 2,000 of 500 events each."""

from pathlib import Path

import pytest

from tests.simulation.storm import ride
from tests.support.databases import TestServer

EVENTS = 30


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(50))
async def test_every_invariant_holds_through_a_storm_and_every_job_comes_to_its_end(
    seed: int, postgres: TestServer, tmp_path: Path
) -> None:
    with postgres.database() as url:
        storm = await ride(seed, EVENTS, url, tmp_path, ledger_every=10)
    assert len(storm.told) == EVENTS
