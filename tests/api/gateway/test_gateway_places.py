"""Three gateways over one real database run as many requests at once as a limit says, together, exactly."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kit.auth import SYSTEM
from kit.clock import utc_now
from kit.db import Database
from quotas import api as quotas
from quotas.vocabulary import RateLimits
from serving.gateway.bench_target import Furnished, furnish
from tests.api.gateway.test_gateway_limits import ENGINE_KEY, known
from tests.support.gateway_process import GatewayProcess, gateway_process
from tests.support.gateways import RawClient, chat, request
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until_async

AT_ONCE = 7


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", ENGINE_KEY, "--model", "city-model", "--interval-ms", "50") as started:
        yield started


@pytest.fixture
def three(database_url: str, tmp_path: Path) -> Iterator[list[GatewayProcess]]:
    with ExitStack() as stack:
        yield [stack.enter_context(gateway_process(database_url, tmp_path / name)) for name in "abc"]


async def city(db: Database, engine: MockEngine) -> Furnished:
    """A firm that may run so many at once, with room for more of them at the model."""
    made = await furnish(db, [engine.url], model="city-model", engine_key=ENGINE_KEY)
    async with db.transaction() as tx:
        for firm, model, at_once in ((made.firm_id, None, AT_ONCE), (None, "city-model", AT_ONCE + 1)):
            limits = RateLimits(requests_at_once=at_once)
            await quotas.set_rate_limit(tx, firm, model, limits, by=SYSTEM, now=utc_now())
    return made


async def storm(gateways: list[GatewayProcess], key: str, each: int) -> tuple[Counter[int], list[RawClient]]:
    """Streams asked for all at once; how they were answered, and the clients of those that run."""
    clients = [await RawClient.to(gateway.port) for gateway in gateways for _ in range(each)]
    body = request(chat(model="city-model", stream=True, max_tokens=1_000), key=key)
    for client in clients:
        client.send(body)
    statuses = [(await client.head())[0] for client in clients]
    run = [client for client, status in zip(clients, statuses, strict=True) if status == 200]
    for client in clients:
        if client not in run:
            await client.close()
    return Counter(statuses), run


async def end(clients: list[RawClient], engine: MockEngine) -> None:
    for client in clients:
        await client.close()

    async def idle() -> bool:
        return engine.counted("num_requests_running") == 0

    await until_async(idle, seconds=10, what="the engine to be idle")


async def test_exactly_as_many_run_at_once_over_three_gateways_whatever_becomes_of_one(
    db: Database, engine: MockEngine, database_url: str, three: list[GatewayProcess]
) -> None:
    made = await city(db, engine)
    await known(three, made.key)
    for gateways in (three, three[::-1], three[:1]):  # each time all have ended that ran before
        answered, running = await storm(gateways, made.key, 8)
        assert answered == {200: AT_ONCE, 429: 8 * len(gateways) - AT_ONCE}
        assert engine.counted("num_requests_running") == AT_ONCE
        await end(running, engine)

    answered, lost = await storm(three[:1], made.key, 8)
    assert answered[200] == AT_ONCE
    three[0].kill()
    answered, _ = await storm(three[1:], made.key, 4)
    assert answered == {429: 8}, "a dead gateway's places are its own until their time is over"
    await end(lost, engine)
    with gateway_process(database_url, three[0].folder):
        answered, running = await storm(three[1:], made.key, 8)
        assert answered == {200: AT_ONCE, 429: 16 - AT_ONCE}, "or until it starts again"
        await end(running, engine)
