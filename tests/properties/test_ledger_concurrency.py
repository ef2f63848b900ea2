"""Thirty-two connections at one ledger: no overdraft, no double settlement, no deadlock that reaches a caller."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import create_engine, func, select
from sqlalchemy.exc import IntegrityError

from kit.clock import FixedClock
from kit.db import Database
from kit.errors import Conflict, NoMoney
from kit.units import MicroYuan
from quotas import api, usage
from quotas.adapters import ledger_store
from quotas.adapters.money_tables import ChargeRow
from quotas.ledger_service import sweep
from quotas.vocabulary import KeyId, UsageKind
from tests.support.money import grant, hold, open_firm, publish_prices, tokens, used, yuan

CONNECTIONS = 32
THREADS = 12


async def test_many_holds_at_once_never_overdraw(database_url: str, clock: FixedClock) -> None:
    db = Database(database_url, pool_size=CONNECTIONS)
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=1_000_000)
        await grant(tx, firm, 300_000, now=clock.now())

    async def one(number: int) -> str:
        async def work(tx):  # type: ignore[no-untyped-def]
            return await hold(tx, firm, now=clock.now(), seconds=50, key=f"job {number}", subject=f"job_{number}")

        try:
            held = await db.retrying(work)
        except NoMoney:
            return "refused"
        assert held.amount == 50_000
        return "held"

    results = await asyncio.gather(*(one(number) for number in range(64)))
    # 300,000 of vouchers pay half of 600,000; the rest is cash: 1,300,000 in all, and 50,000 each.
    assert results.count("held") == 26
    async with db.transaction() as tx:
        assert (await api.account_of(tx, firm)).available == 0
        assert len(await api.open_holds(tx)) == 26
        assert await api.check_ledger(tx) == []
    await db.close()


async def test_one_hold_settled_by_everybody_at_once_is_charged_once(database_url: str, clock: FixedClock) -> None:
    db = Database(database_url, pool_size=CONNECTIONS)
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=1_000_000)
        held = await hold(tx, firm, now=clock.now())

    async def one(number: int) -> str:
        async def work(tx):  # type: ignore[no-untyped-def]
            if number % 4 == 0:
                await api.release_hold(tx, hold_id=held.id, reason="a race", now=clock.now())
                return "released"
            usage = used(firm, start=clock.now(), seconds=60)
            return (await api.settle_compute(tx, hold_id=held.id, usage=usage, now=clock.now())).id

        try:
            return str(await db.retrying(work))
        except Conflict:
            return "too late"

    results = set(await asyncio.gather(*(one(number) for number in range(CONNECTIONS))))
    results.discard("too late")
    assert len(results) == 1, "either everybody sees the one charge, or the hold was released"
    async with db.transaction() as tx:
        assert (await api.account_of(tx, firm)).held == 0
        assert await api.check_ledger(tx) == []
    await db.close()


async def test_everything_at_once_leaves_a_ledger_that_adds_up(database_url: str, clock: FixedClock) -> None:
    db = Database(database_url, pool_size=CONNECTIONS)
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firms = [await open_firm(tx, now=clock.now(), paid_in=yuan(1)) for _ in range(3)]
        for firm in firms:
            await grant(tx, firm, 200_000, now=clock.now())

    async def jobs(number: int) -> None:
        firm = firms[number % 3]
        for step in range(3):
            key = f"{number} {step}"
            held = await db.retrying(lambda tx, k=key: hold(tx, firm, now=clock.now(), seconds=20, key=k))
            usage = used(firm, start=clock.now() + timedelta(hours=step), seconds=15, attempt=f"att_{number}")
            await db.retrying(
                lambda tx, h=held, u=usage: api.settle_compute(tx, hold_id=h.id, usage=u, now=clock.now())
            )

    async def gateway(number: int) -> None:
        holder, order = f"gw {number}", firms[number % 3 :] + firms[: number % 3]
        leases = [
            await db.retrying(
                lambda tx, f=firm: api.lease_allowance(
                    tx, holder=holder, firm_id=f, amount=MicroYuan(900), lease_seconds=60, now=clock.now()
                )
            )
            for firm in order
        ]
        for step in range(3):
            batch = [
                tokens(lease.firm_id, 100 * step + n, at=clock.now(), lease_id=lease.id, source=holder)
                for lease in leases
                for n in range(3)
            ]
            await db.retrying(lambda tx, b=batch: api.ingest_tokens(tx, b, now=clock.now()))
        for lease in leases:
            await db.retrying(
                lambda tx, one=lease: api.return_allowance(tx, lease_id=one.id, holder=holder, now=clock.now())
            )

    async def sweeper() -> None:
        for _ in range(5):
            await sweep(db, clock.now())

    work = [jobs(n) for n in range(12)] + [gateway(n) for n in range(8)] + [sweeper()]
    results = await asyncio.gather(*work, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    assert failures == []
    await sweep(db, clock.now())
    async with db.transaction() as tx:
        assert await api.open_holds(tx) == []
        assert await api.check_ledger(tx) == []
        spent = sum([yuan(1) - (await api.account_of(tx, firm)).balance for firm in firms])
        assert spent > 0
    await db.close()


async def test_leases_taken_at_once_are_all_that_is_there_and_a_race_is_no_lack_of_money(
    database_url: str, clock: FixedClock
) -> None:
    db = Database(database_url, pool_size=CONNECTIONS)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=3200)

    async def one(number: int) -> int:
        try:
            lease = await db.retrying(
                lambda tx: api.lease_allowance(
                    tx, holder=f"gw {number}", firm_id=firm, amount=MicroYuan(150), lease_seconds=60, now=clock.now()
                )
            )
        except NoMoney:
            return 0
        return lease.amount_left

    leased = sorted(await asyncio.gather(*(one(number) for number in range(CONNECTIONS))))
    assert leased == [0] * 10 + [50] + [150] * 21
    async with db.transaction() as tx:
        assert (await api.account_of(tx, firm)).available == 0
        assert await api.check_ledger(tx) == []
    await db.close()


async def test_a_voucher_is_never_overspent_through_leases(database_url: str, clock: FixedClock) -> None:
    db = Database(database_url, pool_size=CONNECTIONS)
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
        voucher = await grant(
            tx, firm, 20_000, now=clock.now(), share_ppm=1_000_000, covers=frozenset({UsageKind.TOKENS})
        )

    async def one(number: int) -> int:
        holder, due = f"gw {number}", 9 * 105
        try:
            lease = await db.retrying(
                lambda tx: api.lease_allowance(
                    tx, holder=holder, firm_id=firm, amount=MicroYuan(due), lease_seconds=60, now=clock.now()
                )
            )
        except NoMoney:
            return 0
        if lease.amount_left == due:
            batch = [tokens(firm, n, at=clock.now(), lease_id=lease.id, source=holder) for n in range(9)]
            await db.retrying(lambda tx: api.ingest_tokens(tx, batch, now=clock.now()))
        await db.retrying(
            lambda tx: api.renew_allowance(
                tx, lease_id=lease.id, holder=holder, top_up=200, lease_seconds=60, now=clock.now()
            )
        )
        await db.retrying(lambda tx: api.return_allowance(tx, lease_id=lease.id, holder=holder, now=clock.now()))
        return due if lease.amount_left == due else 0

    spent = sum(await asyncio.gather(*(one(number) for number in range(CONNECTIONS))))
    async with db.transaction() as tx:
        month = await api.statement(tx, firm, "2026-11", clock.now())
        [state] = await api.vouchers_of(tx, firm)
        assert 0 < spent <= 20_000
        assert (month.lines[0].vouchers, month.cash, state.terms.left) == ({voucher: spent}, 0, 20_000 - spent)
        assert "platform:loss" not in await ledger_store.posted_balances(tx)
        assert await api.open_holds(tx) == []
        assert await api.check_ledger(tx) == []
    await db.close()


async def test_usage_charged_by_everybody_at_once_takes_all_that_is_there_and_a_race_is_no_loss(
    database_url: str, clock: FixedClock
) -> None:
    """Without leases; beside it gateways lease of the same purses, use some and return the rest."""
    db = Database(database_url, pool_size=CONNECTIONS)
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firms = [await open_firm(tx, now=clock.now(), paid_in=20_000) for _ in range(2)]
        vouchers = [
            await grant(tx, firm, 5_000, now=clock.now(), share_ppm=1_000_000, covers=frozenset({UsageKind.TOKENS}))
            for firm in firms
        ]

    async def ship(number: int) -> None:
        order = firms if number % 2 else firms[::-1]
        name = KeyId(f"key_{number}")  # each on a line of its own: nobody takes turns before the money is touched
        batch = [
            tokens(firm, n, at=clock.now(), source=f"{firm} {name}", key_id=name) for firm in order for n in range(9)
        ]
        await db.retrying(lambda tx: api.ingest_tokens(tx, batch, now=clock.now()))

    async def lease(number: int) -> None:
        holder, firm = f"gw {number}", firms[number % 2]
        try:
            taken = await db.retrying(
                lambda tx: api.lease_allowance(
                    tx, holder=holder, firm_id=firm, amount=MicroYuan(300), lease_seconds=60, now=clock.now()
                )
            )
        except NoMoney:
            return
        batch = [tokens(firm, n, at=clock.now(), lease_id=taken.id, source=holder) for n in range(3)]
        await db.retrying(lambda tx: api.ingest_tokens(tx, batch, now=clock.now()))
        await db.retrying(lambda tx: api.return_allowance(tx, lease_id=taken.id, holder=holder, now=clock.now()))

    await asyncio.gather(*(lease(number) for number in range(8)), *(ship(number) for number in range(16)))
    await asyncio.gather(*(ship(number) for number in range(16, 32)))  # alone: nothing is held by anybody now
    async with db.transaction() as tx:
        lost = 0
        for firm, voucher in zip(firms, vouchers, strict=True):
            month = await api.statement(tx, firm, "2026-11", clock.now())
            paid = sum(line.vouchers.get(voucher, 0) for line in month.lines)
            assert (month.cash, paid, month.amount) == (20_000, 5_000, 25_000), "all that was there"
            lost += 105 * sum(line.quantities["requests"] for line in month.lines) - month.amount
        assert (await ledger_store.posted_balances(tx))["platform:loss"] == -lost
        assert await api.open_holds(tx) == []
        assert await api.check_ledger(tx) == []
    await db.close()


async def test_lines_begun_by_everybody_in_the_same_instant_are_begun_once(
    database_url: str, clock: FixedClock
) -> None:
    """By bare threads: the instant between the entries of two indexes is too short for anything slower."""
    db = Database(database_url)
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=20_000)
        await api.ingest_tokens(tx, [tokens(firm, 1, at=clock.now())], now=clock.now())
        one: dict[str, object] = (await tx.execute(select(ChargeRow))).scalar_one().model_dump()
    await db.close()
    batches = [
        usage.begin_lines([one | {"id": f"chg_{turn}_{n}", "line_key": f"{turn} {n}"} for n in range(3)])
        for turn in range(200)
    ]
    engine = create_engine(database_url, pool_size=THREADS, isolation_level="AUTOCOMMIT")
    together = threading.Barrier(THREADS)

    def begin() -> None:
        with engine.connect() as connection:
            for batch in batches:
                together.wait(60)
                try:
                    connection.execute(batch)
                except IntegrityError:
                    together.abort()  # nobody waits for this thread
                    raise

    try:
        with ThreadPoolExecutor(THREADS) as threads:
            turns = [threads.submit(begin) for _ in range(THREADS)]
        refused = [error for turn in turns if isinstance(error := turn.exception(), IntegrityError)]
        assert not refused
        with engine.connect() as connection:
            assert connection.scalar(select(func.count()).select_from(ChargeRow)) == 1 + 3 * len(batches)
    finally:
        engine.dispose()
