"""The ladder of refusals in the database: each rung by name, in its order; a refusal changes nothing."""

import asyncio
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from kit.clock import FixedClock
from kit.db import Database
from kit.errors import Conflict
from kit.ids import new_id
from kit.units import MAX_AMOUNT
from quotas.adapters import ledger_store
from quotas.adapters.ledger_store import Posting
from quotas.chart import AccountSpec
from quotas.ledger import Leg, Refusal, TransferKind, expire, extend, pending, post, posted, void
from quotas.vocabulary import RefusalReason as Why
from tests.support.until import until_async

BANK, CASH, OTHER, REVENUE, GPU, CLOSED = (
    AccountSpec("bank", "CNY", "test", bounded=False),
    AccountSpec("cash", "CNY", "test", bounded=True),
    AccountSpec("other", "CNY", "test", bounded=True),
    AccountSpec("revenue", "CNY", "test", bounded=False),
    AccountSpec("gpu", "GPU_MS:a/x", "test", bounded=False),
    AccountSpec("closed", "CNY", "test", bounded=False),
)


async def test_each_refusal_has_its_name_and_its_place_and_changes_nothing(db: Database, clock: FixedClock) -> None:
    now, later = clock.now(), clock.now() + timedelta(hours=1)

    async with db.transaction() as tx:

        async def ask(*legs: Leg, at: datetime = now) -> Posting | Refusal:
            return await ledger_store.post(tx, scope="test", key=new_id("op"), request=[], legs=legs, at=at)

        ids = await ledger_store.accounts(tx, [BANK, CASH, REVENUE, GPU, CLOSED], at=now)
        bank, cash, revenue, gpu, closed = (ids[spec] for spec in (BANK, CASH, REVENUE, GPU, CLOSED))
        await tx.execute(text("UPDATE quotas.account SET closed = true WHERE code = 'closed'"))
        paid_in = await ask(posted(bank, cash, 100))
        held = await ask(pending(cash, revenue, 60, later))
        done = await ask(pending(cash, revenue, 10, later))
        assert isinstance(paid_in, Posting) and isinstance(held, Posting) and isinstance(done, Posting)
        hold, resolved = held.transfer_ids[0], done.transfer_ids[0]
        assert isinstance(await ask(post(resolved, 10)), Posting)
        before = await _state(tx)
        for legs, at, why in [
            ([posted(cash, revenue, 0)], now, Why.AMOUNT_NOT_POSITIVE),
            ([posted(cash, revenue, -5)], now, Why.AMOUNT_NOT_POSITIVE),
            ([posted(cash, revenue, MAX_AMOUNT + 1)], now, Why.AMOUNT_TOO_LARGE),
            ([post(10**12, 1)], now, Why.PENDING_UNKNOWN),
            ([Leg(TransferKind.VOID)], now, Why.PENDING_UNKNOWN),
            ([post(paid_in.transfer_ids[0], 1)], now, Why.PENDING_UNKNOWN),
            ([post(resolved, 1)], now, Why.PENDING_RESOLVED),
            ([post(hold, 1)], later, Why.PENDING_EXPIRED),
            ([extend(hold, 1)], later, Why.PENDING_EXPIRED),
            ([expire(hold)], now, Why.PENDING_NOT_EXPIRED),
            ([post(hold, 61)], now, Why.EXCEEDS_PENDING),
            ([posted(cash, cash, 1)], now, Why.SAME_ACCOUNT),
            ([posted(cash, 10**12, 1)], now, Why.ACCOUNT_UNKNOWN),
            ([posted(cash, gpu, 1)], now, Why.ASSET_MISMATCH),
            ([posted(cash, closed, 1)], now, Why.ACCOUNT_CLOSED),
            ([pending(cash, closed, 1, later)], now, Why.ACCOUNT_CLOSED),
            ([posted(cash, revenue, 31)], now, Why.EXCEEDS_FUNDS),
            ([extend(hold, 31)], now, Why.EXCEEDS_FUNDS),
            # two reasons at once: the earlier rung speaks; many legs are judged in one pass by the same ladder
            ([posted(cash, cash, 0)], now, Why.AMOUNT_NOT_POSITIVE),
            ([post(hold, 61)], later, Why.PENDING_EXPIRED),
            ([posted(cash, revenue, 1)] * 5 + [posted(cash, closed, 1)], now, Why.ACCOUNT_CLOSED),
            ([posted(cash, revenue, 1)] * 5 + [posted(cash, 10**12, 1)], now, Why.ACCOUNT_UNKNOWN),
            ([posted(cash, revenue, 1)] * 5 + [posted(cash, gpu, 0)], now, Why.AMOUNT_NOT_POSITIVE),
            ([posted(cash, revenue, 6)] * 6, now, Why.EXCEEDS_FUNDS),
        ]:
            refusal = await ask(*legs, at=at)
            assert isinstance(refusal, Refusal) and refusal.reason is why, f"{legs}: {refusal}, not {why}"
        assert await _state(tx) == before


async def test_the_same_key_with_other_content_is_refused_and_with_the_same_answers_again(
    db: Database, clock: FixedClock
) -> None:
    async with db.transaction() as tx:
        ids = await ledger_store.accounts(tx, [BANK, CASH], at=clock.now())
        leg = posted(ids[BANK], ids[CASH], 5)

        async def ask(request: int) -> Posting | Refusal:
            return await ledger_store.post(tx, scope="test", key="k", request=request, legs=[leg], at=clock.now())

        first, again = await ask(1), await ask(1)
        assert isinstance(first, Posting) and isinstance(again, Posting)
        assert (again.transfer_ids, again.replayed) == (first.transfer_ids, True)
        with pytest.raises(Conflict) as caught:
            await ask(2)
        assert caught.value.code == "key_reused"
        assert (await ledger_store.posted_balances(tx))["cash"] == 5


async def _state(tx: AsyncSession) -> list[object]:
    rows = await tx.execute(
        text("""SELECT (SELECT count(*) FROM quotas.transfer), (SELECT count(*) FROM quotas.operation),
            (SELECT jsonb_agg(to_jsonb(b) ORDER BY account_id) FROM quotas.balance b),
            (SELECT jsonb_agg(to_jsonb(p) ORDER BY id) FROM quotas.pending p)""")
    )
    return list(rows.one())


WRONG = {
    "money from below nothing": "UPDATE quotas.balance SET debits_pending = -1",
    "a balance below its floor": "UPDATE quotas.balance SET debits_posted = 101 WHERE floor = 0",
    "a floor above nothing": "UPDATE quotas.balance SET floor = 1",
    "a hold of nothing": "UPDATE quotas.pending SET amount_left = 0",
    "a transfer of nothing": "INSERT INTO quotas.transfer (operation_id, kind, debit_id, credit_id, amount, final, at) "
    "VALUES (1, 'posted', 1, 2, 0, false, now())",
    "a transfer to itself": "INSERT INTO quotas.transfer (operation_id, kind, debit_id, credit_id, amount, final, at) "
    "VALUES (1, 'posted', 1, 1, 1, false, now())",
    "an operation without a key": "INSERT INTO quotas.operation (scope, key, request_hash, at, transfer_ids) "
    "VALUES ('x', '', decode(repeat('00', 32), 'hex'), now(), '{}')",
    "a request that is no hash": "INSERT INTO quotas.operation (scope, key, request_hash, at, transfer_ids) "
    "VALUES ('x', 'x', '\\x00', now(), '{}')",
}


@pytest.mark.parametrize("sql", WRONG.values(), ids=list(WRONG))
async def test_what_no_posting_would_write_the_tables_refuse_too(db: Database, clock: FixedClock, sql: str) -> None:
    now = clock.now()
    async with db.transaction() as tx:
        ids = await ledger_store.accounts(tx, [BANK, CASH, REVENUE], at=now)
        legs = [posted(ids[BANK], ids[CASH], 100)]
        await ledger_store.post(tx, scope="test", key="in", request=[], legs=legs, at=now)
        legs = [pending(ids[CASH], ids[REVENUE], 60, now + timedelta(hours=1))]
        await ledger_store.post(tx, scope="test", key="held", request=[], legs=legs, at=now)
    with pytest.raises(IntegrityError, match="check constraint"):
        async with db.transaction() as tx:
            await tx.execute(text(sql))


@pytest.mark.parametrize("what", ["a hold", "the end of a hold", "the end of a hold between two bounded accounts"])
async def test_a_key_that_somebody_else_is_just_using_for_another_request_changes_nothing(
    db: Database, clock: FixedClock, what: str
) -> None:
    now, later = clock.now(), clock.now() + timedelta(hours=1)
    async with db.transaction() as tx:
        ids = await ledger_store.accounts(tx, [BANK, CASH, OTHER, REVENUE], at=now)
        bank, cash, other, revenue = (ids[spec] for spec in (BANK, CASH, OTHER, REVENUE))
        await ledger_store.post(tx, scope="test", key="in", request=[], legs=[posted(bank, cash, 100)], at=now)
        numbers: list[int] = []
        for credit in (revenue, other):
            legs = [pending(cash, credit, 20, later)]
            held = await ledger_store.post(tx, scope="test", key=f"held {credit}", request=[], legs=legs, at=now)
            assert isinstance(held, Posting)
            numbers += held.transfer_ids
        before = await _state(tx)
    leg = {
        "a hold": pending(cash, revenue, 5, later),
        "the end of a hold": post(numbers[0], 15),
        "the end of a hold between two bounded accounts": void(numbers[1]),
    }[what]

    async def second() -> Posting | Refusal:
        async with db.transaction() as tx:
            return await ledger_store.post(tx, scope="test", key="k", request="second", legs=[leg], at=now)

    async with db.transaction() as first:  # its key is taken and not committed while the second comes this far
        done = await ledger_store.post(
            first, scope="test", key="k", request="first", legs=[posted(bank, revenue, 1)], at=now
        )
        assert isinstance(done, Posting)
        waiting = asyncio.create_task(second())
        await until_async(lambda: _somebody_waits(db), seconds=20, what="the second waits for the first")
    with pytest.raises(Conflict) as caught:
        await waiting
    assert caught.value.code == "key_reused"
    async with db.transaction() as tx:
        after = await _state(tx)
    assert after[2:] == before[2:], "balances and open holds are as they were"


async def _somebody_waits(db: Database) -> bool:
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'")
    async with db.transaction() as tx:
        return bool((await tx.execute(waits)).scalar_one())
