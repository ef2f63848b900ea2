"""Holds and charges of many jobs in one transaction mean what they mean one by one."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import SYSTEM
from kit.clock import FixedClock
from kit.db import Database
from kit.errors import Conflict, NoMoney, Refused
from kit.units import GpuMilli, MicroYuan
from quotas import api
from quotas.api import HoldRequest
from quotas.budgets import BudgetSpec, set_budget
from quotas.vocabulary import PLATFORM_FIRM, FirmId, Hold, PoolName, QoS
from tests.support.money import POOL, PROJECT, grant, open_firm, publish_prices, used, yuan


def asks(firm: FirmId, key: str, *, seconds: int = 100, pool: PoolName = POOL, cap: int | None = None) -> HoldRequest:
    """One slot for so many seconds; 1,000 seconds cost one yuan."""
    limit = None if cap is None else MicroYuan(cap)
    return HoldRequest(key, firm, PROJECT, f"job_{key}", pool, QoS.STANDARD, GpuMilli(1000), seconds, limit)


async def hold_many(tx: AsyncSession, asked: Sequence[HoldRequest], now: datetime) -> list[Hold | Refused]:
    return await api.hold_compute_many(tx, asked, now=now)


async def test_who_cannot_pay_is_told_so_and_keeps_nobody_else_from_it(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        rich = await open_firm(tx, now=clock.now(), paid_in=yuan(10))
        poor = await open_firm(tx, now=clock.now(), paid_in=yuan(0.25))
        none = await open_firm(tx, now=clock.now())
        asked = [
            asks(poor, "a"), asks(rich, "b"), asks(poor, "c"), asks(none, "d"), asks(poor, "e"), asks(rich, "f"),
            asks(poor, "g", cap=50_000), asks(rich, "h", pool=PoolName("moon/x")),
        ]  # fmt: skip
        got = await hold_many(tx, asked, clock.now())
        assert [type(one) for one in got] == [Hold, Hold, Hold, NoMoney, NoMoney, Hold, Hold, Refused]
        assert isinstance(got[7], Refused) and got[7].code == "no_tariff"
        assert (await api.account_of(tx, poor)).available == 0
        assert (await api.account_of(tx, rich)).held == yuan(0.2)
        assert await api.check_ledger(tx) == []


async def test_a_batch_shares_vouchers_out_as_one_request_after_the_other_would(
    db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    shared: list[list[tuple[int, list[int]]]] = []
    for batched in (True, False):
        async with db.transaction() as tx:
            firm = await open_firm(tx, now=clock.now(), paid_in=yuan(10))
            await grant(tx, firm, yuan(0.12), now=clock.now(), priority=1)
            await grant(tx, firm, yuan(5), now=clock.now(), share_ppm=250_000, priority=2)
            asked = [asks(firm, f"{batched}{n}") for n in range(5)]
            pieces = [asked] if batched else [[one] for one in asked]
            held = [one for piece in pieces for one in await hold_many(tx, piece, clock.now())]
            assert all(isinstance(one, Hold) for one in held)
            shared.append([(h.cash, [p.amount for p in h.vouchers]) for h in held if isinstance(h, Hold)])
            assert await api.check_ledger(tx) == []
    assert shared[0] == shared[1]
    assert shared[0][:3] == [(50_000, [50_000]), (50_000, [50_000]), (65_000, [20_000, 15_000])]


async def test_the_same_key_in_another_batch_returns_the_same_hold(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        first = await hold_many(tx, [asks(firm, "a")], clock.now())
        again = await hold_many(tx, [asks(firm, "a"), asks(firm, "b")], clock.now())
        assert again[0] == first[0]
        assert (await api.account_of(tx, firm)).held == yuan(0.2)
        with pytest.raises(Conflict, match="used for another request"):
            await hold_many(tx, [asks(firm, "a", seconds=7)], clock.now())


async def test_a_hard_budget_stops_a_batch_where_it_stops_single_holds(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(10))
        await set_budget(tx, BudgetSpec(firm, yuan(0.25), (100,), True), by=SYSTEM, now=clock.now())
        own = asks(PLATFORM_FIRM, "own")
        got = await hold_many(tx, [own, *(asks(firm, str(n)) for n in range(3))], clock.now())
        assert [type(one) for one in got] == [Hold, Hold, Hold, NoMoney]
        assert isinstance(got[3], NoMoney) and got[3].code == "budget_reached"


async def test_many_ends_charge_what_each_alone_would_and_give_the_rest_back(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    start, charged = clock.now(), list[list[tuple[int, int, int]]]()
    clock.advance(timedelta(seconds=60))
    for batched in (True, False):
        async with db.transaction() as tx:
            firms = [await open_firm(tx, now=start, paid_in=yuan(10)) for _ in range(2)]
            await grant(tx, firms[0], yuan(0.12), now=start, priority=1)
            asked = [asks(firms[n % 2], f"{batched}{n}") for n in range(6)]
            held = [one for one in await hold_many(tx, asked, start) if isinstance(one, Hold)]
            ends = [
                (one.id, used(one.firm_id, start=start, seconds=7.3 * n, attempt=f"att_{one.id}", subject=one.subject))
                for n, one in enumerate(held)
            ]
            pieces = [ends] if batched else [[one] for one in ends]
            charges = [c for piece in pieces for c in await api.settle_compute_many(tx, piece, now=clock.now())]
            charged.append([(c.amount, c.cash, c.voucher) for c in charges])
            again = await api.settle_compute_many(tx, ends, now=clock.now())
            assert [c.id for c in again] == [c.id for c in charges], "a usage is charged once"
            assert [(await api.account_of(tx, firm)).held for firm in firms] == [0, 0]
            assert await api.check_ledger(tx) == []
    assert charged[0] == charged[1]


async def test_holds_released_together_are_free_again_once(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        held = [
            one for one in await hold_many(tx, [asks(firm, k) for k in "abc"], clock.now()) if isinstance(one, Hold)
        ]
        for _ in range(2):
            await api.release_holds(tx, {one.id: "node_lost" for one in held[:2]}, now=clock.now())
            assert (await api.account_of(tx, firm)).held == yuan(0.1)
        usage = used(firm, start=clock.now(), seconds=1, subject=held[2].subject)
        await api.settle_compute_many(tx, [(held[2].id, usage)], now=clock.now())
        with pytest.raises(Conflict, match="settled already"):
            await api.release_holds(tx, {held[2].id: "too late"}, now=clock.now())
        assert await api.check_ledger(tx) == []
