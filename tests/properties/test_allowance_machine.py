"""Leases of money, in vouchers and cash, do what they do on paper, wherever a transaction is killed."""

import itertools
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import Conflict, NoMoney, NotFound
from kit.units import MicroYuan
from quotas import api, cash
from quotas.allowances import expire_leases
from quotas.programmes import expire_vouchers
from quotas.vocabulary import AllowanceLease, FirmId, LeaseId, UsageKind
from tests.support.databases import TestServer
from tests.support.kills import START, Kill, KilledMachine, kills, run_killed
from tests.support.money import grant, open_firm, tokens

PRICE = 105
"""Of one request of `tests.support.money.tokens`."""
HOLDERS = ("gw-1", "gw-2", "gw-3")
holders = st.sampled_from(HOLDERS)
amounts = st.integers(1, 900)
numbers = itertools.count()
MARGIN = timedelta(seconds=10)
"""A voucher this near its end is not leased any more."""


@dataclass
class Voucher:
    """A voucher on paper: what is free of it, and what of the firm's line it covered and paid."""

    id: str
    firm: FirmId
    share: int
    free: int
    expires_at: datetime
    covered: int = 0
    paid: int = 0


@dataclass
class Slice:
    """A lease of money on paper: cash, and so much of each voucher."""

    holder: str
    firm: FirmId
    expires_at: datetime
    cash: int = 0
    vouchers: dict[str, int] = field(default_factory=dict)
    state: str = "open"
    recalled: bool = False

    @property
    def left(self) -> int:
        return self.cash + sum(self.vouchers.values())


class AllowanceMachine(KilledMachine):
    """Cash and vouchers of two firms in the hands of three gateways."""

    def begin(self) -> None:
        async def firms(tx: AsyncSession) -> list[FirmId]:
            return [await open_firm(tx, now=START) for _ in range(2)]

        self.firms = self.run(firms)
        self.cash = dict.fromkeys(self.firms, 0)
        self.leases: dict[LeaseId, Slice] = {}
        self.vouchers: dict[str, Voucher] = {}

    def held(self, firm: FirmId) -> int:
        return sum(one.cash for one in self.leases.values() if one.state == "open" and one.firm == firm)

    def free(self, firm: FirmId) -> int:
        return self.cash[firm] - self.held(firm)

    def valid(self, firm: FirmId, at: datetime) -> list[Voucher]:
        """A firm's vouchers that are not over, in burn order."""
        found = [one for one in self.vouchers.values() if one.firm == firm and one.expires_at > at]
        return sorted(found, key=lambda one: (one.expires_at, one.id))

    def split(self, firm: FirmId, cost: int) -> tuple[int, dict[str, int]]:
        """Cash and vouchers of a cost that is leased: one yuan is subsidised once."""
        rest, parts = cost, {}
        for voucher in self.valid(firm, self.at + MARGIN):
            part = min(rest * voucher.share // 1_000_000, voucher.free)
            if part:
                parts[voucher.id] = part
                rest -= rest if part < voucher.free else min(rest, -(-part * 1_000_000 // voucher.share))
        return cost - sum(parts.values()), parts

    def put_aside(self, one: Slice, amount: int) -> int:
        """Lease as much of an amount as there is; returns how much."""
        fits = [cost for cost in range(amount + 1) if self.split(one.firm, cost)[0] <= max(0, self.free(one.firm))]
        cash, parts = self.split(one.firm, fits[-1])
        one.cash += cash
        for name, part in parts.items():
            one.vouchers[name] = one.vouchers.get(name, 0) + part
            self.vouchers[name].free -= part
        return fits[-1]

    def last_until(self, one: Slice, until: datetime) -> None:
        one.expires_at = min([until, *(self.vouchers[name].expires_at for name, part in one.vouchers.items() if part)])

    def let_go(self, one: Slice, state: str) -> None:
        if one.state == "open":
            for name, part in one.vouchers.items():
                self.vouchers[name].free += part
            one.state, one.cash, one.vouchers = state, 0, {}

    def redeemed(self, one: Slice, live: bool, due: int) -> int:
        """Let vouchers pay their share of what the firm's line grew by; returns what they did not pay."""
        rest, paid = due, 0
        for voucher in self.valid(one.firm, self.at):
            leased = one.vouchers.get(voucher.id, 0) if live else 0
            most = voucher.paid + voucher.free + leased
            if rest == 0 or most == voucher.paid:
                continue
            covered, pays = voucher.covered + rest, (voucher.covered + rest) * voucher.share // 1_000_000
            if pays >= most:
                covered, pays = min(covered, -(-most * 1_000_000 // voucher.share)), most
            if covered > voucher.covered:
                rest -= covered - voucher.covered
                more, from_lease = pays - voucher.paid, min(pays - voucher.paid, leased)
                voucher.covered, voucher.paid = covered, pays
                voucher.free -= more - from_lease
                paid += more
                if live and voucher.id in one.vouchers:
                    one.vouchers[voucher.id] -= from_lease
        return due - paid

    def chosen(self, near: int) -> LeaseId:
        return [*self.leases][-1 - near % len(self.leases)]

    @rule(which=st.integers(0, 1), amount=st.integers(1, 2000), kill=kills, again=st.booleans())
    def top_up(self, which: int, amount: int, kill: Kill | None, again: bool) -> None:
        firm, key = self.firms[which], f"slip {next(numbers)}"

        async def work(tx: AsyncSession) -> cash.CashMovement:
            return await cash.record_topup(
                tx, key=key, firm_id=firm, amount=MicroYuan(amount), evidence="slip", by="test", now=self.at
            )

        booked = self.run(work, kill)
        self.cash[firm] += amount
        if again:  # the answer was lost
            assert self.run(work) == booked

    @rule(which=st.integers(0, 1), amount=amounts, share=st.sampled_from([1_000_000, 500_000, 333_333]),
          seconds=st.integers(11, 200), kill=kills)  # fmt: skip
    def a_voucher_is_granted(self, which: int, amount: int, share: int, seconds: int, kill: Kill | None) -> None:
        firm, until = self.firms[which], self.at + timedelta(seconds=seconds)

        async def work(tx: AsyncSession) -> str:
            covers = frozenset({UsageKind.TOKENS})
            return await grant(tx, firm, amount, now=self.at, share_ppm=share, covers=covers, valid_until=until)

        name = self.run(work, kill)
        self.vouchers[name] = Voucher(name, firm, share, amount, until)

    @rule(kill=kills)
    def vouchers_expire_to_their_pools(self, kill: Kill | None) -> None:
        self.run(lambda tx: expire_vouchers(tx, now=self.at), kill)
        for voucher in self.vouchers.values():
            if voucher.expires_at <= self.at:
                voucher.free = 0

    @rule(which=st.integers(0, 1), holder=holders, amount=amounts, seconds=st.integers(1, 60), kill=kills)
    def lease(self, which: int, holder: str, amount: int, seconds: int, kill: Kill | None) -> None:
        firm = self.firms[which]

        async def work(tx: AsyncSession) -> AllowanceLease:
            return await api.lease_allowance(
                tx, holder=holder, firm_id=firm, amount=MicroYuan(amount), lease_seconds=seconds, now=self.at
            )

        if min(self.split(firm, cost)[0] - self.free(firm) for cost in range(1, amount + 1)) > 0:
            with pytest.raises(NoMoney):
                self.run(work, kill)
            return
        got = self.run(work, kill)
        one = Slice(holder, firm, self.at)
        granted = self.put_aside(one, amount)
        self.last_until(one, self.at + timedelta(seconds=seconds))
        assert (got.amount_left, got.expires_at) == (granted, one.expires_at), "as much as is there, never more"
        self.leases[got.id] = one

    @precondition(lambda self: self.leases)
    @rule(near=st.integers(0, 4), more=st.integers(0, 900), seconds=st.integers(1, 60), kill=kills)
    def renew(self, near: int, more: int, seconds: int, kill: Kill | None) -> None:
        lease_id = self.chosen(near)
        one = self.leases[lease_id]

        async def work(tx: AsyncSession) -> AllowanceLease:
            return await api.renew_allowance(
                tx, lease_id=lease_id, holder=one.holder, top_up=more, lease_seconds=seconds, now=self.at
            )

        if one.state != "open" or one.expires_at <= self.at:
            with pytest.raises(Conflict):
                self.run(work, kill)
            return
        got = self.run(work, kill)
        if not one.recalled:
            self.put_aside(one, more)
        self.last_until(one, self.at + timedelta(seconds=seconds))
        assert (got.amount_left, got.expires_at, got.recalled) == (one.left, one.expires_at, one.recalled)

    @precondition(lambda self: self.leases)
    @rule(near=st.integers(0, 4), many=st.integers(1, 6), kill=kills, again=st.booleans())
    def ship_usage(self, near: int, many: int, kill: Kill | None, again: bool) -> None:
        lease_id = self.chosen(near)
        one = self.leases[lease_id]
        batch = [tokens(one.firm, next(numbers), at=self.at, lease_id=lease_id, source=one.firm) for _ in range(many)]
        self.run(lambda tx: api.ingest_tokens(tx, batch, now=self.at), kill)
        live = one.state == "open" and one.expires_at > self.at
        due = self.redeemed(one, live, many * PRICE)
        if live:
            taken = min(due, one.cash)
            one.cash -= taken
            self.cash[one.firm] -= taken
            due -= taken
        self.cash[one.firm] -= min(due, max(0, self.free(one.firm)))  # the rest is the platform's loss
        if again:
            assert self.run(lambda tx: api.ingest_tokens(tx, batch, now=self.at)).duplicates == many

    @precondition(lambda self: self.leases)
    @rule(near=st.integers(0, 4), kill=kills, again=st.booleans())
    def give_back(self, near: int, kill: Kill | None, again: bool) -> None:
        lease_id = self.chosen(near)
        one = self.leases[lease_id]

        async def work(tx: AsyncSession) -> None:
            await api.return_allowance(tx, lease_id=lease_id, holder=one.holder, now=self.at)

        self.run(work, kill)
        self.let_go(one, "returned")
        if again:
            self.run(work)

    @precondition(lambda self: self.leases)
    @rule(near=st.integers(0, 4))
    def a_strangers_hand(self, near: int) -> None:
        with pytest.raises(NotFound):
            self.run(lambda tx: api.return_allowance(tx, lease_id=self.chosen(near), holder="gw-9", now=self.at))

    @rule(which=st.integers(0, 1), holder=holders, kill=kills)
    def recall(self, which: int, holder: str, kill: Kill | None) -> None:
        firm = self.firms[which]
        self.run(lambda tx: api.recall_allowances(tx, firm_id=firm, except_holder=holder, now=self.at), kill)
        for one in self.leases.values():
            if one.state == "open" and one.firm == firm and one.holder != holder:
                one.recalled = True

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.at += timedelta(seconds=seconds)

    @rule(kill=kills)
    def dead_holders_leases_expire(self, kill: Kill | None) -> None:
        self.run(lambda tx: expire_leases(tx, now=self.at), kill)
        for one in self.leases.values():
            if one.expires_at <= self.at:
                self.let_go(one, "expired")

    async def compare(self, tx: AsyncSession) -> None:
        for firm in self.firms:
            account = await api.account_of(tx, firm)
            assert (account.balance, account.held, account.available) == (
                self.cash[firm], self.held(firm), self.free(firm),
            )  # fmt: skip
            assert account.available >= 0, "the sum of leases never exceeds what is there"
            assert {one.terms.id: one.terms.left for one in await api.vouchers_of(tx, firm)} == {
                one.id: one.free for one in self.vouchers.values() if one.firm == firm
            }
        rows = await tx.execute(
            text("""SELECT l.id, l.state, l.expires_at, l.recalled_at IS NOT NULL AS recalled,
                    coalesce(sum(p.amount_left), 0)::bigint AS left
                FROM quotas.allowance_lease l JOIN quotas.allowance_part part ON part.id = l.id
                LEFT JOIN quotas.pending p ON p.id = part.pending_id
                WHERE l.firm_id = ANY(CAST(:firms AS text[])) GROUP BY l.id"""),
            {"firms": self.firms},
        )
        seen = {row.id: (row.state, row.expires_at, row.recalled, row.left) for row in rows}
        assert seen == {
            number: (one.state, one.expires_at, one.recalled, one.left) for number, one in self.leases.items()
        }


def test_leases_are_what_they_are_on_paper_wherever_they_are_killed(postgres: TestServer) -> None:
    assert run_killed(AllowanceMachine, postgres) > 0, "some transaction was killed"
