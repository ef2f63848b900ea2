"""Holds and charges of GPU time, on a real database: who pays what, once."""

from datetime import timedelta
from typing import Any

import pytest

from kit.clock import FixedClock
from kit.db import Database
from kit.errors import Conflict, NoMoney, NotFound, Refused
from kit.units import GpuMilli, GpuMs, Ppm
from quotas import api, tariffs
from quotas.adapters import ledger_store
from quotas.ledger_service import sweep
from quotas.pricing import Meter, RateKey
from quotas.vocabulary import PLATFORM_FIRM, CentreName, HoldId, HoldState, QoS
from tests.support.money import POOL, grant, hold, open_firm, publish_prices, used, yuan


async def test_a_job_is_charged_what_it_used_and_the_rest_of_its_hold_comes_back(
    db: Database, clock: FixedClock
) -> None:
    tariff = await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        held = await hold(tx, firm, now=clock.now(), seconds=400)
        assert (held.amount, held.cash, held.vouchers) == (yuan(0.4), yuan(0.4), ())
        assert (await api.account_of(tx, firm)).available == yuan(0.6)
    start = clock.now()
    clock.advance(timedelta(seconds=300))
    async with db.transaction() as tx:
        charge = await api.settle_compute(
            tx, hold_id=held.id, usage=used(firm, start=start, seconds=250.5), now=clock.now()
        )
        assert (charge.amount, charge.cash, charge.voucher, charge.tariff_id) == (250_500, 250_500, 0, tariff)
        account = await api.account_of(tx, firm)
        assert (account.balance, account.held, account.available) == (749_500, 0, 749_500)
        balances = await ledger_store.posted_balances(tx)
        assert balances["platform:revenue:compute"] == 250_500
        assert balances["centre:optics-valley:payable"] == 200_400, "80 % of the list price"
        assert balances[f"firm:{firm}:gpu:{POOL}"] == -250_500
        assert balances[f"pool:{POOL}:capacity"] == 250_500
        assert await api.check_ledger(tx) == []


async def test_vouchers_pay_their_share_and_what_they_did_not_pay_stays_with_them(
    db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(10))
        small = await grant(tx, firm, yuan(0.1), now=clock.now(), priority=1)
        large = await grant(tx, firm, yuan(5), now=clock.now(), share_ppm=250_000, priority=2)
        held = await hold(tx, firm, now=clock.now(), seconds=1000)
        assert [(part.voucher_id, part.amount) for part in held.vouchers] == [(small, 100_000), (large, 200_000)]
        assert held.cash == 700_000
        charge = await api.settle_compute(
            tx, hold_id=held.id, usage=used(firm, start=clock.now(), seconds=100), now=clock.now()
        )
        assert (charge.amount, charge.voucher, charge.cash) == (100_000, 50_000, 50_000)
        left = {one.terms.id: one.terms.left for one in await api.vouchers_of(tx, firm)}
        assert left == {small: 50_000, large: 5_000_000}
        assert await api.check_ledger(tx) == []


async def test_settling_twice_charges_once(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        held = await hold(tx, firm, now=clock.now())
        usage = used(firm, start=clock.now(), seconds=60)
        first = await api.settle_compute(tx, hold_id=held.id, usage=usage, now=clock.now())
        again = await api.settle_compute(tx, hold_id=held.id, usage=usage, now=clock.now())
        assert again.id == first.id
        other = used(firm, start=clock.now(), seconds=61)
        with pytest.raises(Conflict, match="charged differently"):
            await api.settle_compute(tx, hold_id=held.id, usage=other, now=clock.now())
        overlapping = used(firm, start=clock.now() + timedelta(seconds=30), seconds=60)
        second_hold = await hold(tx, firm, now=clock.now())
        with pytest.raises(Conflict, match="charged already"):
            await api.settle_compute(tx, hold_id=second_hold.id, usage=overlapping, now=clock.now())
        assert (await api.account_of(tx, firm)).balance == yuan(1) - 60_000


async def test_the_same_key_makes_one_hold_and_another_request_under_it_is_refused(
    db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        first = await hold(tx, firm, now=clock.now(), key="job_1")
        assert await hold(tx, firm, now=clock.now(), key="job_1") == first
        others: list[dict[str, Any]] = [{"seconds": 101}, {"cap_micro_yuan": 5}, {"key_id": "key_1"}]
        for other in others:
            with pytest.raises(Conflict) as caught:
                await hold(tx, firm, now=clock.now(), key="job_1", **other)
            assert caught.value.code == "key_reused"
        assert (await api.account_of(tx, firm)).held == first.cash


async def test_a_refused_hold_changes_nothing_and_the_transaction_goes_on(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(0.1))
        voucher = await grant(tx, firm, yuan(5), now=clock.now())
        with pytest.raises(NoMoney) as caught:
            await hold(tx, firm, now=clock.now(), seconds=1000)
        assert caught.value.details["needed_micro_yuan"] == 500_000
        held = await hold(tx, firm, now=clock.now(), seconds=200)
        assert (held.cash, held.vouchers[0].amount) == (100_000, 100_000)
    async with db.transaction() as tx:
        [one] = await api.vouchers_of(tx, firm)
        assert (one.terms.id, one.terms.left) == (voucher, yuan(5) - 100_000)
        assert await api.check_ledger(tx) == []


async def test_a_released_hold_costs_nothing_and_cannot_be_settled_any_more(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        await grant(tx, firm, yuan(5), now=clock.now())
        held = await hold(tx, firm, now=clock.now())
        for _ in range(2):
            await api.release_hold(tx, hold_id=held.id, reason="the node was lost", now=clock.now())
        account = await api.account_of(tx, firm)
        assert (account.balance, account.held) == (yuan(1), 0)
        assert await api.open_holds(tx) == []
        with pytest.raises(Conflict, match="released already"):
            await api.settle_compute(
                tx, hold_id=held.id, usage=used(firm, start=clock.now(), seconds=1), now=clock.now()
            )


async def test_an_agreed_maximum_caps_the_charge_and_the_centre_is_paid_in_full(
    db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        held = await hold(tx, firm, now=clock.now(), seconds=100, cap_micro_yuan=60_000)
        charge = await api.settle_compute(
            tx, hold_id=held.id, usage=used(firm, start=clock.now(), seconds=100), now=clock.now()
        )
        assert charge.amount == 60_000
        month = await api.centre_statement(tx, CentreName("optics-valley"), "2026-11", clock.now())
        assert (month.gpu_ms, month.payable) == (100_000, 80_000)
        assert await api.check_ledger(tx) == []


async def test_usage_that_crosses_a_tariff_boundary_is_priced_on_each_side(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    boundary = clock.now() + timedelta(seconds=60)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        await tariffs.publish_tariff(
            tx,
            name="dearer",
            valid_from=boundary,
            rates={RateKey(Meter.GPU_HOUR, POOL, "standard"): 7_200_000},
            ends_prices=True,
            by="test",
            now=clock.now(),
        )
        held = await hold(tx, firm, now=clock.now(), seconds=100)
        assert held.amount == 200_000, "the dearer price could apply to all of it"
        charge = await api.settle_compute(
            tx, hold_id=held.id, usage=used(firm, start=clock.now(), seconds=90), now=clock.now()
        )
        assert charge.amount == 60_000 + 2 * 30_000
        with pytest.raises(Refused) as caught:
            await api.gpu_rate(tx, pool=POOL, qos=QoS.INTERRUPTIBLE, at=boundary)
        assert caught.value.code == "no_tariff"


async def test_a_replica_rolls_its_hold_on_until_the_money_ends(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=150_000)
        held = await hold(tx, firm, now=clock.now(), seconds=60, subject="rep_1")
    start = clock.now()
    for _ in range(2):
        async with db.transaction() as tx:
            piece = used(firm, start=start, seconds=60, subject="rep_1")
            charge, following = await api.renew_compute(
                tx, hold_id=held.id, usage_slice=piece, seconds_max=30 if _ else 60, now=clock.now()
            )
            assert (following.id != held.id, charge.amount) == (True, 60_000)
            held, start = following, start + timedelta(seconds=60)
    async with db.transaction() as tx:
        piece = used(firm, start=start, seconds=30, subject="rep_1")
        with pytest.raises(NoMoney):
            await api.renew_compute(tx, hold_id=held.id, usage_slice=piece, seconds_max=60, now=clock.now())
    async with db.transaction() as tx:
        assert [charge.amount for charge in await api.charges_of(tx, "rep_1")] == [60_000, 60_000, 30_000]
        assert (await api.account_of(tx, firm)).balance == 0
        assert await api.open_holds(tx) == []
        assert await api.check_ledger(tx) == []


async def test_the_platforms_own_workload_costs_it_what_the_centre_gets(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        await tariffs.set_centre_contract(
            tx, centre=CentreName("optics-valley"), payout_ppm=Ppm(700_000), now=clock.now()
        )
        held = await hold(tx, PLATFORM_FIRM, now=clock.now(), seconds=100, subject="rep_1")
        usage = used(PLATFORM_FIRM, start=clock.now(), seconds=50, subject="rep_1")
        charge = await api.settle_compute(tx, hold_id=held.id, usage=usage, now=clock.now())
        assert charge.amount == 0
        balances = await ledger_store.posted_balances(tx)
        assert balances["centre:optics-valley:payable"] == 35_000
        assert balances["platform:cost:own-workloads"] == -35_000
        assert await api.check_ledger(tx) == []


@pytest.mark.parametrize("held_for", [100, 20], ids=["the contract was raised", "it ran over"])
async def test_a_centre_is_owed_what_its_statement_says_also_above_what_the_platform_held(
    db: Database, clock: FixedClock, held_for: int
) -> None:
    await publish_prices(db, now=clock.now())
    centre = CentreName("optics-valley")
    async with db.transaction() as tx:
        held = await hold(tx, PLATFORM_FIRM, now=clock.now(), seconds=held_for, subject="rep_1")
        clock.advance(timedelta(seconds=1))
        await tariffs.set_centre_contract(tx, centre=centre, payout_ppm=Ppm(1_000_000), now=clock.now())
        usage = used(PLATFORM_FIRM, start=clock.now(), seconds=90, subject="rep_1")
        await api.settle_compute(tx, hold_id=held.id, usage=usage, now=clock.now())
        month = await api.centre_statement(tx, centre, "2026-11", clock.now())
        balances = await ledger_store.posted_balances(tx)
        assert balances["centre:optics-valley:payable"] == month.payable == 90_000
        assert balances["platform:cost:own-workloads"] == -90_000
        assert await api.open_holds(tx) == []
        assert await api.check_ledger(tx) == []


async def test_a_hold_nobody_settles_expires_and_a_late_settlement_takes_only_free_cash(
    db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=100_000)
        held = await hold(tx, firm, now=clock.now(), seconds=100)
    usage = used(firm, start=clock.now(), seconds=100)
    clock.advance(timedelta(days=2))
    assert await sweep(db, clock.now()) > 0
    async with db.transaction() as tx:
        assert (await api.account_of(tx, firm)).available == 100_000
        await hold(tx, firm, now=clock.now(), seconds=40, subject="job_2")
        charge = await api.settle_compute(tx, hold_id=held.id, usage=usage, now=clock.now())
        assert charge.amount == 60_000, "what another job holds is not touched"
        assert (await ledger_store.posted_balances(tx))["platform:loss"] == -40_000
        assert await api.check_ledger(tx) == []
        [still] = await api.open_holds(tx)
        assert still.subject == "job_2"


async def test_a_refund_goes_back_to_whoever_paid_once(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        await grant(tx, firm, yuan(5), now=clock.now())
        held = await hold(tx, firm, now=clock.now())
        charge = await api.settle_compute(
            tx, hold_id=held.id, usage=used(firm, start=clock.now(), seconds=100), now=clock.now()
        )
        note = await api.refund_charge(tx, charge_id=charge.id, reason="wrong answer", now=clock.now())
        assert (note.amount, note.cash, note.voucher) == (-100_000, -50_000, -50_000)
        assert (await api.account_of(tx, firm)).balance == yuan(1)
        [voucher] = await api.vouchers_of(tx, firm)
        assert voucher.terms.left == yuan(5)
        with pytest.raises(Conflict, match="given back already"):
            await api.refund_charge(tx, charge_id=charge.id, reason="again", now=clock.now())
        assert await api.check_ledger(tx) == []


async def test_a_quote_names_the_range_and_who_would_pay(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(0.04))
        voucher = await grant(tx, firm, yuan(5), now=clock.now())
        quote = await api.quote_compute(
            tx,
            firm_id=firm,
            pool=POOL,
            qos=QoS.STANDARD,
            gpu_milli=GpuMilli(2000),
            seconds_min=10,
            seconds_max=50,
            at=clock.now(),
            now=clock.now(),
        )
        assert (quote.min_micro_yuan, quote.max_micro_yuan) == (20_000, 100_000)
        assert (quote.voucher_pays_max, quote.cash_max, quote.voucher_ids) == (50_000, 50_000, (voucher,))
        assert not quote.affordable
        assert "50 % of ¥0.10" in quote.explanation[0]
        assert await api.open_holds(tx) == []


async def test_a_hold_that_does_not_exist_is_not_found(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        with pytest.raises(NotFound, match="no hold"):
            await api.release_hold(tx, hold_id=HoldId("hold_none"), reason="", now=clock.now())


async def test_gpu_time_of_nothing_is_a_line_without_money(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        held = await hold(tx, firm, now=clock.now())
        usage = used(firm, start=clock.now(), seconds=0, gpu_ms=GpuMs(0))
        charge = await api.settle_compute(tx, hold_id=held.id, usage=usage, now=clock.now())
        assert charge.amount == 0
        row = await hold(tx, firm, now=clock.now())
        assert row.state is HoldState.OPEN
        assert await api.check_ledger(tx) == []
