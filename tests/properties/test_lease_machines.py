"""Leases of money and of rate windows do what they do on paper, wherever a transaction is killed."""

import itertools
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import Conflict, NoMoney, NotFound
from kit.units import MicroYuan
from quotas import api, cash
from quotas.allowances import expire_leases
from quotas.rate_windows import expire_windows
from quotas.vocabulary import AllowanceLease, FirmId, KeyId, LeaseId, RateAsk, RateLease
from tests.support.databases import TestServer
from tests.support.kills import START, Kill, KilledMachine, kills, run_killed
from tests.support.money import open_firm, open_key, tokens

PRICE = 105
"""Of one request of `tests.support.money.tokens`."""
HOLDERS = ("gw-1", "gw-2", "gw-3")
holders = st.sampled_from(HOLDERS)
amounts = st.integers(1, 900)
numbers = itertools.count()


@dataclass
class Slice:
    """A lease of money on paper."""

    holder: str
    firm: FirmId
    left: int
    expires_at: datetime
    state: str = "open"
    recalled: bool = False


class AllowanceMachine(KilledMachine):
    """Money of two firms in the hands of three gateways."""

    def begin(self) -> None:
        async def firms(tx: AsyncSession) -> list[FirmId]:
            return [await open_firm(tx, now=START) for _ in range(2)]

        self.firms = self.run(firms)
        self.cash = dict.fromkeys(self.firms, 0)
        self.leases: dict[LeaseId, Slice] = {}

    def held(self, firm: FirmId) -> int:
        return sum(one.left for one in self.leases.values() if one.state == "open" and one.firm == firm)

    def free(self, firm: FirmId) -> int:
        return self.cash[firm] - self.held(firm)

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

    @rule(which=st.integers(0, 1), holder=holders, amount=amounts, seconds=st.integers(1, 60), kill=kills)
    def lease(self, which: int, holder: str, amount: int, seconds: int, kill: Kill | None) -> None:
        firm = self.firms[which]

        async def work(tx: AsyncSession) -> AllowanceLease:
            return await api.lease_allowance(
                tx, holder=holder, firm_id=firm, amount=MicroYuan(amount), lease_seconds=seconds, now=self.at
            )

        granted = min(amount, self.free(firm))
        if granted <= 0:
            with pytest.raises(NoMoney):
                self.run(work, kill)
            return
        got = self.run(work, kill)
        assert got.amount_left == granted, "as much as is there, never more"
        self.leases[got.id] = Slice(holder, firm, granted, self.at + timedelta(seconds=seconds))

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
        added = 0 if one.recalled else max(0, min(more, self.free(one.firm)))
        got = self.run(work, kill)
        one.left += added
        one.expires_at = self.at + timedelta(seconds=seconds)
        assert (got.amount_left, got.recalled) == (one.left, one.recalled)

    @precondition(lambda self: self.leases)
    @rule(near=st.integers(0, 4), many=st.integers(1, 6), kill=kills, again=st.booleans())
    def ship_usage(self, near: int, many: int, kill: Kill | None, again: bool) -> None:
        lease_id = self.chosen(near)
        one = self.leases[lease_id]
        batch = [tokens(one.firm, next(numbers), at=self.at, lease_id=lease_id, source=one.firm) for _ in range(many)]
        self.run(lambda tx: api.ingest_tokens(tx, batch, now=self.at), kill)
        due = many * PRICE
        if one.state == "open" and one.expires_at > self.at:
            taken = min(due, one.left)
            one.left -= taken
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
        if one.state == "open":
            one.state, one.left = "returned", 0
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
            if one.state == "open" and one.expires_at <= self.at:
                one.state, one.left = "expired", 0

    async def compare(self, tx: AsyncSession) -> None:
        for firm in self.firms:
            account = await api.account_of(tx, firm)
            assert (account.balance, account.held, account.available) == (
                self.cash[firm], self.held(firm), self.free(firm),
            )  # fmt: skip
            assert account.available >= 0, "the sum of leases never exceeds what is there"
        rows = await tx.execute(
            text("""SELECT l.id, l.state, l.expires_at, l.recalled_at IS NOT NULL AS recalled,
                    coalesce(p.amount_left, 0) AS left
                FROM quotas.allowance_lease l LEFT JOIN quotas.pending p ON p.id = l.pending_id
                WHERE l.firm_id = ANY(CAST(:firms AS text[]))"""),
            {"firms": self.firms},
        )
        seen = {row.id: (row.state, row.expires_at, row.recalled, row.left) for row in rows}
        assert seen == {
            number: (one.state, one.expires_at, one.recalled, one.left) for number, one in self.leases.items()
        }


@dataclass
class Window:
    """A key's minute on paper: what each holder has of it."""

    requests_limit: int | None
    tokens_limit: int | None
    in_hand: dict[str, tuple[int, int]] = field(default_factory=dict)
    recalled: set[str] = field(default_factory=set)

    def free(self) -> tuple[int | None, int | None]:
        requests, tokens = (sum(one[kind] for one in self.in_hand.values()) for kind in (0, 1))
        return (
            None if self.requests_limit is None else self.requests_limit - requests,
            None if self.tokens_limit is None else self.tokens_limit - tokens,
        )


class RateWindowMachine(KilledMachine):
    """Two keys' minutes in the hands of three gateways."""

    def begin(self) -> None:
        async def keys(tx: AsyncSession) -> list[KeyId]:
            firm = await open_firm(tx, now=START)
            return sorted([await open_key(tx, firm, now=START, requests=20, tokens=limit) for limit in (500, None)])

        async def limits(tx: AsyncSession) -> dict[str, tuple[int | None, int | None]]:
            rows = await tx.execute(
                text("SELECT id, requests_per_minute, tokens_per_minute FROM quotas.api_key WHERE id = ANY(:keys)"),
                {"keys": self.keys},
            )
            return {row[0]: (row[1], row[2]) for row in rows}

        self.keys = self.run(keys)
        self.limits = self.run(limits)
        self.windows: dict[tuple[int, KeyId], Window] = {}

    def minute(self, ahead: bool = False) -> int:
        return api.minute_of(self.at) + ahead

    asks = st.tuples(st.integers(0, 25), st.integers(0, 600))

    @rule(holder=holders, wanted=st.tuples(asks, asks), ahead=st.booleans(), kill=kills)
    def lease(self, holder: str, wanted: tuple[Any, Any], ahead: bool, kill: Kill | None) -> None:
        minute = self.minute(ahead)
        asks = [RateAsk(key, *want) for key, want in zip(self.keys, wanted, strict=True)]

        async def work(tx: AsyncSession) -> list[RateLease]:
            return await api.lease_windows(tx, holder=holder, minute=minute, asks=asks, now=self.at)

        got = self.run(work, kill)
        for ask in asks:
            window = self.windows.setdefault((minute, ask.key_id), Window(*self.limits[ask.key_id]))
            has = window.in_hand.get(holder, (0, 0))
            if holder not in window.recalled:
                more = [
                    max(0, want - have if free is None else min(want - have, free))
                    for want, have, free in zip((ask.requests, ask.tokens), has, window.free(), strict=True)
                ]
                has = has[0] + more[0], has[1] + more[1]
            window.in_hand[holder] = has
        self.same(got, minute, holder)
        self.same(self.run(work), minute, holder)  # the answer was lost: asking again leases nothing more

    @rule(holder=holders, kept=st.tuples(asks, asks), kill=kills)
    def give_back(self, holder: str, kept: tuple[Any, Any], kill: Kill | None) -> None:
        minute = self.minute()
        keeps = [RateAsk(key, *keep) for key, keep in zip(self.keys, kept, strict=True)]

        async def work(tx: AsyncSession) -> list[RateLease]:
            return await api.return_windows(tx, holder=holder, minute=minute, keeps=keeps, now=self.at)

        got = self.run(work, kill)
        for keep in keeps:
            window = self.windows.get((minute, keep.key_id))
            if window is not None:
                has = window.in_hand.get(holder, (0, 0))
                window.in_hand[holder] = min(has[0], keep.requests), min(has[1], keep.tokens)
                window.recalled.discard(holder)
        self.same(got, minute, holder)
        self.same(self.run(work), minute, holder)

    def same(self, got: list[RateLease], minute: int, holder: str) -> None:
        expected = []
        for key in self.keys:
            window = self.windows.get((minute, key))
            if window is not None:
                recalled = holder in window.recalled
                expected.append(RateLease(key, minute, holder, *window.in_hand[holder], *window.free(), recalled))
        assert got == expected

    @rule(holder=holders, which=st.integers(0, 1), kill=kills)
    def recall(self, holder: str, which: int, kill: Kill | None) -> None:
        minute, key = self.minute(), self.keys[which]
        window = self.windows.get((minute, key), Window(None, None))
        asked = {other for other, has in window.in_hand.items() if other != holder and sum(has)}
        many = self.run(lambda tx: api.recall_windows(tx, holder=holder, minute=minute, key_id=key), kill)
        assert many == len(asked)
        window.recalled |= asked

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.at += timedelta(seconds=seconds)

    @rule(kill=kills)
    def windows_that_are_over_are_forgotten(self, kill: Kill | None) -> None:
        self.run(lambda tx: expire_windows(tx, now=self.at), kill)
        self.windows = {name: one for name, one in self.windows.items() if name[0] >= self.minute() - 1}

    async def compare(self, tx: AsyncSession) -> None:
        rows = await tx.execute(
            text("""SELECT w.minute, w.key_id, w.requests_leased, w.tokens_leased FROM quotas.rate_window w
                WHERE w.key_id = ANY(CAST(:keys AS text[]))"""),
            {"keys": self.keys},
        )
        assert {(row.minute, row.key_id): (row.requests_leased, row.tokens_leased) for row in rows} == {
            name: tuple(sum(has[kind] for has in one.in_hand.values()) for kind in (0, 1))
            for name, one in self.windows.items()
        }
        for window in self.windows.values():
            assert all(left is None or left >= 0 for left in window.free()), "the sum of leases never exceeds the limit"


@pytest.mark.parametrize("machine", [AllowanceMachine, RateWindowMachine])
def test_leases_are_what_they_are_on_paper_wherever_they_are_killed(
    postgres: TestServer, machine: type[KilledMachine]
) -> None:
    assert run_killed(machine, postgres) > 0, "some transaction was killed"
