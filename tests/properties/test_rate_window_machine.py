"""Leases of rate windows do what they do on paper, wherever a transaction is killed."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quotas import api
from quotas.rate_windows import expire_windows
from quotas.vocabulary import KeyId, RateAsk, RateLease
from tests.support.databases import TestServer
from tests.support.kills import START, Kill, KilledMachine, kills, run_killed
from tests.support.money import open_firm, open_key

HOLDERS = ("gw-1", "gw-2", "gw-3")
holders = st.sampled_from(HOLDERS)


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
        self.windows: dict[tuple[int, str], Window] = {}

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
            window = self.windows.setdefault((minute, ask.subject), Window(*self.limits[ask.subject]))
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
            window = self.windows.get((minute, keep.subject))
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
        many = self.run(lambda tx: api.recall_windows(tx, holder=holder, minute=minute, subject=key), kill)
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
            text("""SELECT w.minute, w.subject, w.requests_leased, w.tokens_leased FROM quotas.rate_window w
                WHERE w.subject = ANY(CAST(:keys AS text[]))"""),
            {"keys": self.keys},
        )
        assert {(row.minute, row.subject): (row.requests_leased, row.tokens_leased) for row in rows} == {
            name: tuple(sum(has[kind] for has in one.in_hand.values()) for kind in (0, 1))
            for name, one in self.windows.items()
        }
        for window in self.windows.values():
            assert all(left is None or left >= 0 for left in window.free()), "the sum of leases never exceeds the limit"


def test_leases_are_what_they_are_on_paper_wherever_they_are_killed(postgres: TestServer) -> None:
    assert run_killed(RateWindowMachine, postgres) > 0, "some transaction was killed"
