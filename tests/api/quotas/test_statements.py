"""Months: what a statement says, when it closes, where late usage goes, and how the chain tells of tampering."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from kit.clock import FixedClock
from kit.db import Database
from kit.errors import InvalidInput
from kit.units import Ppm
from quotas import api
from quotas.discounts import grant_discount
from quotas.ledger_service import Closing, close_months, sweep
from quotas.programmes import expire_vouchers
from quotas.statements import check_statement
from quotas.tariffs import set_centre_contract
from quotas.vocabulary import StatementState, UsageKind, centre_of
from tests.support.money import POOL, grant, hold, open_firm, publish_prices, tokens, used, yuan

LAST_HOUR = datetime(2026, 11, 30, 15, 0, tzinfo=UTC)  # 23:00 in Wuhan on the last of November


async def test_a_statement_adds_up_from_opening_to_closing(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        voucher = await grant(tx, firm, yuan(5), now=clock.now())
        held = await hold(tx, firm, now=clock.now())
        await api.settle_compute(tx, hold_id=held.id, usage=used(firm, start=clock.now(), seconds=90), now=clock.now())
        await api.ingest_tokens(tx, [tokens(firm, 1, at=clock.now())], now=clock.now())
        month = await api.statement(tx, firm, "2026-11", clock.now())
        assert check_statement(month) == []
        assert (month.opening, month.top_ups, month.cash, month.closing) == (0, yuan(1), 45_105, yuan(1) - 45_105)
        assert (month.amount, month.voucher) == (90_105, 45_000)
        assert month.state is StatementState.OPEN
        [compute] = [line for line in month.lines if line.kind == "compute"]
        assert compute.vouchers == {voucher: 45_000}
        assert compute.about == {"pool": "optics-valley/cpu-slot", "qos": "standard"}
        assert (compute.subject, compute.quantities) == ("job_1", {"gpu_ms": 90_000})
        december = await api.statement(tx, firm, "2026-12", clock.now())
        assert (december.opening, december.closing, december.lines) == (month.closing, month.closing, ())


async def test_a_closed_month_never_changes_and_late_usage_goes_to_the_next(db: Database, clock: FixedClock) -> None:
    clock.advance(LAST_HOUR - clock.now())
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        await api.ingest_tokens(tx, [tokens(firm, 1, at=LAST_HOUR)], now=clock.now())
    clock.advance(timedelta(hours=30))
    await sweep(db, clock.now())
    async with db.transaction() as tx:
        await api.ingest_tokens(tx, [tokens(firm, 2, at=LAST_HOUR)], now=clock.now())
        month = await api.statement(tx, firm, "2026-11", clock.now())
        assert (month.state, month.lines[0].quantities["requests"]) == (StatementState.CLOSING, 2)
    clock.advance(timedelta(hours=72))
    await sweep(db, clock.now())
    async with db.transaction() as tx:
        closed = await api.statement(tx, firm, "2026-11", clock.now())
        assert closed.state is StatementState.CLOSED
        assert (closed.hash, closed.lines, closed.cash) == (month.hash, month.lines, 210)
        late = tokens(firm, 3, at=LAST_HOUR)
        await api.ingest_tokens(tx, [late], now=clock.now())
        assert await api.statement(tx, firm, "2026-11", clock.now()) == closed
        december = await api.statement(tx, firm, "2026-12", clock.now())
        [line] = december.lines
        assert (line.service_period, line.amount, december.opening) == ("2026-11", 105, yuan(1) - 210)
        assert await api.check_ledger(tx) == []
    with pytest.raises(IntegrityError, match="closed month"):
        async with db.transaction() as tx:
            await tx.execute(text("UPDATE quotas.charge SET note = 'x' WHERE period = '2026-11'"))


async def test_usage_of_an_idle_month_never_lands_before_a_month_that_is_closed(
    db: Database, clock: FixedClock
) -> None:
    idle = datetime(2026, 10, 20, tzinfo=UTC)
    clock.advance(LAST_HOUR - clock.now())
    await publish_prices(db, now=idle)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        await api.ingest_tokens(tx, [tokens(firm, 1, at=LAST_HOUR)], now=clock.now())
    clock.advance(timedelta(days=10))
    await sweep(db, clock.now())
    async with db.transaction() as tx:
        await api.ingest_tokens(tx, [tokens(firm, 2, at=idle)], now=clock.now())
    await sweep(db, clock.now())
    async with db.transaction() as tx:
        october, november, december = [
            await api.statement(tx, firm, period, clock.now()) for period in ("2026-10", "2026-11", "2026-12")
        ]
    assert (october.lines, october.state, november.state) == ((), StatementState.CLOSED, StatementState.CLOSED)
    assert [(line.service_period, line.amount) for line in december.lines] == [("2026-10", 105)]
    assert (october.closing, november.closing) == (november.opening, december.opening)


async def test_a_month_that_is_none_is_refused_by_name(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
        for wrong in ("2026-13", "2026-1", "november", "0000-01", "2026-11-01"):
            with pytest.raises(InvalidInput, match=r"is (not a month|before this)"):
                await api.statement(tx, firm, wrong, clock.now())


@pytest.mark.parametrize(
    "table",
    [
        "transfer", "operation", "block", "token_usage", "compute_usage", "statement", "cash_movement", "voucher",
        "programme", "rate", "tariff", "centre_contract",
    ],
)  # fmt: skip
async def test_what_was_booked_cannot_be_changed_or_deleted(db: Database, clock: FixedClock, table: str) -> None:
    for statement in (f"DELETE FROM quotas.{table}", f"TRUNCATE quotas.{table} CASCADE"):
        with pytest.raises(IntegrityError, match="only ever added"):
            async with db.transaction() as tx:
                await tx.execute(text(statement))


@pytest.mark.parametrize(
    "change",
    [
        "cash_movement SET amount = amount + 1", "voucher SET expires_at = expires_at + interval '1 day'",
        "programme SET cap_per_firm_year = 1", "rate SET micro_yuan = 1", "tariff SET windows = '[1]'",
        "tariff SET validity = tstzrange(lower(validity) - interval '1 day', NULL)",
        "discount SET off_ppm = 1", "discount SET validity = tstzrange(lower(validity) + interval '1 day', NULL)",
        "centre_contract SET payout_ppm = 1",
    ],
)  # fmt: skip
async def test_a_payment_a_voucher_and_a_price_stand_as_they_were_written(
    db: Database, clock: FixedClock, change: str
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=1000)
        await grant(tx, firm, 100, now=clock.now())
        await set_centre_contract(tx, centre=centre_of(POOL), payout_ppm=Ppm(700_000), now=clock.now())
        await grant_discount(
            tx, firm_id=firm, kind=UsageKind.TOKENS, resource="*", off_ppm=Ppm(100_000), valid_from=None,
            valid_until=None, contract="c", by="test", now=clock.now(),
        )  # fmt: skip
    with pytest.raises(IntegrityError, match="only ever added"):
        async with db.transaction() as tx:
            await tx.execute(text(f"UPDATE quotas.{change}"))


async def test_one_month_that_does_not_add_up_stops_no_other_firm_and_closes_when_it_is_mended(
    db: Database, clock: FixedClock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.advance(LAST_HOUR - clock.now())
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firms = sorted([await open_firm(tx, now=clock.now(), paid_in=yuan(1)) for _ in range(4)])
        for firm in firms:
            await api.ingest_tokens(tx, [tokens(firm, 1, at=LAST_HOUR, source=firm)], now=clock.now())
        wrong = text("""UPDATE quotas.charge SET vouchers = CAST(:vouchers AS jsonb) WHERE firm_id = :firm""")
        await tx.execute(wrong, {"vouchers": '{"vch_none": 1}', "firm": firms[0]})
    clock.advance(timedelta(days=4))
    assert await close_months(db, clock.now(), at_most=2) == Closing(2, more=True)
    assert await close_months(db, clock.now(), at_most=2) == Closing(1, more=False)
    assert [(vars(record)["firm"], vars(record)["period"]) for record in caplog.records] == [(firms[0], "2026-11")] * 2
    async with db.transaction() as tx:
        states = [(await api.statement(tx, firm, "2026-11", clock.now())).state for firm in firms]
        assert states == [StatementState.CLOSING, *[StatementState.CLOSED] * 3]
        await tx.execute(wrong, {"vouchers": "{}", "firm": firms[0]})
    assert await close_months(db, clock.now()) == Closing(1, more=False)
    assert await close_months(db, clock.now()) == Closing(0, more=False)


async def test_the_chain_tells_when_a_sealed_transfer_was_changed(
    db: Database, clock: FixedClock, tmp_path: Path
) -> None:
    heads = tmp_path / "heads.jsonl"
    async with db.transaction() as tx:
        await open_firm(tx, now=clock.now(), paid_in=1000)
    await sweep(db, clock.now(), heads)
    async with db.transaction() as tx:
        await open_firm(tx, now=clock.now(), paid_in=2000)
    await sweep(db, clock.now(), heads)
    async with db.transaction() as tx:
        assert await api.check_ledger(tx, heads) == []
        assert len(heads.read_text().splitlines()) == 2
        await tx.execute(text("ALTER TABLE quotas.transfer DISABLE TRIGGER USER"))
        await tx.execute(text("UPDATE quotas.transfer SET amount = 1999 WHERE amount = 2000"))
        found = await api.check_ledger(tx, heads)
        assert ("chain", "block 2") in [(finding.invariant, finding.about) for finding in found]
        assert any(finding.invariant == "L1" for finding in found), "and the balances no longer follow"


async def test_heads_outside_the_database_tell_when_the_whole_chain_was_rewritten(
    db: Database, clock: FixedClock, tmp_path: Path
) -> None:
    heads = tmp_path / "heads.jsonl"
    async with db.transaction() as tx:
        await open_firm(tx, now=clock.now(), paid_in=1000)
    await sweep(db, clock.now(), heads)
    heads.write_text(heads.read_text() + '{"number": 2, "ha')
    async with db.transaction() as tx:
        await open_firm(tx, now=clock.now(), paid_in=2000)
    await sweep(db, clock.now(), heads)
    assert len(heads.read_text().splitlines()) == 2, "a torn line is written over"
    async with db.transaction() as tx:
        await tx.execute(text("ALTER TABLE quotas.block DISABLE TRIGGER USER"))
        await tx.execute(text("DELETE FROM quotas.block WHERE number = 2"))
        [finding] = [one for one in await api.check_ledger(tx, heads) if one.invariant == "chain"]
        assert finding.about == "block 2"


async def test_an_expired_voucher_goes_back_to_its_pool_and_pays_nothing(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        await grant(tx, firm, yuan(5), now=clock.now(), voucher_days=2)
        held = await hold(tx, firm, now=clock.now(), seconds=100)
        assert held.vouchers[0].amount == 50_000
    start = clock.now()
    clock.advance(timedelta(days=2))
    await sweep(db, clock.now(), months=False)
    async with db.transaction() as tx:
        [voucher] = await api.vouchers_of(tx, firm)
        assert voucher.terms.left == 0
        assert (await hold(tx, firm, now=clock.now(), seconds=100)).vouchers == ()
        assert await api.check_ledger(tx) == []
        assert start < voucher.terms.expires_at <= clock.now()


async def test_a_voucher_of_which_a_hold_comes_back_after_it_expired_goes_to_its_pool_in_the_same_instant(
    db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        await grant(tx, firm, yuan(5), now=clock.now(), voucher_days=2)
        held = await hold(tx, firm, now=clock.now(), seconds=100)
    clock.advance(timedelta(days=2))
    async with db.transaction() as tx:
        assert await expire_vouchers(tx, now=clock.now()) == 1
        await api.release_hold(tx, hold_id=held.id, reason="late", now=clock.now())
        assert await expire_vouchers(tx, now=clock.now()) == 1
        assert await expire_vouchers(tx, now=clock.now()) == 0
        assert [one.terms.left for one in await api.vouchers_of(tx, firm)] == [0]
        assert await api.check_ledger(tx) == []
