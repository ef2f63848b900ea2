"""A gateway counts within what it leased of a key's minute, leases more when that is short, and survives an outage."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from kit.errors import Unavailable
from quotas.vocabulary import RateAsk, RateLease
from serving.gateway import windows as module
from serving.gateway.places import Places
from serving.gateway.windows import AHEAD_MS, Windows
from serving.limits import WINDOW_MS, Limited, LimitReason, Limits, Meter, Short
from tests.support.gateways import KEY, FakePlane, grant
from tests.support.until import until_async

NOON = 29_000_000 * WINDOW_MS
PER_MINUTE = 16


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOON


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "_now_ms", lambda: clock.now_ms)
    return clock


@pytest.fixture
def plane() -> FakePlane:
    return FakePlane(grants={KEY: grant(1, requests_per_minute=PER_MINUTE)})


class Gateway:
    """One gateway's count of one key."""

    def __init__(self, plane: FakePlane, clock: Clock, *, offline_seconds: float = 300) -> None:
        self.windows = Windows(plane, Places(plane, lease_seconds=300), offline_seconds=offline_seconds)
        self.limits, self.meter, self.clock = Limits(requests_per_minute=PER_MINUTE), Meter(), clock

    async def ask(self) -> Limited | None:
        now = self.windows.take("key_1", self.limits, self.meter, tokens=0, now_ms=self.clock.now_ms)
        return await self.windows.take_or_lease("key_1", tokens=0) if isinstance(now, Short) else now

    async def admitted(self, asked: int) -> int:
        return [await self.ask() for _ in range(asked)].count(None)


@pytest.fixture
async def gateway(plane: FakePlane, clock: Clock) -> Gateway:
    return Gateway(plane, clock)


async def test_a_gateway_alone_has_the_whole_window_and_leases_it_in_slices(gateway: Gateway, plane: FakePlane) -> None:
    assert await gateway.admitted(3) == 3
    assert plane.windows[29_000_000, "key_1"] == (4, 0), "two slices of an eighth"
    assert await gateway.admitted(PER_MINUTE) == PER_MINUTE - 3
    refused = await gateway.ask()
    assert refused == Limited(LimitReason.REQUESTS, PER_MINUTE, WINDOW_MS)


async def test_what_other_gateways_have_is_not_admitted_and_not_offered(gateway: Gateway, plane: FakePlane) -> None:
    plane.elsewhere = (10, 0)
    assert await gateway.admitted(1) == 1
    assert gateway.windows.left("key_1", gateway.limits, now_ms=NOON) == (5, None, WINDOW_MS)
    assert await gateway.admitted(PER_MINUTE) == 5


async def test_a_new_minute_is_a_new_window(gateway: Gateway, clock: Clock) -> None:
    assert await gateway.admitted(PER_MINUTE + 1) == PER_MINUTE
    clock.now_ms += WINDOW_MS
    assert await gateway.admitted(PER_MINUTE + 1) == PER_MINUTE


async def test_an_outage_is_worked_through_within_the_last_share_and_for_so_long(
    plane: FakePlane, clock: Clock
) -> None:
    plane.elsewhere = (10, 0)
    gateway = Gateway(plane, clock)
    assert await gateway.admitted(PER_MINUTE) == 6
    plane.down = True
    for _ in range(3):
        clock.now_ms += WINDOW_MS
        for _ in range(6):
            assert await gateway.ask() is None
        with pytest.raises(Unavailable):
            await gateway.ask()
    gateway.windows = Windows(plane, Places(plane, lease_seconds=300), offline_seconds=0)
    clock.now_ms += WINDOW_MS
    with pytest.raises(Unavailable):
        await gateway.ask()


async def test_the_next_minute_is_leased_before_it_begins(
    gateway: Gateway, plane: FakePlane, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await gateway.ask()
    clock.now_ms += WINDOW_MS - AHEAD_MS

    class Over(Exception):
        pass

    pauses = iter([None])

    async def sleep(_: float) -> None:
        try:
            next(pauses)
        except StopIteration:
            raise Over from None

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    with pytest.raises(Over):
        await gateway.windows.tend()
    assert plane.windows[29_000_001, "key_1"] == (2, 0)
    clock.now_ms += AHEAD_MS
    plane.down = True
    assert await gateway.admitted(2) == 2, "without asking"


class SlowToAnswer(FakePlane):
    """A database whose answer to a lease comes late, and another gateway that recalls meanwhile and takes the rest."""

    def __init__(self) -> None:
        super().__init__(grants={KEY: grant(1, requests_per_minute=PER_MINUTE)})
        self.leasing, self.answer, self.others_ask = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.answer.set()
        self.recalled = 0

    async def lease_windows(self, minute: int, asks: Sequence[RateAsk]) -> list[RateLease]:
        leases = await super().lease_windows(minute, asks)
        self.leasing.set()
        await self.answer.wait()
        return leases

    async def return_windows(self, minute: int, keeps: Sequence[RateAsk]) -> list[RateLease]:
        await super().return_windows(minute, keeps)
        self.elsewhere = (PER_MINUTE - keeps[0].requests, 0)
        self.recalled += 1
        return await super().return_windows(minute, keeps)

    async def limit_recalls(self) -> AsyncIterator[tuple[str, int | None]]:
        await self.others_ask.wait()
        self.others_ask.clear()
        yield "key_1", NOON // WINDOW_MS


async def test_what_is_returned_while_a_lease_is_under_way_is_not_used_as_well(clock: Clock) -> None:
    plane = SlowToAnswer()
    gateway = Gateway(plane, clock)
    hearing = asyncio.create_task(gateway.windows.hear())
    assert await gateway.admitted(2) == 2
    plane.leasing.clear()
    plane.answer.clear()
    third = asyncio.create_task(gateway.ask())
    await plane.leasing.wait()
    plane.others_ask.set()
    for _ in range(20):  # the recall is heard and whatever it starts has had its turns
        await asyncio.sleep(0)
    plane.answer.set()
    assert await third is None

    async def returned() -> bool:
        return plane.recalled == 1

    await until_async(returned, seconds=5, what="the return")
    await gateway.admitted(PER_MINUTE)
    assert gateway.meter.requests + plane.elsewhere[0] == PER_MINUTE
    hearing.cancel()
