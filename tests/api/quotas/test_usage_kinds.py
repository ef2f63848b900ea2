"""Images, audio and storage on the same lines of the law as tokens; discounts and vouchers on all of them."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from kit.clock import FixedClock
from kit.db import Database
from kit.errors import Conflict, InvalidInput, Refused
from kit.units import MicroYuan, Ppm, Tokens
from quotas import api, discounts, tariffs
from quotas.ledger_service import sweep
from quotas.pricing import Meter, RateKey
from quotas.statement_service import close_statement
from quotas.statements import GRACE, bounds
from quotas.vocabulary import (
    FirmId,
    KeyId,
    MeteredUsage,
    ModelName,
    Period,
    Statement,
    TokenUsage,
    UsageKind,
    centre_of,
)
from tests.support.money import MODEL, POOL, PROJECT, RATES, grant, hold, open_firm, publish_prices, tokens, used, yuan

PAINTER = ModelName("painter")
FILES = ModelName("files")
GB = 10**9
BOOK = RATES | {
    RateKey(Meter.IMAGE, PAINTER): 40_000,
    RateKey(Meter.AUDIO_SECOND, "*"): 333,
    RateKey(Meter.STORAGE_GB_MONTH, "files"): 120_000,
}


async def _prices(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        start = clock.now() - timedelta(days=60)
        await tariffs.publish_tariff(tx, name="all", valid_from=start, rates=BOOK, by="test", now=clock.now())


def used_of(
    firm: FirmId, kind: UsageKind, quantity: int, *, at: datetime, number: int = 1, **more: Any
) -> MeteredUsage:
    values: dict[str, Any] = {
        "source": "gateway-1",
        "key_id": KeyId("key_1"),
        "resource": FILES if kind is UsageKind.STORAGE else PAINTER,
    }
    values |= more
    return MeteredUsage(
        id=f"{kind}_{number}",
        kind=kind,
        firm_id=firm,
        project_id=PROJECT,
        base_resource=values["resource"],
        quantity=quantity,
        at=at,
        **values,
    )


async def test_images_audio_and_storage_have_lines_of_their_own_each_rounded_once(
    db: Database, clock: FixedClock
) -> None:
    await _prices(db, clock)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(5))
        records = [
            used_of(firm, UsageKind.IMAGES, 3, at=clock.now()),
            used_of(firm, UsageKind.AUDIO, 1_500, at=clock.now()),
            used_of(firm, UsageKind.AUDIO, 1_500, at=clock.now(), number=2),
            used_of(firm, UsageKind.STORAGE, 6 * GB, at=clock.now()),
            used_of(firm, UsageKind.STORAGE, 3 * GB, at=clock.now(), number=2),
        ]
        assert (await api.ingest_usage(tx, records, now=clock.now())).accepted == 5
        month = await api.statement(tx, firm, "2026-11", clock.now())
        assert {line.kind: (line.amount, line.quantities) for line in month.lines} == {
            UsageKind.IMAGES: (120_000, {"images": 3, "requests": 1}),
            UsageKind.AUDIO: (999, {"audio_ms": 3_000, "requests": 2}),
            UsageKind.STORAGE: (1_500, {"byte_hours": 9 * GB}),
        }
        assert await api.check_ledger(tx) == []


async def test_one_source_and_id_is_charged_once_whatever_its_kind(db: Database, clock: FixedClock) -> None:
    await _prices(db, clock)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(5))
        image = used_of(firm, UsageKind.IMAGES, 1, at=clock.now())
        await api.ingest_usage(tx, [image], now=clock.now())
        other = used_of(firm, UsageKind.AUDIO, 9_000, at=clock.now())
        again = await api.ingest_usage(tx, [replace(other, id=image.id), image], now=clock.now())
        assert (again.accepted, again.duplicates) == (0, 2)
        assert (await api.account_of(tx, firm)).balance == yuan(5) - 40_000


@pytest.mark.parametrize(
    "wrong", [{"quantity": -1}, {"quantity": 2**53 + 1}, {"kind": UsageKind.COMPUTE}, {"source": ""}], ids=str
)
async def test_a_batch_with_one_wrong_quantity_is_refused_whole(
    db: Database, clock: FixedClock, wrong: dict[str, Any]
) -> None:
    await _prices(db, clock)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(1))
        good = used_of(firm, UsageKind.IMAGES, 1, at=clock.now())
        bad = replace(good, **{"id": "bad", **wrong})
        with pytest.raises(InvalidInput, match="bad"):
            await api.ingest_usage(tx, [good, bad], now=clock.now())
        assert (await api.account_of(tx, firm)).balance == yuan(1)


def _month_of_events(firm: FirmId, at: datetime) -> list[TokenUsage | MeteredUsage]:
    made = random.Random(7)
    events: list[TokenUsage | MeteredUsage] = []
    for number in range(60):
        when = at - timedelta(hours=made.randint(0, 30))
        kind = made.choice([UsageKind.TOKENS, UsageKind.IMAGES, UsageKind.AUDIO, UsageKind.STORAGE])
        if kind is UsageKind.TOKENS:
            counts: dict[str, Any] = {"input": Tokens(made.randint(20, 999)), "output": Tokens(made.randint(0, 999))}
            events.append(tokens(firm, number, at=when, source=firm, **counts))
        else:
            size = made.randint(1, {UsageKind.STORAGE: 10**10, UsageKind.AUDIO: 9_999}.get(kind, 9))
            events.append(used_of(firm, kind, size, at=when, number=number, source=firm))
    return events


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("late", [False, True], ids=["in time", "late but within the grace"])
async def test_order_repetition_batching_and_delay_change_no_charge_of_any_kind_nor_who_pays(
    db: Database, clock: FixedClock, seed: int, late: bool
) -> None:
    await _prices(db, clock)
    clock.advance(bounds("2026-11")[1] - clock.now() - timedelta(hours=1))
    chance, seen = random.Random(seed), []
    for turn in range(2):
        async with db.transaction() as tx:
            firm = await open_firm(tx, now=clock.now(), paid_in=yuan(50))
            await grant(tx, firm, yuan(100), now=clock.now() - timedelta(hours=20), covers=frozenset(UsageKind))
            await _discount(tx, firm, clock, UsageKind.IMAGES, start=clock.now() - timedelta(seconds=59))
        events = _month_of_events(firm, clock.now())
        events += chance.choices(events, k=20)
        chance.shuffle(events)
        now = clock.now() + (GRACE if late and turn else timedelta(0))
        while events:
            size = chance.randint(1, 15)
            batch, events = events[:size], events[size:]
            async with db.transaction() as tx:
                await api.ingest_usage(tx, batch, now=now)
        async with db.transaction() as tx:
            month = await api.statement(tx, firm, "2026-11", now)
            seen.append(_comparable(month))
            assert await api.check_ledger(tx) == []
    assert seen[0] == seen[1]
    assert {line[0] for line in seen[0]} == set(UsageKind) - {UsageKind.COMPUTE}
    assert any(line[5] for line in seen[0]), "vouchers paid for something"


def _comparable(month: Statement) -> Sequence[tuple[Any, ...]]:
    return [
        (line.kind, line.quantities, line.amount, line.discount, line.cash, line.voucher)
        for line in sorted(month.lines, key=lambda one: (one.kind, one.amount))
    ]


async def _discount(
    tx: Any, firm: FirmId, clock: FixedClock, kind: UsageKind, *, off: int = 100_000, **span: Any
) -> discounts.Contract:
    return await discounts.grant_discount(
        tx,
        firm_id=firm,
        kind=kind,
        resource=span.get("resource", "*"),
        off_ppm=Ppm(off),
        valid_from=span.get("start"),
        valid_until=span.get("end"),
        contract="合同 7",
        by="test",
        now=clock.now(),
    )


@pytest.mark.parametrize("kind", [UsageKind.IMAGES, UsageKind.AUDIO, UsageKind.STORAGE])
async def test_usage_after_the_close_goes_to_the_next_month_at_the_same_amount(
    db: Database, clock: FixedClock, kind: UsageKind
) -> None:
    await _prices(db, clock)
    end = bounds("2026-11")[1]
    async with db.transaction() as tx:
        early = await open_firm(tx, now=clock.now(), paid_in=yuan(5))
        late = await open_firm(tx, now=clock.now(), paid_in=yuan(5))
        for firm in (early, late):
            await api.ingest_usage(tx, [tokens(firm, 1, at=clock.now(), source=firm)], now=clock.now())
        usage = used_of(early, kind, 7 * GB if kind is UsageKind.STORAGE else 77, at=end - timedelta(minutes=1))
        await api.ingest_usage(tx, [usage], now=end)
        await close_statement(tx, late, Period("2026-11"), now=end + GRACE)
        await api.ingest_usage(tx, [replace(usage, firm_id=late, id="late")], now=end + GRACE)
        [in_time] = [one for one in (await api.statement(tx, early, "2026-11", end)).lines if one.kind == kind]
        [moved] = (await api.statement(tx, late, "2026-12", end)).lines
        assert (moved.amount, moved.service_period, moved.kind) == (in_time.amount, "2026-11", kind)


async def test_a_voucher_pays_for_the_tokens_its_programme_covers_and_says_why(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=1000)
        covered = frozenset({UsageKind.TOKENS})
        both = await grant(tx, firm, 60, now=clock.now(), covers=covered, priority=1)
        second = await grant(tx, firm, 1000, now=clock.now(), covers=covered, share_ppm=200_000, priority=2)
        compute = await grant(tx, firm, 1000, now=clock.now())
        lease = await api.lease_allowance(
            tx, holder="gw", firm_id=firm, amount=MicroYuan(500), lease_seconds=30, now=clock.now()
        )
        for number in range(2):
            batch = [tokens(firm, number, at=clock.now(), lease_id=lease.id)]
            await api.ingest_tokens(tx, batch, now=clock.now())
        [line] = (await api.statement(tx, firm, "2026-11", clock.now())).lines
        assert (line.amount, line.vouchers) == (210, {both: 60, second: 18}), "half of 120, a fifth of the other 90"
        assert (line.cash, (await api.account_of(tx, firm)).balance) == (132, 1000 - 132)
        assert any(both in said and "¥0.00006 of ¥0.00012" in said for said in line.explanation)
        assert any(compute in said and "does not pay for tokens" in said for said in line.explanation)
        assert await api.check_ledger(tx) == []
        note = await api.refund_charge(tx, charge_id=line.charge_id, reason="wrong", now=clock.now())
        assert (note.amount, note.cash) == (-210, -132)
        await api.return_allowance(tx, lease_id=lease.id, holder="gw", now=clock.now())
        left: dict[str, int] = {one.terms.id: one.terms.left for one in await api.vouchers_of(tx, firm)}
        assert (left[both], left[second]) == (60, 1000), "each voucher has its own back"
        assert await api.check_ledger(tx) == []


async def test_tokens_used_before_a_voucher_or_after_it_are_not_paid_by_it(db: Database, clock: FixedClock) -> None:
    await publish_prices(db, now=clock.now())
    begun = clock.now()
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=begun, paid_in=1000)
        voucher = await grant(tx, firm, 500, now=begun, covers=frozenset({UsageKind.TOKENS}), voucher_days=2)
        end = begun + timedelta(days=2)
        at = [begun - timedelta(seconds=1), begun, end - timedelta(seconds=1), end]
        batch = [tokens(firm, number, at=instant) for number, instant in enumerate(at)]
        await api.ingest_tokens(tx, batch, now=end - timedelta(seconds=1))
        [line] = (await api.statement(tx, firm, "2026-11", end)).lines
        assert (line.amount, line.vouchers) == (420, {voucher: 105}), "half of the two that it was valid for"
    await sweep(db, end)
    async with db.transaction() as tx:
        [gone] = await api.vouchers_of(tx, firm)
        assert gone.terms.left == 0, "what it still had went back to its pool"
        await api.ingest_tokens(tx, [tokens(firm, 9, at=begun)], now=end)
        [line] = (await api.statement(tx, firm, "2026-11", end)).lines
        assert line.voucher == 105, "an expired voucher pays no more"
        assert await api.check_ledger(tx) == []


async def test_a_discount_is_a_field_of_its_own_and_ends_when_its_contract_does(
    db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    start = clock.now()
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=start, paid_in=yuan(5))
        end = start + timedelta(seconds=100)
        contract = await _discount(tx, firm, clock, UsageKind.COMPUTE, off=250_000, end=end)
        await _discount(tx, firm, clock, UsageKind.TOKENS, off=500_000, resource=MODEL)
        held = await hold(tx, firm, now=start, seconds=200)
        assert held.amount == 200_000, "the dearest that the work may meet, whenever it runs"
        charge = await api.settle_compute(
            tx, hold_id=held.id, usage=used(firm, start=start, seconds=200), now=start + timedelta(seconds=200)
        )
        assert charge.amount == 75_000 + 100_000
        await api.ingest_tokens(tx, [tokens(firm, 1, at=start)], now=start)
        month = await api.statement(tx, firm, "2026-11", start)
        compute, used_tokens = month.lines
        assert (compute.discount, compute.about["discount_id"]) == (25_000, contract.terms.id)
        assert sorted(compute.contract_rates.values()) == [2_700_000]
        assert (used_tokens.amount, used_tokens.discount) == (52, 53), "105 at half: 52.5, half to even"
        assert month.discount == 25_053
        centre = await api.centre_statement(tx, centre_of(POOL), "2026-11", start)
        assert centre.payable == 160_000, "the centre is paid its part of the list price"
        assert await api.check_ledger(tx) == []


async def test_two_discounts_on_the_same_at_once_are_refused_and_a_named_resource_goes_first(
    db: Database, clock: FixedClock
) -> None:
    await publish_prices(db, now=clock.now())
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now(), paid_in=yuan(5))
        mid = clock.now() + timedelta(days=5)
        await _discount(tx, firm, clock, UsageKind.TOKENS, end=mid)
        with pytest.raises(Conflict, match="part of that time"):
            await _discount(tx, firm, clock, UsageKind.TOKENS, start=mid - timedelta(seconds=1))
        await _discount(tx, firm, clock, UsageKind.TOKENS, start=mid)
        await _discount(tx, firm, clock, UsageKind.TOKENS, off=1_000_000, resource=MODEL)
        with pytest.raises(Refused, match="has passed"):
            await _discount(tx, firm, clock, UsageKind.IMAGES, start=clock.now() - timedelta(days=1))
        with pytest.raises(InvalidInput, match="ends after it starts"):
            await _discount(tx, firm, clock, UsageKind.IMAGES, start=mid, end=mid)
        await api.ingest_tokens(tx, [tokens(firm, 1, at=clock.now())], now=clock.now())
        [line] = (await api.statement(tx, firm, "2026-11", clock.now())).lines
        assert (line.amount, line.discount) == (0, 105)


async def test_a_new_price_book_that_forgets_a_price_is_refused_by_name(db: Database, clock: FixedClock) -> None:
    await _prices(db, clock)
    async with db.transaction() as tx:
        fewer = {key: rate for key, rate in BOOK.items() if key.meter is not Meter.IMAGE}
        options: dict[str, Any] = {"name": "b", "valid_from": None, "by": "test", "now": clock.now()}
        with pytest.raises(Refused, match="no price for painter image"):
            await tariffs.publish_tariff(tx, rates=fewer, **options)
        ended = await tariffs.publish_tariff(tx, rates=fewer, ends_prices=True, **options)
        assert ended.rate(Meter.IMAGE, PAINTER) is None
