"""Keys known to a gateway are confirmed all together: one question a round, whatever their number."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from kit.errors import Unavailable
from quotas.vocabulary import KeyGrant, KeyId
from serving.gateway import keys as module
from serving.gateway.keys import KeyRing
from tests.support.gateways import FakePlane, grant
from tests.support.until import until_async

MANY = 10_000


class Source(FakePlane):
    """Counts what it is asked."""

    def __init__(self, number: int) -> None:
        super().__init__(grants={f"hl_{n}": grant(n) for n in range(number)})
        self.loads, self.rounds, self.read = 0, list[int](), list[int]()

    async def load(self, bearer: str) -> KeyGrant | None:
        self.loads += 1
        return await super().load(bearer)

    async def over(self, key_ids: Sequence[KeyId]) -> set[KeyId]:
        self.rounds.append(len(key_ids))
        return await super().over(key_ids)

    async def reload(self, key_ids: Sequence[KeyId]) -> dict[KeyId, KeyGrant]:
        self.read.append(len(key_ids))
        self._up()
        wanted = set(key_ids)
        return {grant.key_id: grant for grant in self.grants.values() if grant.key_id in wanted}


async def ring_of(source: Source, **how: float) -> KeyRing:
    """A ring that knows all keys of its source."""
    ring = KeyRing(source, **{"refresh_seconds": 0.2, "offline_seconds": 300} | how)
    for bearer in source.grants:
        assert await ring.load(bearer.encode()) is not None
    return ring


async def test_a_revocation_of_one_in_ten_thousand_whose_notice_was_lost_is_seen_by_the_next_round() -> None:
    source = Source(MANY)
    ring = await ring_of(source, refresh_seconds=1.0)
    confirming = asyncio.create_task(ring.confirm())
    assert ring.cached(b"hl_77") is not None
    began = time.monotonic()
    del source.grants["hl_77"]

    async def gone() -> bool:
        assert ring.cached(b"hl_78") is not None
        return ring.cached(b"hl_77") is None

    await until_async(gone, seconds=5, what="the revocation")
    assert time.monotonic() - began < 2
    assert max(source.rounds) == MANY and source.loads == MANY and source.read == []
    assert await ring.load(b"hl_77") is None
    confirming.cancel()


async def test_a_key_that_changed_waits_for_one_round_with_all_others_that_did() -> None:
    source = Source(100)
    ring = await ring_of(source)
    source.grants = {bearer: replace(one, requests_per_minute=7) for bearer, one in source.grants.items()}
    ring.forget("*")
    assert ring.cached(b"hl_5") is None
    found = await asyncio.gather(*(ring.load(b"hl_%d" % n) for n in range(100)))
    assert {one.requests_per_minute for one in found if one is not None} == {7}
    assert source.read == [100] and source.loads == 100
    assert ring.cached(b"hl_5") is not None


async def test_a_notice_that_comes_while_a_round_is_under_way_is_not_lost() -> None:
    source = Source(2)
    ring = await ring_of(source)
    asked, go = asyncio.Event(), asyncio.Event()
    over = source.over

    async def slowly(key_ids: Sequence[KeyId]) -> set[KeyId]:
        found = await over(key_ids)
        asked.set()
        await go.wait()
        return found

    source.over = slowly  # pyright: ignore[reportAttributeAccessIssue]
    confirming = asyncio.create_task(ring.confirm())
    await asked.wait()
    source.grants["hl_1"] = replace(source.grants["hl_1"], requests_per_minute=7)
    ring.forget("key_1")
    loading = asyncio.create_task(ring.load(b"hl_1"))
    go.set()
    found = await loading
    assert found is not None and found.requests_per_minute == 7
    assert ring.cached(b"hl_0") is not None
    confirming.cancel()


async def test_a_key_that_lay_idle_is_confirmed_before_it_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_USE_SECONDS", 0.1)
    monkeypatch.setattr(module, "LATE_SECONDS", 0.3)
    source = Source(2)
    ring = await ring_of(source, refresh_seconds=0.05)
    confirming = asyncio.create_task(ring.confirm())
    await asyncio.sleep(0)
    del source.grants["hl_1"]
    last_used = time.monotonic()

    async def idle() -> bool:
        return time.monotonic() - last_used > 0.5

    await until_async(idle, seconds=5, what="the keys to lie idle")
    assert ring.cached(b"hl_1") is None
    assert await ring.load(b"hl_1") is None
    assert await ring.load(b"hl_0") is not None
    confirming.cancel()


async def test_what_a_key_allows_is_read_again_though_nobody_said_that_it_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 0.1)
    source = Source(2)
    ring = await ring_of(source, refresh_seconds=0.05)
    source.grants["hl_1"] = replace(source.grants["hl_1"], requests_per_minute=7)
    confirming = asyncio.create_task(ring.confirm())

    async def seen() -> bool:
        found = ring.cached(b"hl_1")
        return found is not None and found.requests_per_minute == 7

    await until_async(seen, seconds=5, what="the change")
    confirming.cancel()


async def test_keys_are_honoured_while_the_database_is_away_and_for_no_longer_than_set() -> None:
    source = Source(3)
    ring = await ring_of(source, offline_seconds=2.5, refresh_seconds=0.1)
    confirming = asyncio.create_task(ring.confirm())
    source.down = True
    began = time.monotonic()

    async def refused() -> bool:
        if ring.cached(b"hl_1") is not None:
            return False
        try:
            await ring.load(b"hl_1")
        except Unavailable:
            return True
        return False

    await until_async(refused, seconds=10, what="the refusal")
    assert time.monotonic() - began > 2 and ring.offline
    source.down = False
    assert await ring.load(b"hl_1") is not None and not ring.offline
    confirming.cancel()
