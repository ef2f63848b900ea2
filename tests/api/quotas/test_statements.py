"""Months: what a statement says, when it closes, where late usage goes, and how the chain tells of tampering."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from kit.clock import FixedClock
from kit.db import Database
from kit.errors import InvalidInput
from quotas import api
from quotas.ledger_service import sweep
from quotas.statements import check_statement
from quotas.vocabulary import StatementState
from tests.support.money import grant, hold, open_firm, publish_prices, tokens, used, yuan

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


@pytest.mark.parametrize("table", ["transfer", "operation", "block", "token_usage", "statement"])
async def test_what_was_booked_cannot_be_changed_or_deleted(db: Database, clock: FixedClock, table: str) -> None:
    for statement in (f"DELETE FROM quotas.{table}", f"TRUNCATE quotas.{table} CASCADE"):
        with pytest.raises(IntegrityError, match="only ever added"):
            async with db.transaction() as tx:
                await tx.execute(text(statement))


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
