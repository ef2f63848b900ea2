"""`heliu ledger verify` on a live database: nothing is found where nothing is wrong, and every way of tampering is."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.clock import FixedClock
from kit.db import Database
from kit.units import MicroYuan
from quotas import api
from quotas.ledger_service import check_ledger, check_report, sweep
from quotas.statement_service import close_statement
from quotas.vocabulary import FirmId, Period, RateAsk, UsageKind
from tests.support.money import grant, hold, open_firm, open_key, publish_prices, tokens, used, yuan
from tests.support.tampering import TAMPERED


@dataclass(frozen=True)
class Sealed:
    db: Database
    heads: Path


@pytest.fixture
async def sealed(db: Database, clock: FixedClock, tmp_path: Path) -> Sealed:
    """A ledger in which everything has happened once, sealed in two blocks whose heads are in a file."""
    heads = tmp_path / "heads.jsonl"
    now = clock.now()
    await publish_prices(db, now=now)
    september, october = now - timedelta(days=40), now - timedelta(days=10)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=september, paid_in=yuan(10))
        await api.ingest_tokens(tx, [tokens(firm, 100, at=october)], now=october)
        await close_statement(tx, firm, Period("2026-09"), now=now)
        await close_statement(tx, firm, Period("2026-10"), now=now + timedelta(days=10))
        [october_charge] = (await api.statement(tx, firm, "2026-10", now)).lines
        await api.refund_charge(tx, charge_id=october_charge.charge_id, reason="wrong answers", now=now)
    await sweep(db, now, heads)
    async with db.transaction() as tx:
        await everything(tx, firm, clock)
    await sweep(db, now, heads)
    return Sealed(db, heads)


async def everything(tx: AsyncSession, firm: FirmId, clock: FixedClock) -> None:
    now = clock.now()
    await grant(tx, firm, yuan(5), now=now)
    held = await hold(tx, firm, now=now, seconds=100)
    await api.settle_compute(tx, hold_id=held.id, usage=used(firm, start=now, seconds=60), now=now)
    await hold(tx, firm, now=now, seconds=100, subject="job_2")
    await grant(tx, firm, yuan(1), now=now, share_ppm=200_000, covers=frozenset({UsageKind.TOKENS}))
    lease = await api.lease_allowance(
        tx, holder="gw", firm_id=firm, amount=MicroYuan(10_000), lease_seconds=30, now=now
    )
    batch = [tokens(firm, n, at=now + timedelta(seconds=n), lease_id=lease.id) for n in range(3)]
    await api.ingest_tokens(tx, batch, now=now)
    key = await open_key(tx, firm, now=now, requests=10)
    await api.lease_windows(tx, holder="gw", minute=api.minute_of(now), asks=[RateAsk(key, 4, 0)], now=now)


async def test_nothing_is_found_where_nothing_is_wrong(sealed: Sealed) -> None:
    async with sealed.db.transaction() as tx:
        assert await check_ledger(tx, sealed.heads) == []


async def test_a_tampered_ledger_is_found_in_each_way(sealed: Sealed) -> None:
    missed: dict[str, object] = {}
    for what, (statements, invariant, words) in TAMPERED.items():
        async with sealed.db.engine.connect() as connection, AsyncSession(bind=connection) as tx:
            # Somebody with the database in their hands: triggers and foreign keys do not stop them.
            await tx.execute(text("SET LOCAL session_replication_role = replica"))
            for statement in statements.split(";"):
                if statement.strip():
                    await tx.execute(text(statement))
            found = await check_ledger(tx, sealed.heads)
            await tx.rollback()
        if not any(one.invariant == invariant and words in f"{one.about} {one.detail}" for one in found):
            missed[what] = found
    assert missed == {}


async def test_it_says_how_many_heads_it_compared_and_how_much_is_not_sealed(sealed: Sealed, clock: FixedClock) -> None:
    async with sealed.db.transaction() as tx:
        await open_firm(tx, now=clock.now(), paid_in=1000)
        report = await check_report(tx, sealed.heads)
        assert (report.findings, report.blocks, report.heads, report.unsealed) == ((), 2, 2, 1)
        here = await check_report(tx, None)
        assert (here.findings, here.blocks, here.heads) == ((), 2, 0), "asked without them"


async def test_heads_that_are_not_where_they_should_be_are_a_finding(sealed: Sealed) -> None:
    first, last = sealed.heads.read_text().splitlines(keepends=True)
    async with sealed.db.transaction() as tx:
        sealed.heads.write_text(last)
        [found] = await check_ledger(tx, sealed.heads)
        assert (found.about, found.detail) == ("block 1", f"its head is missing in {sealed.heads}")
        sealed.heads.write_text(first)
        assert await check_ledger(tx, sealed.heads) == [], "the newest head is written a moment after its block"
        sealed.heads.unlink()
        [found] = await check_ledger(tx, sealed.heads)
        assert found.detail == f"no head of its 2 blocks is in {sealed.heads}: nothing to compare"
