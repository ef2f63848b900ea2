"""Requests at once on lease, on a real database: shared exactly, returned, recalled, gone with a dead holder."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import SYSTEM
from kit.clock import FixedClock
from kit.db import Database
from kit.errors import InvalidInput
from quotas import api
from quotas.ledger_service import sweep
from quotas.vocabulary import FirmId, PlaceAsk, PlaceLease, RateLimits
from tests.support.money import open_firm

SECONDS = 30


async def limited(tx: AsyncSession, clock: FixedClock, at_once: int) -> str:
    firm = await open_firm(tx, now=clock.now())
    await api.set_rate_limit(tx, firm, None, RateLimits(requests_at_once=at_once), by=SYSTEM, now=clock.now())
    return firm


async def lease(
    tx: AsyncSession, clock: FixedClock, holder: str, subject: str, wanted: int, used: int = 0
) -> PlaceLease:
    asks = [PlaceAsk(subject, wanted, used)]
    [got] = await api.lease_places(tx, holder=holder, asks=asks, lease_seconds=SECONDS, now=clock.now())
    return got


async def keep(tx: AsyncSession, clock: FixedClock, holder: str, subject: str, used: int) -> PlaceLease:
    keeps = [PlaceAsk(subject, used, used)]
    [got] = await api.return_places(tx, holder=holder, keeps=keeps, lease_seconds=SECONDS, now=clock.now())
    return got


async def test_three_holders_share_the_places_to_the_last_and_asking_again_changes_nothing(
    db: Database, clock: FixedClock
) -> None:
    async with db.transaction() as tx:
        subject = await limited(tx, clock, 10)
        had = [(await lease(tx, clock, f"gw-{n}", subject, 4)).places for n in (1, 2, 3, 1)]
        assert had == [4, 4, 2, 4]
        assert (await lease(tx, clock, "gw-2", subject, 1)).places == 4, "asking for less returns nothing"
        assert await api.check_ledger(tx) == []


async def test_what_a_holder_does_not_use_goes_to_who_recalls_it(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        subject = await limited(tx, clock, 8)
        await lease(tx, clock, "gw-1", subject, 8)
        assert (await lease(tx, clock, "gw-2", subject, 3)).places == 0
        assert await api.recall_places(tx, holder="gw-2", subject=subject, now=clock.now()) == 1
        recalled = await lease(tx, clock, "gw-1", subject, 8, used=5)
        assert (recalled.places, recalled.recalled) == (8, True)
        assert (await lease(tx, clock, "gw-2", subject, 3)).asked, "gw-1 has not answered"
        assert (await keep(tx, clock, "gw-1", subject, 5)).places == 5
        got = await lease(tx, clock, "gw-2", subject, 4)
        assert (got.places, got.asked) == (3, False)


async def test_a_recalled_lease_does_not_grow_until_it_answered(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        subject = await limited(tx, clock, 8)
        await lease(tx, clock, "gw-1", subject, 2)
        await api.recall_places(tx, holder="gw-2", subject=subject, now=clock.now())
        assert (await lease(tx, clock, "gw-1", subject, 6)).places == 2
        await keep(tx, clock, "gw-1", subject, 2)
        assert (await lease(tx, clock, "gw-1", subject, 6)).places == 6


async def test_a_dead_holder_s_places_come_back_when_its_time_is_over_or_when_it_starts_anew(
    db: Database, clock: FixedClock
) -> None:
    async with db.transaction() as tx:
        subject = await limited(tx, clock, 8)
        await lease(tx, clock, "gw-1", subject, 8)
        clock.advance(timedelta(seconds=SECONDS - 1))
        assert (await lease(tx, clock, "gw-2", subject, 8)).places == 0
        clock.advance(timedelta(seconds=1))
        assert (await lease(tx, clock, "gw-2", subject, 8)).places == 8
        assert await api.forget_places(tx, holder="gw-2") == 1
        assert (await lease(tx, clock, "gw-3", subject, 8)).places == 8
    clock.advance(timedelta(seconds=SECONDS))
    assert await sweep(db, clock.now()) >= 1


async def test_a_lowered_limit_takes_nobody_s_running_requests_and_holds_as_they_end(
    db: Database, clock: FixedClock
) -> None:
    async with db.transaction() as tx:
        subject = await limited(tx, clock, 8)
        await lease(tx, clock, "gw-1", subject, 8)
        firm = FirmId(subject)
        await api.set_rate_limit(tx, firm, None, RateLimits(requests_at_once=3), by=SYSTEM, now=clock.now())
        assert (await lease(tx, clock, "gw-1", subject, 8, used=6)).places == 6
        assert (await lease(tx, clock, "gw-1", subject, 6, used=1)).places == 3


async def test_a_firm_s_own_limit_at_a_model_stands_in_the_place_of_every_firm_s(
    db: Database, clock: FixedClock
) -> None:
    async with db.transaction() as tx:
        one, other = [await open_firm(tx, now=clock.now()) for _ in range(2)]
        for firm, at_once in ((None, 2), (one, 5)):
            await api.set_rate_limit(
                tx, firm, "city-model", RateLimits(requests_at_once=at_once), by=SYSTEM, now=clock.now()
            )
        had = [(await lease(tx, clock, "gw-1", f"{firm}/city-model", 9)).places for firm in (one, other)]
        assert had == [5, 2]
        nothing = [PlaceAsk(f"{one}/other-model", 9, 0), PlaceAsk(one, 9, 0)]
        asked = api.lease_places(tx, holder="gw-1", asks=nothing, lease_seconds=SECONDS, now=clock.now())
        assert await asked == [], "no limit, no lease"


async def test_many_holders_at_once_never_have_more_than_there_is(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        subject = await limited(tx, clock, 7)

    async def one(holder: str) -> int:
        async with db.transaction() as tx:
            return (await lease(tx, clock, holder, subject, 3)).places

    assert sum(await asyncio.gather(*(one(f"gw-{n}") for n in range(6)))) == 7


async def test_what_cannot_be_leased_is_refused(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        subject = await limited(tx, clock, 7)
        for holder, ask, seconds in (("", (1, 0), 30), ("gw", (1, 2), 30), ("gw", (1, 0), 0), ("gw", (-1, -1), 30)):
            with pytest.raises(InvalidInput):
                await api.lease_places(
                    tx, holder=holder, asks=[PlaceAsk(subject, *ask)], lease_seconds=seconds, now=clock.now()
                )
