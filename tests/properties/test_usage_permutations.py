"""However usage arrives within the grace, charges and total are the same; later, it moves to the next month."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import Database
from kit.units import MicroYuan, Ppm, Tokens
from quotas import api
from quotas.discounts import grant_discount
from quotas.pricing import Meter, RateKey, Window
from quotas.statements import GRACE
from quotas.tariffs import publish_tariff
from quotas.usage import ingest_usage
from quotas.vocabulary import FirmId, KeyId, MeteredUsage, ModelName, Statement, TokenUsage, UsageKind
from tests.support.databases import TestServer
from tests.support.money import MODEL, PROJECT, open_firm, tokens, yuan

START = datetime(2026, 11, 1, tzinfo=UTC)
DEARER = datetime(2026, 11, 20, 4, 30, tzinfo=UTC)
CONTRACT = datetime(2026, 11, 25, tzinfo=UTC)
DECEMBER = datetime(2026, 11, 30, 16, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
RATES = {
    RateKey(Meter.INPUT, MODEL): 333_333,
    RateKey(Meter.OUTPUT, MODEL): 1_999_999,
    RateKey(Meter.OUTPUT, MODEL, window="valley"): 777_777,
    RateKey(Meter.IMAGE, "painter"): 3,
}
VALLEY = Window("valley", 0, 8 * 60)
# Prices change, valleys begin, a contract begins and the month ends between these.
INSTANTS = (
    DEARER - MOMENT, DEARER, DEARER + timedelta(days=1), CONTRACT - MOMENT, CONTRACT,
    DECEMBER - timedelta(hours=3), DECEMBER - MOMENT, DECEMBER, DECEMBER + timedelta(minutes=5),
    START, START + timedelta(hours=15, minutes=59), START + timedelta(hours=16),
)  # fmt: skip
EARLIEST = DECEMBER + timedelta(minutes=10)
ORDERS = st.permutations(range(2 * len(INSTANTS)))


def records(firm: FirmId) -> list[TokenUsage | MeteredUsage]:
    """Requests by two keys and pictures, with counts that never make whole micro-yuan."""
    asked: list[TokenUsage | MeteredUsage] = [
        tokens(
            firm, n, at=at, source=firm, key_id=KeyId(f"key_{n % 2}"), input=Tokens(101 + n), cached_input=Tokens(7),
            output=Tokens(13 + 5 * n),
        )
        for n, at in enumerate(INSTANTS)
    ]  # fmt: skip
    painter = ModelName("painter")
    return asked + [
        MeteredUsage(
            id=f"img_{n}", source=firm, kind=UsageKind.IMAGES, firm_id=firm, project_id=PROJECT, resource=painter,
            base_resource=painter, quantity=n + 1, at=at,
        )
        for n, at in enumerate(INSTANTS)
    ]  # fmt: skip


class Books:
    """A database whose price book is published; each firm is an example of its own."""

    def __init__(self, url: str) -> None:
        self.runner, self.db = asyncio.Runner(), Database(url, pool_size=1)
        self.run(self._prices)

    def run(self, work: Any) -> Any:
        async def inside() -> Any:
            async with self.db.transaction() as tx:
                return await work(tx)

        return self.runner.run(inside())

    async def _prices(self, tx: AsyncSession) -> None:
        dear = {key: 2 * rate + 1 for key, rate in RATES.items()}
        for since, rates in ((START, RATES), (DEARER, dear)):
            await publish_tariff(tx, name="x", valid_from=since, rates=rates, windows=(VALLEY,), by="t", now=START)

    async def firm(self, tx: AsyncSession) -> FirmId:
        firm = await open_firm(tx, now=START, paid_in=yuan(100))
        await grant_discount(
            tx, firm_id=firm, kind=UsageKind.TOKENS, resource="*", off_ppm=Ppm(123_457), valid_from=CONTRACT,
            valid_until=None, contract="c", by="test", now=START,
        )  # fmt: skip
        return firm

    def charged(self, batches: Sequence[tuple[datetime, Sequence[int]]]) -> list[Statement]:
        """November and December of a firm whose records came so: (when, which)."""
        firm = self.run(self.firm)
        known = records(firm)
        for now, which in batches:
            self.run(lambda tx, at=now, batch=[known[n] for n in which]: ingest_usage(tx, batch, now=at))
        return [
            self.run(lambda tx, m=month: api.statement(tx, firm, m, EARLIEST + GRACE))
            for month in ("2026-11", "2026-12")
        ]


@pytest.fixture
def books(postgres: TestServer) -> Iterator[Books]:
    with postgres.database() as url:
        made = Books(url)
        yield made
        assert made.run(api.check_ledger) == []
        made.runner.run(made.db.close())
        made.runner.close()


def shown(months: Sequence[Statement]) -> list[list[Any]]:
    """What a charge is made of, whoever's it is."""
    return [
        sorted(
            (line.service_period, line.subject, sorted(line.rates.items()), sorted(line.contract_rates.items()),
             sorted(line.quantities.items()), line.amount, line.discount, line.first_at, line.last_at)
            for line in month.lines
        )
        for month in months
    ]  # fmt: skip


def test_order_repetition_batches_and_delays_within_the_grace_never_change_a_charge(books: Books) -> None:
    expected = books.charged([(EARLIEST, range(2 * len(INSTANTS)))])
    assert [len(month.lines) for month in expected] == [12, 3], "every boundary makes a line"

    @settings(max_examples=20, deadline=None)
    @given(
        order=ORDERS,
        again=st.lists(st.integers(0, 2 * len(INSTANTS) - 1), max_size=12),
        sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40),
        delays=st.lists(st.integers(0, 71 * 3600), min_size=40, max_size=40),
    )
    def attacked(order: list[int], again: list[int], sizes: list[int], delays: list[int]) -> None:
        rest, batches = [*order, *again], list[tuple[datetime, list[int]]]()
        for size, delay in zip([*sizes, *[9] * 40], sorted(delays), strict=False):
            if rest:
                batches.append((EARLIEST + timedelta(seconds=delay), rest[:size]))
                rest = rest[size:]
        assert not rest
        seen = books.charged(batches)
        assert shown(seen) == shown(expected)
        assert [month.amount for month in seen] == [month.amount for month in expected]
        assert all(month.amount == month.cash for month in seen)

    attacked()


def test_usage_that_comes_after_the_grace_moves_to_the_next_month_at_the_same_amount(books: Books) -> None:
    expected = books.charged([(EARLIEST, range(2 * len(INSTANTS)))])

    @settings(max_examples=6, deadline=None)
    @given(order=ORDERS, cut=st.integers(1, 2 * len(INSTANTS)))
    def attacked(order: list[int], cut: int) -> None:
        late = DECEMBER + GRACE
        november, december = books.charged([(late, order[:cut]), (late + timedelta(days=1), order[cut:] or order[:1])])
        assert november.lines == ()
        [[], moved] = shown([november, december])
        assert moved == sorted([*shown(expected)[0], *shown(expected)[1]])
        assert december.amount == MicroYuan(sum(month.amount for month in expected))

    attacked()
