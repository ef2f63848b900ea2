"""Token usage and allowance leases, on a real database: every record once, and no lease above what is there."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from kit.clock import FixedClock
from kit.db import Database
from kit.errors import Conflict, InvalidInput, NoMoney, NotFound, Refused
from kit.units import MicroYuan, Ppm
from quotas import api, cash, discounts, tariffs
from quotas.adapters import ledger_store
from quotas.ledger_service import sweep
from quotas.vocabulary import PLATFORM_FIRM, KeyId, ModelName, UsageKind
from tests.support.money import RATES, hold, open_firm, publish_prices, tokens, yuan


async def test_tokens_are_charged_from_the_lease_on_one_line_per_key_and_model(db: Database, clock: FixedClock) -> None:
    tariff = await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        lease = await api.lease_allowance(
            tx, holder="gw", firm_id=firm, amount=MicroYuan(10_000), lease_seconds=30, now=clock.now()
        )
        records = [tokens(firm, n, at=clock.now(), lease_id=lease.id) for n in range(4)]
        records.append(tokens(firm, 4, at=clock.now(), lease_id=lease.id, key_id=KeyId("key_2")))
        result = await api.ingest_tokens(tx, records, now=clock.now())
        assert (result.accepted, result.duplicates) == (5, 0)
        month = await api.statement(tx, firm, "2026-11", clock.now())
        assert [(line.about["key_id"], line.amount, line.quantities["requests"]) for line in month.lines] == [
            ("key_1", 420, 4),
            ("key_2", 105, 1),
        ]
        assert {line.tariff_id for line in month.lines} == {tariff}
        assert month.lines[0].quantities == {"input": 320, "cached_input": 80, "output": 40, "requests": 4}
        account = await api.account_of(tx, firm)
        assert (account.balance, account.held) == (yuan(1) - 525, 10_000 - 525)
        assert await api.check_ledger(tx) == []


async def test_a_batch_sent_again_changes_nothing(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        batch = [tokens(firm, n, at=clock.now()) for n in range(3)]
        await api.ingest_tokens(tx, batch, now=clock.now())
        again = await api.ingest_tokens(tx, [*batch, tokens(firm, 3, at=clock.now())], now=clock.now())
        assert (again.accepted, again.duplicates) == (1, 3)
        assert (await api.account_of(tx, firm)).balance == yuan(1) - 4 * 105
        assert await api.check_ledger(tx) == []


async def test_usage_beyond_lease_and_cash_is_the_platforms_loss_and_never_overdraws(
    db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=150)
        lease = await api.lease_allowance(
            tx, holder="gw", firm_id=firm, amount=MicroYuan(100), lease_seconds=30, now=clock.now()
        )
        batch = [tokens(firm, n, at=clock.now(), lease_id=lease.id) for n in range(2)]
        await api.ingest_tokens(tx, batch, now=clock.now())
        account = await api.account_of(tx, firm)
        assert (account.balance, account.held) == (0, 0)
        assert (await ledger_store.posted_balances(tx))["platform:loss"] == -60
        month = await api.statement(tx, firm, "2026-11", clock.now())
        assert month.cash == 150
        assert await api.check_ledger(tx) == []


async def test_money_spent_while_a_batch_is_charged_costs_the_platform_only_what_is_not_there(
    db: Database, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=150)
    really_post, raced = ledger_store.post, list[str]()

    async def post_after_a_withdrawal(tx: AsyncSession, *, scope: str, **more: Any) -> Any:
        if scope == "usage" and not raced:
            raced.append(firm)
            paid = {"firm_id": firm, "amount": MicroYuan(100), "evidence": "slip", "by": "test", "now": clock.now()}
            async with db.transaction() as other:
                await cash.record_withdrawal(other, key="race", **paid)
        return await really_post(tx, scope=scope, **more)

    monkeypatch.setattr(ledger_store, "post", post_after_a_withdrawal)
    async with db.transaction() as tx:
        await api.ingest_tokens(tx, [tokens(firm, 1, at=clock.now())], now=clock.now())
    async with db.transaction() as tx:
        assert (await ledger_store.posted_balances(tx))["platform:loss"] == -55
        assert (await api.account_of(tx, firm)).available == 0
        assert await api.check_ledger(tx) == []


@pytest.mark.parametrize("ahead", [timedelta(minutes=4), timedelta(seconds=-30)], ids=["a fast clock", "a late book"])
async def test_a_new_price_never_begins_before_usage_that_was_charged_at_the_old_one(
    db: Database, clock: FixedClock, ahead: timedelta
) -> None:
    now = clock.now()
    old = await publish_prices(db, now=now)
    contract: dict[str, Any] = {"kind": UsageKind.TOKENS, "resource": "*", "off_ppm": Ppm(500_000), "contract": "12"}
    contract |= {"valid_until": None, "by": "test", "now": now}
    book: dict[str, Any] = {"name": "second", "rates": RATES, "by": "test", "now": now}
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=now, paid_in=yuan(1))
        await api.ingest_tokens(tx, [tokens(firm, 1, at=now + ahead)], now=now)
        with pytest.raises(Refused) as refused:
            await tariffs.publish_tariff(tx, valid_from=now + ahead, **book)
        assert refused.value.code == "tariff_start_used"
        with pytest.raises(Refused) as refused:
            await discounts.grant_discount(tx, firm_id=firm, valid_from=now + ahead, **contract)
        assert refused.value.code == "discount_start_used"
        granted = await discounts.grant_discount(tx, firm_id=firm, valid_from=None, **contract)
        new = await tariffs.publish_tariff(tx, valid_from=None, **book)
        assert min(new.valid_from, granted.terms.valid_from) == max(now, now + ahead + timedelta(microseconds=1))
        at = max(now, now + ahead) + timedelta(seconds=1)
        await api.ingest_tokens(tx, [tokens(firm, 2, at=now + ahead), tokens(firm, 3, at=at)], now=now)
        ended = await discounts.end_discount(tx, granted.terms.id, now=now)
        assert ended.terms.valid_until == at + timedelta(microseconds=1)
        month = await api.statement(tx, firm, "2026-11", now)
        assert {line.tariff_id for line in month.lines} == {old, new.id}
        assert await api.check_ledger(tx) == []


async def test_dedicated_tokens_are_metered_at_price_zero(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
        await api.ingest_tokens(tx, [tokens(firm, 1, at=clock.now(), dedicated=True)], now=clock.now())
        await api.ingest_tokens(tx, [tokens(PLATFORM_FIRM, 2, at=clock.now())], now=clock.now())
        month = await api.statement(tx, firm, "2026-11", clock.now())
        assert [(line.amount, line.quantities["output"]) for line in month.lines] == [(0, 10)]
        assert "dedicated" in month.lines[0].note
        assert await api.check_ledger(tx) == []


async def test_usage_without_a_price_is_kept_and_found_by_the_check(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
        unknown = tokens(firm, 1, at=clock.now() - timedelta(days=60))
        assert (await api.ingest_tokens(tx, [unknown], now=clock.now())).accepted == 1
        [finding] = await api.check_ledger(tx)
        assert (finding.invariant, "have no price" in finding.detail) == ("L3", True)


@pytest.mark.parametrize(
    "bad", [{"input": -1}, {"output": 2**41}, {"cached_input": 101}, {"source": ""}], ids=lambda bad: next(iter(bad))
)
async def test_a_batch_with_one_bad_record_is_refused_whole(
    db: Database, clock: FixedClock, bad: dict[str, Any]
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        with pytest.raises(InvalidInput, match="req_2"):
            await api.ingest_tokens(
                tx, [tokens(firm, 1, at=clock.now()), tokens(firm, 2, at=clock.now(), **bad)], now=clock.now()
            )
        assert (await api.account_of(tx, firm)).balance == yuan(1)


async def test_leases_never_exceed_what_is_there(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=100)
        first = await api.lease_allowance(
            tx, holder="gw-1", firm_id=firm, amount=MicroYuan(70), lease_seconds=30, now=clock.now()
        )
        second = await api.lease_allowance(
            tx, holder="gw-2", firm_id=firm, amount=MicroYuan(70), lease_seconds=30, now=clock.now()
        )
        assert (first.amount_left, second.amount_left) == (70, 30)
        with pytest.raises(NoMoney):
            await api.lease_allowance(
                tx, holder="gw-3", firm_id=firm, amount=MicroYuan(1), lease_seconds=30, now=clock.now()
            )
        assert await api.recall_allowances(tx, firm_id=firm, except_holder="gw-3", now=clock.now()) == 2
        renewed = await api.renew_allowance(
            tx, lease_id=first.id, holder="gw-1", top_up=50, lease_seconds=30, now=clock.now()
        )
        assert (renewed.recalled, renewed.amount_left) == (True, 70)
        await api.return_allowance(tx, lease_id=first.id, holder="gw-1", now=clock.now())
        await api.return_allowance(tx, lease_id=first.id, holder="gw-1", now=clock.now())
        third = await api.lease_allowance(
            tx, holder="gw-3", firm_id=firm, amount=MicroYuan(500), lease_seconds=30, now=clock.now()
        )
        assert third.amount_left == 70
        assert await api.check_ledger(tx) == []


async def test_a_lease_is_topped_up_also_after_it_was_used_up(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=1000)
        lease = await api.lease_allowance(
            tx, holder="gw", firm_id=firm, amount=MicroYuan(105), lease_seconds=30, now=clock.now()
        )
        lease = await api.renew_allowance(
            tx, lease_id=lease.id, holder="gw", top_up=105, lease_seconds=60, now=clock.now()
        )
        assert lease.amount_left == 210
        batch = [tokens(firm, n, at=clock.now(), lease_id=lease.id) for n in range(2)]
        await api.ingest_tokens(tx, batch, now=clock.now())
        lease = await api.renew_allowance(
            tx, lease_id=lease.id, holder="gw", top_up=2000, lease_seconds=60, now=clock.now()
        )
        assert lease.amount_left == 790
        assert [one.id for one in await api.open_leases(tx, holder="gw")] == [lease.id]
        with pytest.raises(NotFound):
            await api.return_allowance(tx, lease_id=lease.id, holder="someone else", now=clock.now())
        assert await api.check_ledger(tx) == []


async def test_the_lease_of_a_dead_gateway_expires_and_its_late_usage_is_still_charged(
    db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=1000)
        lease = await api.lease_allowance(
            tx, holder="gw", firm_id=firm, amount=MicroYuan(1000), lease_seconds=30, now=clock.now()
        )
    used_at = clock.now()
    clock.advance(timedelta(seconds=31))
    await sweep(db, clock.now())
    async with db.transaction() as tx:
        assert (await api.account_of(tx, firm)).available == 1000
        with pytest.raises(Conflict, match="expired already"):
            await api.renew_allowance(tx, lease_id=lease.id, holder="gw", lease_seconds=30, now=clock.now())
        await api.ingest_tokens(tx, [tokens(firm, 1, at=used_at, lease_id=lease.id)], now=clock.now())
        assert (await api.account_of(tx, firm)).balance == 895
        assert await api.check_ledger(tx) == []


async def test_an_adapter_costs_what_its_base_model_costs_and_has_its_own_line(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=1000)
        batch = [tokens(firm, 1, at=clock.now()), tokens(firm, 2, at=clock.now(), model=ModelName("our-lore"))]
        await api.ingest_tokens(tx, batch, now=clock.now())
        month = await api.statement(tx, firm, "2026-11", clock.now())
        assert {line.about["model"]: line.amount for line in month.lines} == {
            "our-lore": 105,
            "smollm2-135m-instruct": 105,
        }


async def test_what_a_job_holds_is_not_leased_to_a_gateway(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=100_000)
        await hold(tx, firm, now=clock.now(), seconds=60)
        lease = await api.lease_allowance(
            tx, holder="gw", firm_id=firm, amount=MicroYuan(100_000), lease_seconds=30, now=clock.now()
        )
        assert lease.amount_left == 40_000
        assert {(one.kind, one.amount) for one in await api.open_holds(tx)} == {
            ("allowance", 40_000),
            ("compute", 60_000),
        }
