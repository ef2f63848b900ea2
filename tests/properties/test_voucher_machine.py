"""Vouchers pay, come back and expire as they do on paper, wherever a transaction is killed."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import Conflict, NoMoney, Refused
from kit.units import GpuMs, MicroYuan, Ppm
from quotas import api, chart, programmes
from quotas.adapters import ledger_store
from quotas.holds import HOLD_SLACK, expire_holds
from quotas.programmes import expire_vouchers
from quotas.statements import period_of
from quotas.vocabulary import Charge, ChargeId, FirmId, Hold, HoldId, ProgrammeId, UsageKind, VoucherId
from tests.support.databases import TestServer
from tests.support.kills import START, Kill, KilledMachine, kills, run_killed
from tests.support.money import hold, open_firm, tokens, used

PAID_IN = 60_000
PRICE = 105
"""Of one request of `tests.support.money.tokens`."""
numbers = itertools.count()
K = TypeVar("K")
firms = st.integers(0, 1)
near = st.integers(0, 4)


@dataclass
class Programme:
    share: int
    left: int
    cap: int
    until: datetime
    days: int
    priority: int
    covers: frozenset[UsageKind]


@dataclass
class Voucher:
    id: VoucherId
    programme: ProgrammeId
    firm: FirmId
    amount: int
    left: int
    expires_at: datetime


@dataclass
class Held:
    """`parts` are (voucher, amount) in burn order."""

    firm: FirmId
    cash: int
    parts: list[tuple[VoucherId, int]]
    expires_at: datetime
    state: str = "open"
    charge: Charge | None = None

    @property
    def amount(self) -> int:
        return self.cash + sum(amount for _, amount in self.parts)


@dataclass
class Paid:
    firm: FirmId
    cash: int
    parts: list[tuple[VoucherId, int]] = field(default_factory=list)
    refunded: bool = False


@dataclass
class Line:
    """A firm's tokens of a month: its charge, and what each voucher (base, part) paid of it so far."""

    charge: ChargeId
    paid: Paid
    vouchers: dict[VoucherId, tuple[int, int]] = field(default_factory=dict)


class VoucherMachine(KilledMachine):
    """Two firms, any number of programmes; a millisecond of a slot costs a micro-yuan."""

    def begin(self) -> None:
        async def opened(tx: AsyncSession) -> list[FirmId]:
            return [await open_firm(tx, now=START, paid_in=PAID_IN) for _ in range(2)]

        self.firms = self.run(opened)
        self.cash = dict.fromkeys(self.firms, PAID_IN)
        self.programmes: dict[ProgrammeId, Programme] = {}
        self.vouchers: dict[VoucherId, Voucher] = {}
        self.holds: dict[HoldId, Held] = {}
        self.paid: dict[ChargeId, Paid] = {}
        self.lines: dict[tuple[FirmId, str], Line] = {}

    def free(self, firm: FirmId) -> int:
        return self.cash[firm] - sum(h.cash for h in self.holds.values() if h.state == "open" and h.firm == firm)

    def split(self, cost: int, purse: list[tuple[VoucherId, int]]) -> tuple[int, list[tuple[VoucherId, int]]]:
        """Cash and parts of a cost, from vouchers with so much each: one yuan is subsidised once."""
        rest, parts = cost, []
        for voucher_id, left in purse:
            share = self.programmes[self.vouchers[voucher_id].programme].share
            part = min(rest * share // 1_000_000, left)
            if part:
                parts.append((voucher_id, part))
                rest -= rest if part < left else min(rest, -(-left * 1_000_000 // share))
        return cost - sum(part for _, part in parts), parts

    def usable(self, firm: FirmId, kind: UsageKind) -> list[Voucher]:
        """A firm's vouchers that may pay now, in burn order."""
        found = [
            v for v in self.vouchers.values()
            if v.firm == firm and v.left > 0 and v.expires_at > self.at and kind in self.programmes[v.programme].covers
        ]  # fmt: skip
        return sorted(found, key=lambda v: (self.programmes[v.programme].priority, v.expires_at, v.id))

    @rule(share=st.sampled_from([1_000_000, 500_000, 333_333]), pool=st.integers(1, 90_000),
          cap=st.integers(1, 60_000), hours=st.integers(1, 200), days=st.integers(1, 5), priority=st.integers(1, 3),
          covers=st.sets(st.sampled_from([UsageKind.COMPUTE, UsageKind.TOKENS]), min_size=1), kill=kills)  # fmt: skip
    def a_programme_opens(
        self, share: int, pool: int, cap: int, hours: int, days: int, priority: int, covers: set[UsageKind],
        kill: Kill | None,
    ) -> None:  # fmt: skip
        until = self.at + timedelta(hours=hours)
        spec = programmes.ProgrammeSpec(
            f"programme {next(numbers)}", "the bureau", Ppm(share), MicroYuan(pool), MicroYuan(cap), self.at, until,
            voucher_days=days, priority=priority, covers=frozenset(covers),
        )  # fmt: skip
        made = self.run(lambda tx: programmes.create_programme(tx, spec, by="test", now=self.at), kill)
        self.programmes[made.id] = Programme(share, pool, cap, until, days, priority, frozenset(covers))

    @precondition(lambda self: self.programmes)
    @rule(which=firms, near=near, amount=st.integers(1, 50_000), kill=kills, again=st.booleans())
    def grant(self, which: int, near: int, amount: int, kill: Kill | None, again: bool) -> None:
        firm, name, key = self.firms[which], self.latest(self.programmes, near), f"grant {next(numbers)}"
        programme = self.programmes[name]

        async def work(tx: AsyncSession) -> programmes.Voucher:
            return await programmes.grant_voucher(
                tx, key=key, programme_id=name, firm_id=firm, amount=MicroYuan(amount), note="", by="test", now=self.at
            )

        granted = sum(v.amount for v in self.vouchers.values() if (v.programme, v.firm) == (name, firm))
        if why := (
            (self.at >= programme.until and "programme_closed")
            or (granted + amount > programme.cap and "firm_cap_reached")
            or (amount > programme.left and "pool_empty")
        ):
            with pytest.raises(Refused) as caught:
                self.run(work, kill)
            assert caught.value.code == why
            return
        made = self.run(work, kill)
        programme.left -= amount
        expires_at = min(self.at + timedelta(days=programme.days), programme.until)
        self.vouchers[made.terms.id] = Voucher(made.terms.id, name, firm, amount, amount, expires_at)
        if again:
            assert self.run(work) == made

    @rule(which=firms, seconds=st.integers(1, 60), kill=kills, again=st.booleans())
    def put_aside(self, which: int, seconds: int, kill: Kill | None, again: bool) -> None:
        firm, key = self.firms[which], f"job {next(numbers)}"
        cash, parts = self.split(seconds * 1000, [(v.id, v.left) for v in self.usable(firm, UsageKind.COMPUTE)])

        async def work(tx: AsyncSession) -> Hold:
            return await hold(tx, firm, now=self.at, seconds=seconds, key=key)

        if cash > self.free(firm):
            with pytest.raises(NoMoney):
                self.run(work, kill)
            return
        made = self.run(work, kill)
        assert (made.cash, [(part.voucher_id, part.amount) for part in made.vouchers]) == (cash, parts)
        self.holds[made.id] = Held(firm, cash, parts, self.at + timedelta(seconds=seconds) + HOLD_SLACK)
        for voucher_id, part in parts:
            self.vouchers[voucher_id].left -= part
        if again:
            assert self.run(work) == made

    @precondition(lambda self: self.holds)
    @rule(near=near, used_ms=st.integers(0, 70_000), kill=kills, again=st.booleans())
    def settle(self, near: int, used_ms: int, kill: Kill | None, again: bool) -> None:
        hold_id = self.latest(self.holds, near)
        one = self.holds[hold_id]
        if one.charge is not None:
            return
        usage = used(one.firm, start=self.at, seconds=used_ms / 1000, attempt=f"att {hold_id}", gpu_ms=GpuMs(used_ms))

        async def work(tx: AsyncSession) -> Charge:
            return await api.settle_compute(tx, hold_id=hold_id, usage=usage, now=self.at)

        if one.state == "released":
            with pytest.raises(Conflict):
                self.run(work, kill)
            return
        made = self.run(work, kill)
        if one.state == "open" and one.expires_at > self.at:
            cash, parts = self.split(min(used_ms, one.amount), one.parts)
            self.let_go(one, "settled")
        else:  # what expired is charged to free cash, as far as it goes
            self.let_go(one, "expired")
            cash, parts = min(used_ms, one.amount, self.free(one.firm)), []
        self.cash[one.firm] -= cash
        for voucher_id, part in parts:
            self.vouchers[voucher_id].left -= part
        assert (made.cash, made.voucher) == (cash, sum(part for _, part in parts))
        one.charge = made
        self.paid[made.id] = Paid(one.firm, cash, parts)
        if again:
            assert self.run(work).id == made.id

    @rule(which=firms, many=st.integers(1, 60), kill=kills, again=st.booleans())
    def use_tokens(self, which: int, many: int, kill: Kill | None, again: bool) -> None:
        firm, month = self.firms[which], period_of(self.at)
        batch = [tokens(firm, next(numbers), at=self.at, source=firm) for _ in range(many)]
        self.run(lambda tx: api.ingest_tokens(tx, batch, now=self.at), kill)
        line = self.lines.get((firm, month)) or self.begun(firm, month)
        due, covered = many * PRICE, many * PRICE
        for voucher in self.usable(firm, UsageKind.TOKENS):
            base, had = line.vouchers.get(voucher.id, (0, 0))
            most, share = had + voucher.left, self.programmes[voucher.programme].share
            whole, part = base + covered, (base + covered) * share // 1_000_000
            if part >= most:
                whole, part = min(whole, -(-most * 1_000_000 // share)), most
            if covered and whole > base:
                line.vouchers[voucher.id] = whole, part
                voucher.left -= part - had
                due, covered = due - (part - had), covered - (whole - base)
        from_cash = min(due, max(0, self.free(firm)))  # the rest is the platform's loss
        self.cash[firm] -= from_cash
        line.paid.cash += from_cash
        line.paid.parts = [(name, part) for name, (_, part) in line.vouchers.items() if part]
        if again:
            assert self.run(lambda tx: api.ingest_tokens(tx, batch, now=self.at)).duplicates == many

    def begun(self, firm: FirmId, month: str) -> Line:
        seen = self.run(lambda tx: api.statement(tx, firm, month, self.at))
        asked = (one for one in seen.lines if one.kind is UsageKind.TOKENS and one.quantities["requests"])
        charge = next(asked).charge_id  # and not the credit note of another month
        line = Line(charge, Paid(firm, 0))
        self.lines[firm, month], self.paid[charge] = line, line.paid
        return line

    def let_go(self, one: Held, state: str) -> None:
        if one.state == "open":
            one.state = state
            for voucher_id, part in one.parts:
                self.vouchers[voucher_id].left += part

    @precondition(lambda self: self.holds)
    @rule(near=near, kill=kills, again=st.booleans())
    def release(self, near: int, kill: Kill | None, again: bool) -> None:
        hold_id = self.latest(self.holds, near)
        one = self.holds[hold_id]

        async def work(tx: AsyncSession) -> None:
            await api.release_hold(tx, hold_id=hold_id, reason="the node was lost", now=self.at)

        if one.state == "settled":
            with pytest.raises(Conflict):
                self.run(work, kill)
            return
        self.run(work, kill)
        self.let_go(one, "released")
        if again:
            self.run(work, kill)

    @precondition(lambda self: self.paid)
    @rule(near=near, kill=kills)
    def refund(self, near: int, kill: Kill | None) -> None:
        charge_id = self.latest(self.paid, near)
        one = self.paid[charge_id]

        async def work(tx: AsyncSession) -> Charge:
            return await api.refund_charge(tx, charge_id=charge_id, reason="wrong", now=self.at)

        if one.refunded or one.cash + sum(part for _, part in one.parts) == 0:
            with pytest.raises(Conflict):
                self.run(work, kill)
            return
        self.run(work, kill)
        one.refunded = True
        self.cash[one.firm] += one.cash
        for voucher_id, part in one.parts:
            self.vouchers[voucher_id].left += part

    @rule(hours=st.integers(1, 30))
    def time_passes(self, hours: int) -> None:
        self.at += timedelta(hours=hours)

    @rule(kill=kills)
    def vouchers_expire_to_their_pools(self, kill: Kill | None) -> None:
        self.run(lambda tx: expire_vouchers(tx, now=self.at), kill)
        for voucher in self.vouchers.values():
            if voucher.expires_at <= self.at:
                self.programmes[voucher.programme].left += voucher.left
                voucher.left = 0

    @rule(kill=kills)
    def holds_expire(self, kill: Kill | None) -> None:
        self.run(lambda tx: expire_holds(tx, now=self.at), kill)
        for one in self.holds.values():
            if one.expires_at <= self.at:
                self.let_go(one, "expired")

    @staticmethod
    def latest(among: Mapping[K, object], near: int) -> K:
        return [*among][-1 - near % len(among)]

    async def compare(self, tx: AsyncSession) -> None:
        for firm in self.firms:
            account = await api.account_of(tx, firm)
            assert (account.balance, account.available) == (self.cash[firm], self.free(firm))
            assert account.available >= 0
            assert {one.terms.id: one.terms.left for one in await api.vouchers_of(tx, firm)} == {
                voucher.id: voucher.left for voucher in self.vouchers.values() if voucher.firm == firm
            }
        for (firm, month), line in self.lines.items():
            charge = next(
                one for one in (await api.statement(tx, firm, month, self.at)).lines if one.charge_id == line.charge
            )
            assert (charge.cash, charge.vouchers) == (line.paid.cash, dict(line.paid.parts))
        pools = {name: chart.programme_pool(name) for name in self.programmes}
        states = await ledger_store.bounded_states(tx, [*pools.values()])
        left = {name: states[pool.code].available for name, pool in pools.items()}
        assert left == {name: one.left for name, one in self.programmes.items()}


def test_vouchers_are_what_they_are_on_paper_wherever_they_are_killed(postgres: TestServer) -> None:
    assert run_killed(VoucherMachine, postgres) > 0, "some transaction was killed"
