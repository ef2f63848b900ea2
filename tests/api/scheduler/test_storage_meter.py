"""Storage is measured from what is stored, hour by hour, and charged once."""

from datetime import timedelta

from sqlalchemy import text

from kit.clock import FixedClock
from kit.db import Database
from quotas import api
from quotas.pricing import Meter, RateKey
from quotas.storage import FILES
from quotas.usage import ingest_usage
from quotas.vocabulary import MeteredUsage, UsageKind
from scheduler.storage_meter import measure
from tests.support.money import PROJECT, RATES, open_firm, publish_prices, yuan

UPLOAD = text("""
    INSERT INTO scheduler.upload (id, firm_id, project_id, name, sha256, size_bytes, received_bytes, state, created_by,
        created_at, expires_at)
    VALUES (:id, :firm, :project, 'a', repeat('0', 64), 1000000000, :got, CASE WHEN :got = 0 THEN 'open' ELSE 'complete'
        END, 'mem', :at, :at)""")


async def test_stored_bytes_are_charged_for_every_full_hour_once(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        book = RATES | {RateKey(Meter.STORAGE_GB_MONTH, "files"): 720_000}
        await api.publish_tariff(tx, name="all", valid_from=None, rates=book, by="test", now=clock.now())
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        for number, (minutes, got) in enumerate(((0, 10**9), (90, 10**9), (0, 0))):
            values = {"id": f"up_{number}", "firm": firm, "project": PROJECT, "got": got}
            await tx.execute(UPLOAD, values | {"at": clock.now() + timedelta(minutes=minutes)})
    assert await measure(db, clock) == 1
    assert await measure(db, clock) == 0, "an hour is charged once"
    clock.advance(timedelta(hours=3, minutes=20))
    assert await measure(db, clock) == 3, "hours that nobody measured are made up for"
    async with db.transaction() as tx:
        [line] = (await api.statement(tx, firm, "2026-11", clock.now())).lines
        assert (line.quantities, line.amount) == ({"byte_hours": 6 * 10**9}, 6_000)
        assert await api.check_ledger(tx) == []


async def test_storage_that_somebody_else_reports_moves_none_of_the_platforms_hours(
    db: Database, clock: FixedClock
) -> None:
    async with db.transaction() as tx:
        book = RATES | {RateKey(Meter.STORAGE_GB_MONTH, "files"): 720_000}
        await api.publish_tariff(tx, name="all", valid_from=None, rates=book, by="test", now=clock.now())
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        values = {"id": "up_1", "firm": firm, "project": PROJECT, "got": 10**9, "at": clock.now()}
        await tx.execute(UPLOAD, values)
    assert await measure(db, clock) == 1
    clock.advance(timedelta(minutes=119))
    reported = MeteredUsage(
        id="1", source="/archive", kind=UsageKind.STORAGE, firm_id=firm, project_id=PROJECT, resource=FILES,
        base_resource=FILES, quantity=1, at=clock.now(),
    )  # fmt: skip
    async with db.transaction() as tx:
        await ingest_usage(tx, [reported], now=clock.now())
    assert await measure(db, clock) == 1
    clock.advance(timedelta(minutes=1))
    assert await measure(db, clock) == 1
    clock.advance(timedelta(days=5))
    assert await measure(db, clock) == 73, "as far back as late usage goes"


async def test_storage_that_has_no_price_is_not_measured(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
        values = {"id": "up_1", "firm": firm, "project": PROJECT, "got": 10**9, "at": clock.now()}
        await tx.execute(UPLOAD, values)
    assert await measure(db, clock) == 0
    async with db.transaction() as tx:
        assert (await api.statement(tx, firm, "2026-11", clock.now())).lines == ()
