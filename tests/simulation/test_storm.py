"""Fifty storms. The nightly target has 2,000 of 500 events each."""

from pathlib import Path

import pytest

from scheduler import attempts
from scheduler.adapters import taking
from tests.simulation.storm import Wrecked, ride
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


@pytest.mark.timeout(300)
async def test_a_charge_above_what_a_program_ran_wrecks_a_storm(
    postgres: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = attempts.billable_ms
    monkeypatch.setattr(attempts, "billable_ms", lambda *args, now: counted(*args, now=now) + 7)
    with postgres.database() as url, pytest.raises(Wrecked, match=r"(?s)S2: .*--seed 0 --events 30"):
        await ride(0, EVENTS, url, tmp_path)


@pytest.mark.timeout(300)
async def test_room_that_is_not_given_back_wrecks_a_storm(
    postgres: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def kept(*_: object, **__: object) -> None:
        pass

    monkeypatch.setattr(taking, "give_back_many", kept)
    with postgres.database() as url, pytest.raises(Wrecked, match="S1"):
        await ride(0, EVENTS, url, tmp_path)
