"""A key's minute on lease, on a real database: shared exactly, returned, recalled, and gone when it is over."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.clock import FixedClock
from kit.db import Database
from kit.errors import InvalidInput
from quotas import api
from quotas.ledger_service import sweep
from quotas.vocabulary import RATES_CHANNEL, KeyId, RateAsk, RateLease
from tests.support.money import open_firm, open_key


async def lease(
    tx: AsyncSession, clock: FixedClock, holder: str, key: KeyId, requests: int, tokens: int = 0, ahead: int = 0
) -> RateLease:
    minute = api.minute_of(clock.now()) + ahead
    [got] = await api.lease_windows(
        tx, holder=holder, minute=minute, asks=[RateAsk(key, requests, tokens)], now=clock.now()
    )
    return got


async def keep(
    tx: AsyncSession, clock: FixedClock, holder: str, key: KeyId, requests: int, tokens: int = 0
) -> RateLease:
    [kept] = await api.return_windows(
        tx,
        holder=holder,
        minute=api.minute_of(clock.now()),
        keeps=[RateAsk(key, requests, tokens)],
        now=clock.now(),
    )
    return kept


async def test_three_holders_share_a_minute_to_the_last_request(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        key = await open_key(tx, await open_firm(tx, now=clock.now()), now=clock.now(), requests=1000, tokens=500)
        first = await lease(tx, clock, "gw-1", key, 400, 100)
        assert (first.requests, first.tokens, first.requests_free, first.tokens_free) == (400, 100, 600, 400)
        second = await lease(tx, clock, "gw-2", key, 400, 300)
        third = await lease(tx, clock, "gw-3", key, 400, 300)
        assert [(one.requests, one.tokens) for one in (second, third)] == [(400, 300), (200, 100)]
        assert (third.requests_free, third.tokens_free) == (0, 0)
        assert await api.check_ledger(tx) == []


async def test_asking_again_for_as_much_in_all_leases_nothing_more(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        key = await open_key(tx, await open_firm(tx, now=clock.now()), now=clock.now(), requests=10)
        for _ in range(2):
            assert (await lease(tx, clock, "gw-1", key, 6)).requests == 6
        assert (await lease(tx, clock, "gw-1", key, 2)).requests == 6, "asking for less returns nothing"
        assert (await lease(tx, clock, "gw-1", key, 8)).requests_free == 2, "a top-up adds what is missing"


async def test_what_is_returned_another_holder_gets_and_again_returns_nothing(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        key = await open_key(tx, await open_firm(tx, now=clock.now()), now=clock.now(), requests=10, tokens=100)
        await lease(tx, clock, "gw-1", key, 10, 100)
        for _ in range(2):
            kept = await keep(tx, clock, "gw-1", key, 3, 60)
            assert (kept.requests, kept.tokens, kept.requests_free, kept.tokens_free) == (3, 60, 7, 40)
        assert (await keep(tx, clock, "gw-1", key, 5)).requests == 3, "keeping more than there is leases nothing"
        other = await lease(tx, clock, "gw-2", key, 10, 100)
        assert (other.requests, other.tokens) == (7, 100)


async def test_a_recalled_lease_grows_again_only_after_it_was_answered(db: Database, clock: FixedClock) -> None:
    minute = api.minute_of(clock.now())
    async with db.transaction() as tx:
        key = await open_key(tx, await open_firm(tx, now=clock.now()), now=clock.now(), requests=10)
        await lease(tx, clock, "gw-1", key, 4)
        await lease(tx, clock, "gw-3", key, 0)
        assert await api.recall_windows(tx, holder="gw-2", minute=minute, subject=key) == 1, "gw-3 has nothing"
        asked = await lease(tx, clock, "gw-1", key, 10)
        assert (asked.recalled, asked.requests) == (True, 4)
        assert (await keep(tx, clock, "gw-1", key, 1)).recalled is False
        assert (await lease(tx, clock, "gw-2", key, 10)).requests == 9
        assert await api.recall_windows(tx, holder="gw-1", minute=minute, subject="key_none") == 0


async def test_other_holders_hear_of_a_recall_when_it_is_committed(db: Database, clock: FixedClock) -> None:
    minute = api.minute_of(clock.now())
    async with db.transaction() as tx:
        key = await open_key(tx, await open_firm(tx, now=clock.now()), now=clock.now(), requests=10)
        await lease(tx, clock, "gw-1", key, 10)
    notices = db.listen([RATES_CHANNEL])
    assert await anext(notices) == ("", "")
    async with db.transaction() as tx:
        await api.recall_windows(tx, holder="gw-2", minute=minute, subject=key)
    assert await asyncio.wait_for(anext(notices), 10) == (RATES_CHANNEL, f"{key} {minute} gw-2")
    await notices.aclose()


async def test_a_dead_holders_share_counts_as_used_until_its_minute_is_over(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        key = await open_key(tx, await open_firm(tx, now=clock.now()), now=clock.now(), requests=10)
        await lease(tx, clock, "dead", key, 8)
        assert (await lease(tx, clock, "gw-1", key, 10)).requests == 2
        assert (await lease(tx, clock, "gw-1", key, 10, ahead=1)).requests == 10, "the next minute is a new one"
    clock.advance(timedelta(minutes=1))
    async with db.transaction() as tx:
        assert (await keep(tx, clock, "gw-1", key, 0)).requests_free == 10
    clock.advance(timedelta(minutes=2))
    await sweep(db, clock.now())
    async with db.transaction() as tx:
        left = await tx.execute(text("SELECT count(*) FROM quotas.rate_lease"))
        assert left.scalar_one() == 0, "windows that are over are forgotten"


async def test_a_kind_without_limit_is_leased_as_asked(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        key = await open_key(tx, await open_firm(tx, now=clock.now()), now=clock.now(), requests=10)
        got = await lease(tx, clock, "gw-1", key, 50, 10**12)
        assert (got.requests, got.tokens, got.tokens_free) == (10, 10**12, None)


async def test_a_limit_changed_within_a_minute_holds_from_the_next(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        key = await open_key(tx, await open_firm(tx, now=clock.now()), now=clock.now(), requests=10)
        await lease(tx, clock, "gw-1", key, 8)
        await tx.execute(text("UPDATE quotas.api_key SET requests_per_minute = 3 WHERE id = :key"), {"key": key})
        assert (await lease(tx, clock, "gw-2", key, 9)).requests == 2
        assert (await lease(tx, clock, "gw-2", key, 9, ahead=1)).requests == 3


async def test_several_keys_are_leased_in_one_call_and_unknown_ones_are_missing(
    db: Database, clock: FixedClock
) -> None:
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
        keys = sorted([await open_key(tx, firm, now=clock.now(), requests=n) for n in (5, 6)])
        asks = [RateAsk(key, 9, 0) for key in (*reversed(keys), KeyId("key_none"))]
        got = await api.lease_windows(tx, holder="gw", minute=api.minute_of(clock.now()), asks=asks, now=clock.now())
        assert [one.subject for one in got] == keys
        assert {one.requests for one in got} == {5, 6}


@pytest.mark.parametrize(
    ("holder", "minutes", "asks", "why"),
    [
        ("", 0, [("a", 1, 1)], "has a holder"),
        ("gw", 2, [("a", 1, 1)], "is not near"),
        ("gw", -2, [("a", 1, 1)], "is not near"),
        ("gw", 0, [("a", -1, 1)], "cannot be leased"),
        ("gw", 0, [("a", 1, 2**53 + 1)], "cannot be leased"),
        ("gw", 0, [("a", 1, 1), ("a", 2, 2)], "once in a call"),
    ],
)
async def test_what_cannot_be_right_is_refused_by_name(
    db: Database, clock: FixedClock, holder: str, minutes: int, asks: list[tuple[str, int, int]], why: str
) -> None:
    async with db.transaction() as tx:
        with pytest.raises(InvalidInput, match=why):
            await api.lease_windows(
                tx, holder=holder, minute=api.minute_of(clock.now()) + minutes,
                asks=[RateAsk(KeyId(key), requests, tokens) for key, requests, tokens in asks], now=clock.now(),
            )  # fmt: skip
