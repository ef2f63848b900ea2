"""Months and years end at midnight in Wuhan, 16:00 UTC: each thing with money on both sides of that second."""

from datetime import UTC, datetime, timedelta

import pytest

from kit.auth import SYSTEM
from kit.clock import FixedClock
from kit.db import Database
from kit.errors import NoMoney, Refused
from kit.ids import new_id
from kit.units import MicroYuan, Ppm
from quotas import api, cash, programmes
from quotas.budgets import BudgetSpec, set_budget
from quotas.ceilings import set_ceilings
from quotas.ledger_service import check_ledger, sweep
from quotas.pricing import Meter, RateKey
from quotas.statements import period_of
from quotas.storage import record_storage
from quotas.tariffs import publish_tariff
from quotas.vocabulary import Ceilings, Payer, StatementState, StorageMeasure
from tests.support.money import PROJECT, RATES, hold, open_firm, open_key, publish_prices, tokens, used, yuan

NEW_YEAR = datetime(2026, 12, 31, 16, tzinfo=UTC)
DECEMBER = datetime(2026, 11, 30, 16, tzinfo=UTC)
LEAP_DAY = datetime(2028, 2, 28, 16, tzinfo=UTC)
MARCH = datetime(2028, 2, 29, 16, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("at", "month"),
    [
        (NEW_YEAR - MOMENT, "2026-12"), (NEW_YEAR, "2027-01"),
        (LEAP_DAY, "2028-02"), (MARCH - MOMENT, "2028-02"), (MARCH, "2028-03"),
    ],
)  # fmt: skip
async def test_money_that_comes_and_goes_is_of_the_month_in_wuhan(db: Database, at: datetime, month: str) -> None:
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=at, paid_in=1000)
        await cash.record_withdrawal(
            tx, key="back", firm_id=firm, amount=MicroYuan(300), evidence="slip", by="test", now=at
        )
        there = await api.statement(tx, firm, month, at)
        assert (there.opening, there.top_ups, there.closing) == (0, 700, 700)
        assert period_of(at) == month
        assert await api.check_ledger(tx) == []


async def test_the_cap_of_a_programme_begins_anew_with_wuhans_year(db: Database) -> None:
    spec = programmes.ProgrammeSpec(
        "算力券", "the bureau", Ppm(500_000), yuan(1000), MicroYuan(100), NEW_YEAR - timedelta(days=300),
        NEW_YEAR + timedelta(days=300),
    )  # fmt: skip
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=NEW_YEAR - timedelta(days=300))
        made = await programmes.create_programme(tx, spec, by="test", now=NEW_YEAR - timedelta(days=300))

    async def granted(amount: int, at: datetime) -> None:
        async with db.transaction() as tx:
            await programmes.grant_voucher(
                tx, key=new_id("key"), programme_id=made.id, firm_id=firm, amount=MicroYuan(amount), note="",
                by="test", now=at,
            )  # fmt: skip

    await granted(60, NEW_YEAR - timedelta(days=200))
    await granted(40, NEW_YEAR - MOMENT)
    with pytest.raises(Refused, match="in 2026") as refused:
        await granted(1, NEW_YEAR - MOMENT)
    assert refused.value.details == {"room_micro_yuan": 0}
    await granted(100, NEW_YEAR)
    with pytest.raises(Refused, match="in 2027"):
        await granted(1, NEW_YEAR + timedelta(days=200))
    async with db.transaction() as tx:
        assert await api.check_ledger(tx) == []


ends = pytest.mark.parametrize("end", [DECEMBER, NEW_YEAR, MARCH], ids=["November", "the year", "a leap February"])


@ends
async def test_a_budget_begins_anew_at_midnight_in_wuhan(db: Database, end: datetime) -> None:
    early = end - timedelta(hours=1)
    await publish_prices(db, now=early)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=early, paid_in=yuan(10))
        await set_budget(tx, BudgetSpec(firm, 60_000, (100,), True), by=SYSTEM, now=early)
        held = await hold(tx, firm, now=early, seconds=60, key="first")
        await api.settle_compute(tx, hold_id=held.id, usage=used(firm, start=early, seconds=60), now=early)
        with pytest.raises(NoMoney) as reached:
            await hold(tx, firm, now=end - MOMENT, seconds=1, key="last")
        assert reached.value.code == "budget_reached"
        await hold(tx, firm, now=end, seconds=60, key="new month")
        assert await api.check_ledger(tx) == []


@ends
async def test_the_months_tokens_begin_anew_at_midnight_in_wuhan(db: Database, end: datetime) -> None:
    early = end - timedelta(hours=1)
    await publish_prices(db, now=early)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=early, paid_in=yuan(10))
        grant = await api.key_limits(tx, await open_key(tx, firm, now=early), now=early)
        assert grant is not None, "it was just issued"
        await set_ceilings(tx, firm, None, Ceilings(tokens_per_period=110), by=SYSTEM, now=early)
        await api.ingest_tokens(tx, [tokens(firm, 1, at=end - MOMENT)], now=end)
        leased = [
            await api.lease_allowance(
                tx, holder="gw", firm_id=firm, payer=Payer(firm, grant.project_id), amount=MicroYuan(1), tokens=50,
                lease_seconds=60, now=at,
            )
            for at in (end - MOMENT, end)
        ]  # fmt: skip
        assert [lease.tokens_left for lease in leased] == [0, 50], "of the old month all were used"


async def test_a_job_over_the_end_of_a_month_and_over_a_new_tariff_costs_each_its_time(db: Database) -> None:
    start, end = DECEMBER - timedelta(minutes=10), DECEMBER + timedelta(minutes=20)
    await publish_prices(db, now=start)
    dear = {key: 2 * rate for key, rate in RATES.items()}
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=start, paid_in=yuan(10))
        await publish_tariff(tx, name="dear", valid_from=DECEMBER, rates=dear, by="test", now=start)
        held = await hold(tx, firm, now=start, seconds=1800)
        assert held.amount == 3_600_000, "as if all of it ran at the dearer price"
        charge = await api.settle_compute(tx, hold_id=held.id, usage=used(firm, start=start, seconds=1800), now=end)
        assert (charge.period, charge.amount) == ("2026-12", 600_000 + 2 * 1_200_000)
        [line] = (await api.statement(tx, firm, "2026-12", end)).lines
        assert sorted(line.rates.values()) == [3_600_000, 7_200_000]
        assert (await api.statement(tx, firm, "2026-11", end)).lines == ()
        exact = await hold(tx, firm, now=start, seconds=600, subject="job_2")
        ended = used(firm, start=start, seconds=600, attempt="att_2", subject="job_2")
        assert (await api.settle_compute(tx, hold_id=exact.id, usage=ended, now=end)).period == "2026-11"
        assert await api.check_ledger(tx) == []


async def test_the_hour_of_storage_that_strikes_at_midnight_is_the_new_months(db: Database) -> None:
    rates = RATES | {RateKey(Meter.STORAGE_GB_MONTH, "files"): 720_000}
    hours = [DECEMBER + timedelta(hours=n) for n in (-1, 0, 1)]
    async with db.transaction() as tx:
        await publish_tariff(tx, name="all", valid_from=hours[0], rates=rates, by="test", now=hours[0])
        firm = await open_firm(tx, now=hours[0], paid_in=yuan(1))
        for hour in hours:
            await record_storage(tx, [StorageMeasure(firm, PROJECT, 10**9, hour)], now=hours[-1])
        months = [await api.statement(tx, firm, month, hours[-1]) for month in ("2026-11", "2026-12")]
        assert [month.lines[0].quantities["byte_hours"] for month in months] == [10**9, 2 * 10**9]
        assert await api.check_ledger(tx) == []


async def test_a_lease_that_is_open_while_its_month_closes_pays_for_what_comes_late(
    db: Database, clock: FixedClock
) -> None:
    clock.advance(DECEMBER - timedelta(minutes=1) - clock.now())
    began = clock.now()
    await publish_prices(db, now=began)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=began, paid_in=1000)
        await api.ingest_tokens(tx, [tokens(firm, 1, at=began)], now=began)
        lease = await api.lease_allowance(
            tx, holder="gw", firm_id=firm, amount=MicroYuan(895), lease_seconds=60, now=began
        )
    while clock.now() < DECEMBER + timedelta(hours=72):  # its holder renews it all the time
        clock.advance(timedelta(seconds=59))
        async with db.transaction() as tx:
            kept = await api.renew_allowance(tx, lease_id=lease.id, holder="gw", lease_seconds=3600, now=clock.now())
        clock.advance(min(timedelta(seconds=3500), DECEMBER + timedelta(hours=72) - clock.now()))
        assert kept.amount_left == 895
    await sweep(db, clock.now())
    async with db.transaction() as tx:
        assert (await api.statement(tx, firm, "2026-11", clock.now())).state is StatementState.CLOSED
        await api.ingest_tokens(tx, [tokens(firm, 2, at=began, lease_id=lease.id)], now=clock.now())
        november, december = [await api.statement(tx, firm, month, clock.now()) for month in ("2026-11", "2026-12")]
        assert (november.cash, november.closing, december.opening) == (105, 895, 895)
        assert [(line.service_period, line.cash) for line in december.lines] == [("2026-11", 105)]
        assert (await api.account_of(tx, firm)).held == 790, "the lease paid for it"
        assert await check_ledger(tx) == []
