"""Three gateways over one real database count one key's minute together."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from kit.db import Database
from serving.gateway.bench_target import Furnished, furnish
from tests.support.gateway_process import GatewayProcess, gateway_process
from tests.support.gateways import Answer, RawClient, chat, request
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until_async

ENGINE_KEY = "engine-key-0123456789-0123456789-0123456789"


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", ENGINE_KEY, "--model", "city-model") as started:
        yield started


async def city(db: Database, engine: MockEngine, **limits: int) -> Furnished:
    """A firm whose key has these limits."""
    made = await furnish(db, [engine.url], model="city-model", engine_key=ENGINE_KEY)
    async with db.transaction() as tx:
        for name, limit in limits.items():
            await tx.execute(
                text(f"UPDATE quotas.api_key SET {name} = :limit WHERE id = :id"), {"limit": limit, "id": made.key_id}
            )
    return made


@pytest.fixture
def three(database_url: str, tmp_path: Path) -> Iterator[list[GatewayProcess]]:
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        made = [gateway_process(database_url, tmp_path / name, concurrency_per_key=10_000) for name in "abc"]
        yield list(pool.map(stack.enter_context, made))


async def storm(
    gateways: list[GatewayProcess], key: str, count: int, body: dict[str, Any], *, clients: int = 20
) -> list[Answer]:
    """So many requests as fast as so many clients of each gateway send them."""
    left = itertools.repeat(request(body, key=key), count)

    async def client(port: int) -> list[Answer]:
        answers: list[Answer] = []
        opened = await RawClient.to(port)
        for asked in left:
            opened.send(asked)
            answers.append(await opened.answer())
        await opened.close()
        return answers

    ports = [gateway.port for gateway in gateways for _ in range(clients)]
    return list(itertools.chain.from_iterable(await asyncio.gather(*map(client, ports))))


async def storm_in_one_minute(
    gateways: list[GatewayProcess], key: str, count: int, body: dict[str, Any]
) -> list[Answer]:
    """A storm that no change of the minute parts."""
    while True:
        minute = this_minute()
        answers = await storm(gateways, key, count, body)
        if this_minute() == minute:
            return answers
        await next_minute()


def this_minute() -> int:
    return int(time.time()) // 60


async def next_minute() -> None:
    """Wait for a minute of which nothing is used."""
    minute = this_minute()

    async def begun() -> bool:
        return this_minute() > minute

    await until_async(begun, seconds=61, what="a new minute")


async def known(gateways: list[GatewayProcess], key: str) -> None:
    """Return once every gateway has read what was furnished after it started."""

    async def lists(url: str) -> bool:
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client:
            answer = await client.get("/v1/models")
            return answer.is_success and [model["id"] for model in answer.json()["data"]] == ["city-model"]

    for gateway in gateways:
        await until_async(lambda url=gateway.url: lists(url), seconds=30, what="a gateway that knows the model")


async def test_a_thousand_requests_per_minute_are_a_thousand_over_three_gateways(
    db: Database, engine: MockEngine, three: list[GatewayProcess]
) -> None:
    made = await city(db, engine, requests_per_minute=1_000)
    await known(three, made.key)
    answers = await storm_in_one_minute(three, made.key, 1_200, chat(model="city-model", max_tokens=1))
    assert Counter(answer.status for answer in answers) == {200: 1_000, 429: 200}
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.json()["error"]["code"] == "requests_per_minute"
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-limit-requests"] == "1000"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


async def test_tokens_per_minute_are_never_passed_and_what_was_reserved_and_not_used_is_free_again(
    db: Database, engine: MockEngine, three: list[GatewayProcess]
) -> None:
    body = chat(model="city-model", max_tokens=10)
    reserved = len(request(body).partition(b"\r\n\r\n")[2]) + 256 + 10
    limit = 8 * reserved
    made = await city(db, engine, tokens_per_minute=limit)
    await known(three, made.key)
    while True:
        minute = this_minute()
        answers = await storm(three, made.key, 150, body)
        admitted = time.monotonic()
        while time.monotonic() - admitted < 1.5:  # longer than a gateway remembers that others had nothing
            answers += await storm(three[:1], made.key, 1, body, clients=1)
            if answers[-1].status == 200:
                admitted = time.monotonic()
        if this_minute() == minute:
            break
        await next_minute()
    assert {answer.status for answer in answers} == {200, 429}
    used = sum(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status == 200)
    assert limit - reserved < used <= limit, "the last one refused did not fit, and everything before it did"
