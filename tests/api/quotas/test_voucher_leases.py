"""Vouchers in gateways' leases, on a real database: who pays for tokens when the money was leased before."""

import random
from datetime import datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import SYSTEM
from kit.clock import FixedClock, utc_now
from kit.db import Database
from kit.errors import NoMoney
from kit.units import MicroYuan
from quotas import api
from quotas.adapters import ledger_store
from quotas.budgets import BudgetSpec, set_budget
from quotas.ledger_service import sweep
from quotas.vocabulary import AllowanceLease, FirmId, KeyId, LeaseId, UsageKind
from serving.admission import TopUp
from serving.gateway.control_plane import ControlPlane
from tests.support.money import grant, open_firm, publish_prices, tokens, yuan

WHOLE, HALF = 1_000_000, 500_000
PRICE = 105
"""Of one request of `tests.support.money.tokens`."""


async def for_tokens(tx: AsyncSession, firm: FirmId, amount: int, *, now: datetime, share: int, **spec: object) -> str:
    """A voucher for tokens."""
    return await grant(tx, firm, amount, now=now, share_ppm=share, covers=frozenset({UsageKind.TOKENS}), **spec)


async def leased(
    tx: AsyncSession, firm: FirmId, amount: int, *, now: datetime, holder: str = "gw", seconds: int = 60
) -> AllowanceLease:
    return await api.lease_allowance(
        tx, holder=holder, firm_id=firm, amount=MicroYuan(amount), lease_seconds=seconds, now=now
    )


async def renewed(
    tx: AsyncSession, lease_id: LeaseId, *, now: datetime, top_up: int = 0, seconds: int = 60
) -> AllowanceLease:
    return await api.renew_allowance(tx, lease_id=lease_id, holder="gw", top_up=top_up, lease_seconds=seconds, now=now)


async def free_of(tx: AsyncSession, firm: FirmId) -> list[int]:
    """What each voucher has free, in burn order."""
    return [one.terms.left for one in await api.vouchers_of(tx, firm)]


async def test_a_firm_with_a_whole_voucher_and_no_cash_calls_and_pays_nothing(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
        voucher = await for_tokens(tx, firm, 1000, now=clock.now(), share=WHOLE)
        lease = await leased(tx, firm, 600, now=clock.now())
        assert (lease.amount_left, await free_of(tx, firm)) == (600, [400])
        batch = [tokens(firm, n, at=clock.now(), lease_id=lease.id) for n in range(2)]
        await api.ingest_tokens(tx, batch, now=clock.now())
        [line] = (await api.statement(tx, firm, "2026-11", clock.now())).lines
        assert (line.amount, line.cash, line.vouchers) == (210, 0, {voucher: 210})
        assert (await renewed(tx, lease.id, now=clock.now())).amount_left == 390, "the lease's part paid"
        assert (await api.account_of(tx, firm)).balance == 0
        assert "platform:loss" not in await ledger_store.posted_balances(tx)
        assert await api.check_ledger(tx) == []
        await api.return_allowance(tx, lease_id=lease.id, holder="gw", now=clock.now())
        assert await free_of(tx, firm) == [790]
        assert await api.check_ledger(tx) == []


async def test_half_a_voucher_and_no_cash_is_refused_and_the_cash_that_is_missing_is_named(
    db: Database, clock: FixedClock
) -> None:
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
        await for_tokens(tx, firm, yuan(1), now=clock.now(), share=HALF)
        with pytest.raises(NoMoney) as refused:
            await leased(tx, firm, yuan(0.6), now=clock.now())
    assert refused.value.message.startswith(
        "Of ¥0.60 vouchers pay ¥0.30; ¥0.30 of cash is needed beside them, ¥0.00 is"
    )
    assert refused.value.details["needed_micro_yuan"] == yuan(0.3)
    plane = ControlPlane(db, holder="gw", lease_seconds=60)
    said = await plane.rule_against(firm, TopUp(yuan(0.6)))
    assert said is not None
    assert said.message == refused.value.message, "a caller of /v1 reads the same"


async def test_a_lease_is_as_large_as_vouchers_and_the_cash_beside_them_allow(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=100)
        await for_tokens(tx, firm, 30, now=clock.now(), share=WHOLE, priority=1)
        await for_tokens(tx, firm, 1000, now=clock.now(), share=HALF)
        await grant(tx, firm, 5000, now=clock.now())  # pays for GPU time only
        lease = await leased(tx, firm, 9999, now=clock.now())
        assert lease.amount_left == 30 + 2 * 100, "all of the first, then as much of the second as of cash"
        assert (await api.account_of(tx, firm)).available == 0
        assert sorted(await free_of(tx, firm)) == [0, 900, 5000]
        assert {(one.kind, one.amount) for one in await api.open_holds(tx)} == {("allowance", 230)}
        assert [one.amount_left for one in await api.open_leases(tx, holder="gw")] == [230]
        assert await api.check_ledger(tx) == []


async def test_a_lease_with_vouchers_is_topped_up_in_each_of_its_parts(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=1000)
        await for_tokens(tx, firm, 1000, now=clock.now(), share=HALF)
        lease = await leased(tx, firm, 210, now=clock.now())
        assert (await renewed(tx, lease.id, top_up=100, now=clock.now())).amount_left == 310
        batch = [tokens(firm, n, at=clock.now(), lease_id=lease.id) for n in range(3)]
        await api.ingest_tokens(tx, batch, now=clock.now())  # 315: 157 of the voucher, 158 of cash; 2 and 3 were free
        assert (await renewed(tx, lease.id, now=clock.now())).amount_left == 0
        again = await renewed(tx, lease.id, top_up=50, now=clock.now())
        assert (again.amount_left, await free_of(tx, firm)) == (50, [1000 - 157 - 25])
        assert (await api.account_of(tx, firm)).available == 1000 - 158 - 25
        assert await api.check_ledger(tx) == []


async def test_a_lease_ends_with_its_voucher_and_what_the_voucher_held_goes_to_its_pool(
    db: Database, clock: FixedClock
) -> None:
    begun = clock.now()
    await publish_prices(db, now=begun)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=begun)
        await for_tokens(tx, firm, 1000, now=begun, share=WHOLE, voucher_days=1)
        end = begun + timedelta(days=1)
        clock.advance(timedelta(days=1) - timedelta(seconds=90))
        lease = await leased(tx, firm, 600, now=clock.now())
        assert lease.expires_at == clock.now() + timedelta(seconds=60)
        clock.advance(timedelta(seconds=50))
        assert (await renewed(tx, lease.id, now=clock.now())).expires_at == end, "no promise beyond the voucher"
        clock.advance(timedelta(seconds=35))
        with pytest.raises(NoMoney):
            await leased(tx, firm, 100, now=clock.now(), holder="gw-2")  # five seconds before its end
        used = tokens(firm, 1, at=clock.now(), lease_id=lease.id)
        await api.ingest_tokens(tx, [used], now=clock.now())
        assert await api.check_ledger(tx) == []
    clock.advance(timedelta(seconds=5))
    await sweep(db, clock.now())
    async with db.transaction() as tx:
        late = tokens(firm, 2, at=clock.now(), lease_id=lease.id)
        await api.ingest_tokens(tx, [late], now=clock.now())
        [line] = (await api.statement(tx, firm, "2026-11", clock.now())).lines
        assert (line.amount, line.voucher, line.cash) == (PRICE, PRICE, 0), "what came after its end is a loss"
        assert (await ledger_store.posted_balances(tx))["platform:loss"] == -PRICE
        assert await free_of(tx, firm) == [0]
        assert await api.open_holds(tx) == []
        assert await api.check_ledger(tx) == []


async def test_a_voucher_that_is_all_leased_pays_through_that_lease_only_and_cash_pays_the_rest(
    db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=1000)
        voucher = await for_tokens(tx, firm, 150, now=clock.now(), share=WHOLE)
        first = await leased(tx, firm, 150, now=clock.now())
        second = await leased(tx, firm, 500, now=clock.now(), holder="gw-2")
        assert await free_of(tx, firm) == [0]
        for number, (lease, key) in enumerate([(second, "key_2"), (first, "key_1"), (first, "key_1")]):
            record = tokens(firm, number, at=clock.now(), lease_id=lease.id, key_id=KeyId(key))
            await api.ingest_tokens(tx, [record], now=clock.now())
        month = await api.statement(tx, firm, "2026-11", clock.now())
        assert {line.about["key_id"]: (line.amount, line.cash, line.vouchers) for line in month.lines} == {
            "key_1": (210, 60, {voucher: 150}), "key_2": (105, 105, {}),
        }  # fmt: skip
        assert (await api.account_of(tx, firm)).balance == 1000 - 165
        assert await api.check_ledger(tx) == []


async def test_a_recalled_lease_gives_its_voucher_money_to_the_next(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
        await for_tokens(tx, firm, 500, now=clock.now(), share=WHOLE)
        lease = await leased(tx, firm, 9999, now=clock.now())
        with pytest.raises(NoMoney):
            await leased(tx, firm, 100, now=clock.now(), holder="gw-2")
        assert await api.leased_elsewhere(tx, firm_id=firm, except_holder="gw-2"), "somebody may return some"
        assert await api.recall_allowances(tx, firm_id=firm, except_holder="gw-2", now=clock.now()) == 1
        assert (await renewed(tx, lease.id, top_up=100, now=clock.now())).recalled
        await api.return_allowance(tx, lease_id=lease.id, holder="gw", now=clock.now())
        assert await free_of(tx, firm) == [500]
        assert (await leased(tx, firm, 100, now=clock.now(), holder="gw-2")).amount_left == 100
        assert await api.check_ledger(tx) == []


async def test_a_dead_gateways_voucher_money_comes_back(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=100)
        await for_tokens(tx, firm, 500, now=clock.now(), share=HALF)
        assert (await leased(tx, firm, 200, now=clock.now())).amount_left == 200
        assert await free_of(tx, firm) == [400]
    clock.advance(timedelta(seconds=61))
    await sweep(db, clock.now())
    async with db.transaction() as tx:
        assert (await free_of(tx, firm), (await api.account_of(tx, firm)).available) == ([500], 100)
        assert await api.check_ledger(tx) == []


async def test_a_hard_budget_counts_what_is_leased_of_vouchers(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
        await for_tokens(tx, firm, 5000, now=clock.now(), share=WHOLE)
        await set_budget(tx, BudgetSpec(firm, 300, (100,), True), by=SYSTEM, now=clock.now())
        assert (await leased(tx, firm, 200, now=clock.now())).amount_left == 200
        assert (await leased(tx, firm, 200, now=clock.now(), holder="gw-2")).amount_left == 100
        with pytest.raises(NoMoney) as refused:
            await leased(tx, firm, 1, now=clock.now(), holder="gw-3")
        assert refused.value.code == "budget_reached"


@pytest.mark.parametrize("seed", range(2))
async def test_batching_never_changes_who_pays_through_leases(db: Database, clock: FixedClock, seed: int) -> None:
    await publish_prices(db, now=clock.now())
    chance = random.Random(seed)
    seen = []
    for _ in range(2):
        async with db.transaction() as tx:
            firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
            await for_tokens(tx, firm, yuan(1), now=clock.now(), share=333_333)
            leases = [await leased(tx, firm, 2000, now=clock.now(), holder=f"gw-{n}") for n in range(2)]
        events = [
            tokens(
                firm, n, at=clock.now(), lease_id=leases[n % 2].id, source=firm, key_id=KeyId(f"key_{n % 3}"),
            )
            for n in range(30)
        ]  # fmt: skip
        events += chance.choices(events, k=10)
        chance.shuffle(events)
        while events:
            size = chance.randint(1, 9)
            batch, events = events[:size], events[size:]
            async with db.transaction() as tx:
                await api.ingest_tokens(tx, batch, now=clock.now())
        async with db.transaction() as tx:
            month = await api.statement(tx, firm, "2026-11", clock.now())
            seen.append([(line.about["key_id"], line.amount, line.voucher, line.cash) for line in month.lines])
            assert await api.check_ledger(tx) == []
    assert seen[0] == seen[1]
    assert sum(line[2] for line in seen[0]) == 3 * (1050 * 333_333 // 1_000_000)


async def test_a_gateway_grows_shrinks_and_returns_a_lease_of_vouchers(db: Database) -> None:
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=utc_now(), paid_in=400)
        await for_tokens(tx, firm, 1000, now=utc_now(), share=HALF)
    plane = ControlPlane(db, holder="gw", lease_seconds=60)
    lease = await plane.grow(firm, None, least=TopUp(100), wanted=500, tokens_wanted=0)
    assert lease is not None
    assert await plane.grow(firm, lease, least=TopUp(100), wanted=9999, tokens_wanted=0) is lease
    assert lease.left == 800, "twice the cash"
    lease.set_aside()
    lease.left, lease.held = 300, 300
    await plane.shrink(lease, keep=300, keep_tokens=0)
    async with db.transaction() as tx:
        assert ((await api.account_of(tx, firm)).available, await free_of(tx, firm)) == (250, [850])
    await plane.shrink(lease, keep=0, keep_tokens=0)
    async with db.transaction() as tx:
        assert ((await api.account_of(tx, firm)).available, await free_of(tx, firm)) == (400, [1000])
        assert await api.check_ledger(tx) == []
