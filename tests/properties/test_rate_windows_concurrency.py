"""Thirty-two connections at one key's minute: what holders count in it is the limit, never one more."""

import asyncio
import random

import pytest

from kit.clock import FixedClock
from kit.db import Database
from quotas import api
from quotas.vocabulary import KeyId, RateAsk
from tests.support.money import open_firm, open_key

CONNECTIONS = 32
LIMIT = 1000


class Holder:
    """A gateway that counts requests against what it leased, and gives back what it does not need."""

    def __init__(self, db: Database, clock: FixedClock, name: str, keys: list[KeyId]) -> None:
        self.db, self.now, self.name, self.keys = db, clock.now(), name, keys
        self.minute = api.minute_of(self.now)
        self.used = dict.fromkeys(keys, 0)
        self.chance = random.Random(name)

    async def ask(self, call: object, wanted: int) -> dict[KeyId, int]:
        keys = self.chance.sample(self.keys, len(self.keys))
        asks = [RateAsk(key, self.used[key] + wanted, 7 * (self.used[key] + wanted)) for key in keys]
        got = await self.db.retrying(
            lambda tx: call(tx, holder=self.name, minute=self.minute, **{self._word(call): asks}, now=self.now)  # type: ignore[operator]
        )
        return {one.subject: min(one.requests, one.tokens // 7) for one in got}

    @staticmethod
    def _word(call: object) -> str:
        return "asks" if call is api.lease_windows else "keeps"

    async def work(self) -> None:
        """Take chunks, use part of each, return the rest or be recalled, until nothing is left to take."""
        dry = 0
        while dry < 3:
            in_hand = await self.ask(api.lease_windows, self.chance.randint(1, 40))
            taken = 0
            for key in self.keys:
                free = in_hand[key] - self.used[key]
                assert free >= 0, "a lease is never less than what was used of it"
                use = self.chance.randint(0, free) if self.chance.random() < 0.5 else free
                self.used[key] += use
                taken += use
            dry = 0 if taken else dry + 1
            if self.chance.random() < 0.4:
                await self.ask(api.return_windows, 0)
            if dry:
                key = self.chance.choice(self.keys)
                await self.db.retrying(
                    lambda tx, key=key: api.recall_windows(tx, holder=self.name, minute=self.minute, subject=key)
                )


@pytest.mark.parametrize("holders", [3, CONNECTIONS])
async def test_a_thousand_requests_a_minute_are_a_thousand_over_any_number_of_holders(
    database_url: str, clock: FixedClock, holders: int
) -> None:
    db = Database(database_url, pool_size=CONNECTIONS)
    async with db.transaction() as tx:
        firm = await open_firm(tx, now=clock.now())
        keys = [
            await open_key(tx, firm, now=clock.now(), requests=LIMIT, tokens=7 * LIMIT if n else None) for n in range(2)
        ]
    working = [Holder(db, clock, f"gw-{number}", keys) for number in range(holders)]
    await asyncio.gather(*(holder.work() for holder in working))
    for holder in working:  # whoever is idle has given back; the last one may use all of it
        await holder.ask(api.return_windows, 0)
    rest = await working[0].ask(api.lease_windows, LIMIT)
    for key in keys:
        others = sum(holder.used[key] for holder in working[1:])
        assert others + rest[key] == LIMIT
    async with db.transaction() as tx:
        assert await api.check_ledger(tx) == []
    await db.close()
