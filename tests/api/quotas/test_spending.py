"""Hard budgets and the month's tokens are exact: money and tokens count when they are put aside, under one lock."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import SYSTEM
from kit.clock import FixedClock
from kit.db import Database
from kit.errors import NoMoney
from kit.units import GpuMilli, MicroYuan, Tokens
from quotas import api
from quotas.budgets import BudgetSpec, set_budget
from quotas.cash import record_topup
from quotas.ceilings import set_ceilings
from quotas.vocabulary import AllowanceLease, Ceilings, FirmId, Hold, KeyId, Payer, ProjectId, QoS
from tests.api.quotas.conftest import Studio, World
from tests.support.money import POOL, publish_prices, tokens, used, yuan

HOUR = 3600


class Spender:
    """A firm with money and a key, and what it puts aside."""

    def __init__(self, db: Database, clock: FixedClock, studio: Studio, key: dict[str, Any]) -> None:
        self.db, self.clock, self.studio = db, clock, studio
        self.firm, self.key_id = FirmId(studio.firm_id), KeyId(key["id"])
        self.project = ProjectId(key["project_id"])
        self.mine = Payer(self.firm, self.project, self.key_id)

    async def hold(self, name: str, *, key_id: KeyId | None = None, seconds: int = HOUR) -> Hold:
        async with self.db.transaction() as tx:
            return await api.hold_compute(
                tx, key=name, firm_id=self.firm, project_id=self.project, subject=name, pool=POOL, qos=QoS.STANDARD,
                gpu_milli=GpuMilli(1000), seconds_max=seconds, key_id=key_id, now=self.clock.now(),
            )  # fmt: skip

    async def lease(self, holder: str, amount: int, *, payer: Payer | None = None, tokens: int = 0) -> AllowanceLease:
        async with self.db.transaction() as tx:
            return await api.lease_allowance(
                tx, holder=holder, firm_id=self.firm, payer=payer, amount=MicroYuan(amount), tokens=tokens,
                lease_seconds=60, now=self.clock.now(),
            )  # fmt: skip

    async def budget(self, amount: int, **of: Any) -> None:
        spec = BudgetSpec(self.firm, amount, (100,), True, **of)
        async with self.db.transaction() as tx:
            await set_budget(tx, spec, by=SYSTEM, now=self.clock.now())

    async def limit(self, count: int, project: ProjectId | None = None) -> None:
        async with self.db.transaction() as tx:
            limits = Ceilings(tokens_per_period=count)
            await set_ceilings(tx, self.firm, project, limits, by=SYSTEM, now=self.clock.now())

    async def in_tx(self, work: Callable[[AsyncSession], Awaitable[Any]]) -> Any:
        async with self.db.transaction() as tx:
            return await work(tx)


@pytest.fixture
async def spender(world: World, db: Database, clock: FixedClock) -> Spender:
    await publish_prices(db, now=clock.now())
    studio = await world.studio()
    key = (await world.key(studio))["key"]
    async with db.transaction() as tx:
        await record_topup(
            tx, key="slip", firm_id=FirmId(studio.firm_id), amount=yuan(1000), evidence="slip", by="t", now=clock.now()
        )
    return Spender(db, clock, studio, key)


def refusals(results: list[Any]) -> list[str]:
    unforeseen = [one for one in results if isinstance(one, BaseException) and not isinstance(one, NoMoney)]
    assert unforeseen == []
    return [one.code for one in results if isinstance(one, NoMoney)]


async def test_of_many_jobs_at_once_only_those_start_that_the_budget_covers_with_their_own_price(
    spender: Spender,
) -> None:
    price = (await spender.hold("first")).amount
    await spender.budget(4 * price - 1)
    results = await asyncio.gather(*(spender.hold(f"job {n}") for n in range(12)), return_exceptions=True)
    assert refusals(results) == ["budget_reached"] * 10
    row = (await spender.studio.owner.get("/api/budgets")).json()[0]
    assert (row["held_micro_yuan"], row["spent_micro_yuan"]) == (3 * price, 0)


async def test_jobs_and_gateways_share_a_budget_to_the_micro_yuan(spender: Spender) -> None:
    price = (await spender.hold("first")).amount
    await spender.budget(3 * price)
    leases = await asyncio.gather(*(spender.lease(f"gw {n}", price) for n in range(6)), return_exceptions=True)
    granted = [one for one in leases if isinstance(one, AllowanceLease)]
    assert sum(one.amount_left for one in granted) == 2 * price
    assert refusals([*leases, *await asyncio.gather(spender.hold("job"), return_exceptions=True)]) == (
        ["budget_reached"] * (6 - len(granted) + 1)
    )
    one = granted[0]
    await spender.in_tx(
        lambda tx: api.return_allowance(tx, lease_id=one.id, holder=one.holder, now=spender.clock.now())
    )
    assert (await spender.hold("job after")).amount == price


async def test_a_lease_grows_only_as_far_as_the_budget(spender: Spender) -> None:
    await spender.budget(1_000)
    lease = await spender.lease("gw", 600)
    for top_up_by, left in ((300, 900), (300, 1_000), (300, 1_000)):
        seen = await spender.in_tx(
            lambda tx, more=top_up_by: api.renew_allowance(
                tx, lease_id=lease.id, holder="gw", top_up=more, lease_seconds=60, now=spender.clock.now()
            )
        )
        assert seen.amount_left == left


async def test_a_keys_budget_counts_its_jobs_its_tokens_and_what_it_is_rotated_into(
    spender: Spender, world: World
) -> None:
    held = await spender.hold("first", key_id=spender.key_id)
    await spender.budget(2 * held.amount, key_id=spender.key_id)
    usage = used(spender.firm, start=spender.clock.now(), seconds=HOUR, subject="first")
    spender.clock.advance(timedelta(seconds=HOUR))
    await spender.in_tx(lambda tx: api.settle_compute(tx, hold_id=held.id, usage=usage, now=spender.clock.now()))
    row = (await spender.studio.owner.get("/api/budgets")).json()[0]
    assert (row["spent_micro_yuan"], row["held_micro_yuan"]) == (held.amount, 0)
    rotated = await spender.studio.owner.post(f"/api/keys/{spender.key_id}/rotate", json={"overlap_seconds": 3600})
    successor = KeyId(rotated.json()["key"]["id"])
    await spender.hold("second", key_id=successor)
    with pytest.raises(NoMoney, match="key's budget"):
        await spender.hold("third", key_id=successor)
    with pytest.raises(NoMoney, match="key's budget"):
        await spender.lease("gw", 1, payer=spender.mine)
    assert await spender.hold("without a key") is not None


async def test_the_tokens_of_a_month_are_leased_once_over_all_gateways(spender: Spender) -> None:
    await spender.limit(1_000)
    came = [tokens(spender.firm, 1, at=spender.clock.now(), input=Tokens(200), output=Tokens(100))]
    await spender.in_tx(lambda tx: api.ingest_tokens(tx, came, now=spender.clock.now()))
    leases = await asyncio.gather(*(spender.lease(f"gw {n}", 10, tokens=300) for n in range(4)))
    assert sorted(one.tokens_left for one in leases) == [0, 100, 300, 300]
    full = next(one for one in leases if one.tokens_left == 300)
    renewed = await spender.in_tx(
        lambda tx: api.renew_allowance(
            tx, lease_id=full.id, holder=full.holder, tokens_left=50, lease_seconds=60, now=spender.clock.now()
        )
    )
    assert renewed.tokens_left == 50
    assert (await spender.lease("gw 9", 0, tokens=900)).tokens_left == 250
    room = await spender.in_tx(lambda tx: api.room_of(tx, Payer(spender.firm), now=spender.clock.now()))
    refusal = room.refusal(tokens=1)
    assert refusal is not None and refusal.code == "limit_tokens"


async def test_a_key_says_whose_spending_it_is_where_a_rule_is_over_just_that(spender: Spender, world: World) -> None:
    async def grant() -> tuple[str, bool]:
        seen = await spender.in_tx(lambda tx: api.key_limits(tx, spender.key_id, now=spender.clock.now()))
        return seen.payer, seen.counts_tokens

    assert await grant() == (spender.firm, False)
    await spender.budget(1_000)
    assert await grant() == (spender.firm, False)
    await spender.limit(1_000)
    assert await grant() == (spender.firm, True)
    await spender.limit(1_000, spender.project)
    assert await grant() == (f"{spender.firm} {spender.project}", True)
    await spender.budget(1_000, key_id=spender.key_id)
    assert await grant() == (f"{spender.firm} {spender.project} {spender.key_id}", True)
    assert Payer.named((await grant())[0]) == spender.mine
