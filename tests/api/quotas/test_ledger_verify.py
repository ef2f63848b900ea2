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

NO_CHECKS = "ALTER TABLE quotas.{0} DROP CONSTRAINT {1};"

# what was done, which invariant finds it, in which words
TAMPERED: dict[str, tuple[str, str, str]] = {
    "a transfer's amount": ("UPDATE quotas.transfer SET amount = amount + 1 WHERE id = 1", "L1", "a replay"),
    "a sealed transfer": (
        "UPDATE quotas.transfer SET at = at + interval '1 second' WHERE id = 1", "chain", "not those that were sealed",
    ),
    "a transfer's account": (
        "UPDATE quotas.transfer SET credit_id = (SELECT id FROM quotas.account WHERE asset LIKE 'GPU_MS%' LIMIT 1) "
        "WHERE id = 1", "L1", "it joins CNY and GPU_MS",
    ),
    "a transfer's account, to one that is not there": (
        "UPDATE quotas.transfer SET credit_id = 999 WHERE id = 1", "L1", "it joins CNY and nothing",
    ),
    "a transfer is gone": ("DELETE FROM quotas.transfer WHERE id = 1", "L1", "names 1 transfers and has 0"),
    "a transfer is added": (
        "INSERT INTO quotas.transfer (operation_id, kind, debit_id, credit_id, amount, final, at) "
        "SELECT operation_id, 'posted', debit_id, credit_id, amount, false, at FROM quotas.transfer WHERE id = 1",
        "L1", "names 1 transfers and has 2",
    ),
    "a firm's money": (
        "UPDATE quotas.balance b SET credits_posted = credits_posted + 1 FROM quotas.account a "
        "WHERE a.id = b.account_id AND a.code LIKE 'firm:%cash'", "L1", "the cache says",
    ),
    "revenue that was folded": (
        "UPDATE quotas.balance b SET credits_posted = credits_posted + 1 FROM quotas.account a "
        "WHERE a.id = b.account_id AND a.code LIKE 'platform:revenue%'", "L1", "the cache says",
    ),
    "what is on hold": (
        "UPDATE quotas.balance SET debits_pending = debits_pending + 1 WHERE debits_pending > 0", "L1",
        "the open holds say",
    ),
    "a balance below its floor": (
        NO_CHECKS.format("balance", "balance_above_floor")
        + "UPDATE quotas.balance b SET debits_posted = credits_posted + 1 FROM quotas.account a "
        "WHERE a.id = b.account_id AND a.code LIKE 'firm:%cash'", "L1", "below its floor",
    ),
    "a credit line that nobody granted": (
        "UPDATE quotas.balance b SET floor = -1000000 FROM quotas.account a "
        "WHERE a.id = b.account_id AND a.code LIKE 'firm:%cash'", "L1", "down to -1000000, the audit log says 0",
    ),
    "an account that is not bounded any more": (
        "UPDATE quotas.account SET bounded = false WHERE code LIKE 'firm:%cash'", "L1", "down to 0, the audit log says",
    ),
    "an account without a floor": (
        "UPDATE quotas.balance b SET floor = NULL FROM quotas.account a "
        "WHERE a.id = b.account_id AND a.code LIKE 'firm:%cash'", "L1", "down to any depth",
    ),
    "an account under another name": (
        "UPDATE quotas.account SET code = code || 'x' WHERE code LIKE 'firm:%cash'", "L3",
        "the ledger says 0, payments less",
    ),
    "an operation of another day": (
        "UPDATE quotas.operation SET at = at - interval '1 day'", "L1", "of another time",
    ),
    "a hold of another firm": (
        "UPDATE quotas.compute_hold SET firm_id = 'firm_platform' WHERE state = 'open'", "L2",
        "it is of firm_platform and holds money of firm:",
    ),
    "a hold that lasts longer than its money": (
        "UPDATE quotas.compute_hold SET expires_at = expires_at + interval '1 year' WHERE state = 'open'", "L2",
        "its money at",
    ),
    "a voucher is gone": ("DELETE FROM quotas.voucher", "L3", "nothing of that name was granted"),
    "GPU usage that took longer": (
        "UPDATE quotas.compute_usage SET gpu_ms = gpu_ms + 1", "L3", "60000 GPU-ms from",
    ),
    "a closed month is gone": (
        "DELETE FROM quotas.statement WHERE period = '2026-09'", "L3", "there is none, and a later month is closed",
    ),
    "an open hold is gone": ("DELETE FROM quotas.pending", "L2", "neither open nor resolved"),
    "an open hold holds more": ("UPDATE quotas.pending SET amount_left = amount_left + 1", "L2", "left of"),
    "a hold was resolved twice": (
        "DROP INDEX quotas.transfer_resolves_once;"
        "INSERT INTO quotas.transfer (operation_id, kind, debit_id, credit_id, amount, pending_id, final, at) "
        "SELECT operation_id, 'void', debit_id, credit_id, amount, pending_id, true, at FROM quotas.transfer "
        "WHERE final LIMIT 1", "L2", "resolved 2 times",
    ),
    "a resolved hold is open again": (
        "INSERT INTO quotas.pending (id, debit_id, credit_id, amount_left, expires_at) "
        "SELECT pending_id, debit_id, credit_id, amount, at FROM quotas.transfer WHERE final LIMIT 1", "L2",
        "resolved and still open",
    ),
    "more was taken than held": (
        "UPDATE quotas.transfer SET amount = amount + 900000 WHERE kind = 'post'", "L2", " taken of ",
    ),
    "a hold that was never made was resolved": (
        "UPDATE quotas.transfer SET pending_id = 1 "
        "WHERE id = (SELECT max(id) FROM quotas.transfer WHERE kind = 'post' AND final)", "L2", "never held",
    ),
    "work that is over holds money": (
        "UPDATE quotas.compute_hold SET state = 'released', closed_at = now() WHERE state = 'open'", "L2",
        "money is still held",
    ),
    "a hold says it holds less": (
        "UPDATE quotas.compute_hold SET cash = cash - 1 WHERE state = 'open'", "L2", "is held, the ledger",
    ),
    "a lease that is over holds money": (
        "UPDATE quotas.allowance_lease SET state = 'returned', closed_at = now()", "L2", "money is still held",
    ),
    "a lease is gone": ("DELETE FROM quotas.allowance_lease", "L2", "no hold and no lease names it"),
    "a lease lasts longer than its money": (
        "UPDATE quotas.allowance_lease SET expires_at = expires_at + interval '1 hour'", "L2", "is held until",
    ),
    "a lease of somebody else's money": (
        "UPDATE quotas.allowance_lease SET firm_id = 'firm_platform'", "L2", "it holds money of firm:",
    ),
    "a lease that lasts longer than its voucher": (
        "UPDATE quotas.voucher SET expires_at = granted_at + interval '1 second' "
        "WHERE id IN (SELECT voucher_id FROM quotas.allowance_part)", "L2",
        "it ends",
    ),
    "a lease of somebody else's voucher": (
        "UPDATE quotas.voucher SET firm_id = 'firm_platform' "
        "WHERE id IN (SELECT voucher_id FROM quotas.allowance_part)", "L2", "of firm_platform",
    ),
    "a lease that forgot its voucher": (
        "UPDATE quotas.allowance_lease SET vouchers = '{}'", "L2", "no hold and no lease names it",
    ),
    "a lease that names its voucher's money as another's": (
        "UPDATE quotas.allowance_lease SET vouchers = jsonb_build_object('vch_other', "
        "(SELECT value FROM jsonb_each(vouchers)))", "L2", "it holds money of voucher:",
    ),
    "a minute that was leased above its limit": (
        NO_CHECKS.format("rate_window", "rate_window_not_oversold")
        + "UPDATE quotas.rate_window SET requests_leased = 99; UPDATE quotas.rate_lease SET requests = 99", "G2",
        "above its limit",
    ),
    "a minute's lease that nobody counted": (
        "UPDATE quotas.rate_lease SET requests = requests + 1", "G2", "not what it says was leased",
    ),
    "a line counts too much": (
        "UPDATE quotas.charge SET input = input + 1 WHERE kind = 'tokens'", "L3", "its records count",
    ),
    "a usage record is gone": ("DELETE FROM quotas.token_usage WHERE id = 'req_1'", "L3", "its records count"),
    "a usage record without a line": (
        "UPDATE quotas.token_usage SET charge_id = 'chg_none'", "L3", "no charge carries it",
    ),
    "a charge without usage": ("DELETE FROM quotas.compute_usage", "L3", "no usage stands behind it"),
    "usage under a tariff that was not in force": (
        "UPDATE quotas.token_usage SET at = at - interval '90 days'", "L3", "was not in force",
    ),
    "GPU time under a tariff that was not in force": (
        "UPDATE quotas.charge SET first_at = first_at - interval '90 days' WHERE kind = 'compute'", "L3",
        "was not in force",
    ),
    "a charge the firm did not pay": (
        "UPDATE quotas.charge SET cash = cash + 1, amount = amount + 1 WHERE kind = 'tokens'", "L3",
        "payments less charges",
    ),
    "a payment nobody made": ("UPDATE quotas.cash_movement SET amount = amount + 1", "L3", "payments less charges"),
    "a voucher that paid more than it says": (
        "UPDATE quotas.charge SET vouchers = (SELECT jsonb_object_agg(key, value::bigint + 1) "
        "FROM jsonb_each_text(vouchers)) WHERE voucher > 0", "L3", "the ledger redeemed",
    ),
    "vouchers that do not add up": (
        "UPDATE quotas.charge SET voucher = voucher + 1, cash = cash - 1 WHERE voucher > 0", "L3", "by name",
    ),
    "a voucher's amount": ("UPDATE quotas.voucher SET amount = amount + 1", "L3", "pool"),
    "a programme's pool": ("UPDATE quotas.programme SET pool = pool + 1", "L3", "the ledger issued"),
    "a firm above a programme's cap": ("UPDATE quotas.programme SET cap_per_firm_year = 1", "L3", "above the cap"),
    "a voucher granted before its programme": (
        "UPDATE quotas.voucher SET granted_at = granted_at - interval '300 days'", "L3", "outside the time",
    ),
    "what a funder owes": (
        "UPDATE quotas.transfer t SET amount = amount + 1 FROM quotas.account a "
        "WHERE a.id = t.debit_id AND a.code LIKE '%receivable'", "L3", "the funder owes",
    ),
    "a line's rates": (
        "UPDATE quotas.charge SET rates = jsonb_set(rates, '{output}', '2100000') WHERE kind = 'tokens'", "L3",
        "its list price",
    ),
    "a line's list price and discount": (
        "UPDATE quotas.charge SET list_amount = list_amount + 1, discount = discount + 1 WHERE kind = 'tokens'", "L3",
        "its list price",
    ),
    "what rounding left": (
        "UPDATE quotas.charge SET residue = residue + 1 WHERE kind = 'tokens'", "L3", "is not its counts at its rates",
    ),
    "what a centre is owed": (
        "UPDATE quotas.charge SET payable = payable + 1 WHERE kind = 'compute'", "L3", "centre:optics-valley:payable",
    ),
    "what nobody paid": ("UPDATE quotas.charge SET loss = loss + 1 WHERE kind = 'tokens'", "L3", "platform:loss"),
    "what the platform earned": (
        "UPDATE quotas.charge SET kind = 'images' WHERE kind = 'tokens'", "L3", "platform:revenue:tokens",
    ),
    "GPU time": (
        "UPDATE quotas.charge SET gpu_ms = gpu_ms + 1 WHERE kind = 'compute'", "L3", ":gpu:optics-valley/cpu-slot",
    ),
    "usage that lost its price, and a note that excuses it": (
        "UPDATE quotas.charge SET tariff_id = NULL, note = 'a gift' WHERE kind = 'tokens'", "L3", "have no price",
    ),
    "rounding that nobody booked": (
        "UPDATE quotas.charge SET residue = residue + 1 WHERE kind = 'tokens'", "L3", "firms:residue",
    ),
    "a line's rates, which are not those of its tariff": (
        "UPDATE quotas.rate SET micro_yuan = micro_yuan + 1 WHERE meter = 'cached_input'", "L3",
        "its tariff says {'input': 1000000, 'cached_input': 250001",
    ),
    "rates of a contract that does not exist": (
        "UPDATE quotas.charge SET contract_rates = rates WHERE kind = 'tokens'", "L3", "its contract says {}",
    ),
    "a tariff whose price a line never had": (
        "DELETE FROM quotas.rate WHERE meter = 'output'", "L3",
        "its tariff says {'input': 0, 'cached_input': 0, 'output': 0}",
    ),
    "GPU time's rates": (
        "UPDATE quotas.rate SET micro_yuan = micro_yuan + 1 WHERE qos = 'standard'", "L3",
        "its time at its tariff says {'trf_",
    ),
    "GPU time without a price": ("DELETE FROM quotas.rate WHERE qos = 'standard'", "L3", "There is no price for pool"),
    "GPU time's list price and discount": (
        "UPDATE quotas.charge SET list_amount = list_amount + 1, discount = discount + 1 WHERE kind = 'compute'", "L3",
        "its list amount: 60001; its time at its tariff says 60000",
    ),
    "GPU time's residue": (
        "UPDATE quotas.charge SET residue = residue + 1 WHERE kind = 'compute'", "L3", "its residue: 1;",
    ),
    "a centre's part": (
        "UPDATE quotas.charge SET payout_ppm = 900000 WHERE kind = 'compute'", "L3",
        "its payout ppm: 900000; its time at its tariff says 800000",
    ),
    "a contract of a centre that was not in force": (
        "INSERT INTO quotas.centre_contract (id, centre, payout_ppm, validity) SELECT 'ctr_1', centre, 700000, "
        "tstzrange(first_at, NULL) FROM quotas.charge WHERE kind = 'compute'", "L3",
        "its payable: 48000; its time at its tariff says 42000",
    ),
    "a usage record on the line of another key": (
        "UPDATE quotas.token_usage SET key_id = 'key_2' WHERE id = 'req_1'", "L3", "it is on the line tokens:",
    ),
    "usage of a window at the price of the rest of the day": (
        "UPDATE quotas.tariff SET windows = "
        "'[{\"name\": \"valley\", \"start_minute\": 0, \"end_minute\": 1440}]'", "L3",
        "it is on the line tokens:",
    ),
    "usage without the discount that was in force": (
        "INSERT INTO quotas.discount (id, firm_id, kind, resource, off_ppm, validity, contract, granted_by, granted_at)"
        " SELECT 'dsc_1', firm_id, kind, '*', 100000, tstzrange(first_at, NULL), 'c', 'x', first_at FROM quotas.charge"
        " WHERE kind = 'tokens' AND period = '2026-11'", "L3", "no discount, in force was dsc_1",
    ),
    "a month that does not begin where the last one ended": (
        "UPDATE quotas.statement SET body = jsonb_set(body, '{opening}', '1') WHERE period = '2026-10'", "L3",
        "it opens with 1; 2026-09 closed with 10000000",
    ),
    "a closed statement that is no statement": (
        "UPDATE quotas.statement SET body = body - 'lines'", "L3", "cannot be read: KeyError('lines')",
    ),
    "a closed statement": (
        "UPDATE quotas.statement SET body = jsonb_set(body, '{cash}', '1')", "L3", "is not what was sealed",
    ),
    "a closed statement and its hash, whose charges say otherwise": (
        "UPDATE quotas.charge SET note = 'x' WHERE period = '2026-10'", "L3", "its charges say otherwise",
    ),
    "a block's hash": (
        "UPDATE quotas.block SET hash = sha256('x') WHERE number = 1", "chain", "is not the one written",
    ),
    "a block is gone": ("DELETE FROM quotas.block WHERE number = 1", "chain", "does not follow the block before it"),
    "every block is gone": ("DELETE FROM quotas.block", "chain", "and not in the ledger"),
    "a chain that was written anew": (
        "UPDATE quotas.transfer SET at = at + interval '1 second' "
        "WHERE xid >= (SELECT max(from_xid) FROM quotas.block);"
        "UPDATE quotas.block SET "
        "hash = sha256(previous || convert_to(quotas.chain_lines(from_xid, until_xid), 'UTF8')) "
        "WHERE number = (SELECT max(number) FROM quotas.block)", "chain", "is not the one written",
    ),
}  # fmt: skip


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
