"""Gateways as processes over a real database and a mock engine: kills, drains, money, keys, the official SDKs."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import text

from kit.auth import SYSTEM
from kit.clock import utc_now
from kit.db import Database
from quotas import api as quotas
from quotas.keys import key_row, revoke_key
from serving.gateway.bench_target import Furnished, furnish
from tests.support.gateway_process import GatewayProcess, gateway_process
from tests.support.gateways import RawClient, chat, post, request
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.until import until, until_async

ENGINE_KEY = "engine-key-0123456789-0123456789-0123456789"


@pytest.fixture
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", ENGINE_KEY, "--model", "city-model") as started:
        yield started


@pytest.fixture
def slow_engine() -> Iterator[MockEngine]:
    with mock_engine("--key", ENGINE_KEY, "--model", "city-model", "--interval-ms", "10") as started:
        yield started


async def city(db: Database, *engines: MockEngine, **more: Any) -> Furnished:
    return await furnish(db, [e.url for e in engines], model="city-model", engine_key=ENGINE_KEY, **more)


async def usage(db: Database) -> list[Any]:
    async with db.transaction() as tx:
        rows = await tx.execute(text("SELECT id, input, output, outcome FROM quotas.token_usage ORDER BY id"))
        return list(rows)


async def usage_of(db: Database, count: int) -> list[Any]:
    async def shipped() -> list[Any] | None:
        rows = await usage(db)
        return rows if len(rows) >= count else None

    return await until_async(shipped, seconds=20, what=f"{count} usage records")


async def ledger_is_sound(db: Database) -> None:
    async with db.transaction() as tx:
        report = await quotas.check_ledger(tx)
    assert not getattr(report, "findings", report), report


async def held(db: Database, firm_id: str) -> list[Any]:
    async with db.transaction() as tx:
        return [hold for hold in await quotas.open_holds(tx) if hold.firm_id == firm_id]


async def test_the_official_sdk_chats_plain_and_streamed_and_sees_openais_errors(
    db: Database, database_url: str, tmp_path: Path, engine: MockEngine
) -> None:
    made = await city(db, engine)
    with gateway_process(database_url, tmp_path / "gw") as gateway:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=made.key, max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == ["city-model"]
            messages: Any = [{"role": "user", "content": "hello"}]
            plain = await client.chat.completions.create(model="city-model", messages=messages, max_tokens=5)
            assert plain.model == "city-model"
            assert plain.usage is not None
            assert plain.usage.completion_tokens == 5
            stream = await client.chat.completions.create(
                model="city-model", messages=messages, max_tokens=6, stream=True
            )
            assert [chunk.choices[0].delta.content async for chunk in stream][1:] == ["tok "] * 6
            answer = await client.responses.create(model="city-model", input="hello", max_output_tokens=4)
            assert answer.output_text == "tok " * 4
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                await client.chat.completions.create(model="nobodys", messages=messages)
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(
                    model="city-model", messages=[{"role": "user", "content": "!long"}]
                )
            assert refused.value.code == "context_length_exceeded"
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key="hl_nobody_x").models.list()
        assert [row.output for row in await usage_of(db, 3)] == [5, 6, 4]
        assert engine.counted("generation_tokens_total") == 15
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {made.key}"}) as client_of_key:
            spent = (await client_of_key.get(f"{gateway.url}/v1/usage")).json()
        assert spent["spent_micro_yuan"] > 0
        assert gateway.terminate() == 0
    await ledger_is_sound(db)
    assert await held(db, made.firm_id) == []
    written = b"".join(path.read_bytes() for path in gateway.folder.iterdir() if path.is_file())
    assert written
    for secret in (made.key.rsplit("_", 1)[1], ENGINE_KEY, "hello", "tok tok"):
        assert secret.encode() not in written, "neither keys nor prompts nor outputs are written anywhere"


async def test_a_killed_gateway_bills_the_last_count_it_logged_once_and_returns_its_lease(
    db: Database, database_url: str, tmp_path: Path, slow_engine: MockEngine
) -> None:
    made = await city(db, slow_engine)
    folder = tmp_path / "gw"
    with gateway_process(database_url, folder) as gateway:
        assert (await post(gateway.port, chat(model="city-model", max_tokens=3), key=made.key)).status == 200
        client = await RawClient.to(gateway.port)
        client.send(request(chat(model="city-model", stream=True, max_tokens=10_000), key=made.key))
        await client.head()
        for _ in range(60):
            await client.chunk()
        gateway.kill()
        await client.close()
        counted = until(
            lambda: (
                slow_engine.counted("num_requests_running") == 0 and slow_engine.counted("generation_tokens_total") - 3
            ),
            seconds=10,
            what="the engine to stop",
        )
    assert await held(db, made.firm_id), "the dead gateway's lease"
    for _ in range(2):  # a second start finds nothing to replay
        with gateway_process(database_url, folder) as again:
            rows = await usage_of(db, 2)
            killed = [row for row in rows if row.outcome == "gateway_killed"]
            assert len(rows) == 2
            assert len(killed) == 1
            assert counted - 40 <= killed[0].output <= counted, "200 ms are 20 tokens"

            async def returned() -> bool:
                return await held(db, made.firm_id) == []

            await until_async(returned, seconds=10, what="the lease to be returned")
            assert again.terminate() == 0
    await ledger_is_sound(db)


async def test_a_sigterm_lets_streams_end_and_ships_their_usage(
    db: Database, database_url: str, tmp_path: Path, slow_engine: MockEngine
) -> None:
    made = await city(db, slow_engine)
    with gateway_process(database_url, tmp_path / "gw") as gateway:
        client = await RawClient.to(gateway.port)
        client.send(request(chat(model="city-model", stream=True, max_tokens=50), key=made.key))
        answering = asyncio.create_task(client.answer())
        until(lambda: slow_engine.counted("num_requests_running"), seconds=10, what="the stream to begin")
        assert await asyncio.to_thread(gateway.terminate) == 0
        assert (await answering).events()[-1] == "[DONE]"
        await client.close()
    assert [row.output for row in await usage(db)] == [50]


async def test_a_drain_that_runs_out_of_time_cuts_streams_and_bills_what_was_generated(
    db: Database, database_url: str, tmp_path: Path, slow_engine: MockEngine
) -> None:
    made = await city(db, slow_engine)
    with gateway_process(database_url, tmp_path / "gw", drain_seconds=0.5) as gateway:
        client = await RawClient.to(gateway.port)
        client.send(request(chat(model="city-model", stream=True, max_tokens=10_000), key=made.key))
        await client.head()
        assert await asyncio.to_thread(gateway.terminate) == 0
        await client.close()
    rows = await usage(db)
    assert [row.outcome for row in rows] == ["drained"]
    assert rows[0].output == slow_engine.counted("generation_tokens_total")


async def test_a_revoked_key_is_refused_by_every_gateway_within_two_seconds(
    db: Database, database_url: str, tmp_path: Path, engine: MockEngine
) -> None:
    made = await city(db, engine)
    with gateway_process(database_url, tmp_path / "a") as a, gateway_process(database_url, tmp_path / "b") as b:
        for gateway in (a, b):
            assert (await post(gateway.port, chat(model="city-model"), key=made.key)).status == 200
        async with db.transaction() as tx:
            await revoke_key(tx, await key_row(tx, made.key_id), by=SYSTEM, now=utc_now())

        async def refused() -> bool:
            answers = [await post(g.port, chat(model="city-model", max_tokens=1), key=made.key) for g in (a, b)]
            return [answer.status for answer in answers] == [401, 401]

        await until_async(refused, seconds=2, what="the revocation")


async def storm(gateways: Sequence[GatewayProcess], made: Furnished, count: int, **more: Any) -> list[int]:
    """So many requests at once, spread over the gateways; their statuses."""
    ports = itertools.cycle(gateway.port for gateway in gateways)
    body = chat(model="city-model", **more)
    answers = await asyncio.gather(*(post(next(ports), body, key=made.key) for _ in range(count)))
    return [answer.status for answer in answers]


async def test_exactly_the_requests_that_a_budget_covers_run_over_three_gateways(
    db: Database, database_url: str, tmp_path: Path
) -> None:
    with mock_engine("--key", ENGINE_KEY, "--model", "city-model", "--interval-ms", "400") as engine:
        tokens = 10
        body = request(chat(model="city-model", max_tokens=tokens)).partition(b"\r\n\r\n")[2]
        reserved = len(body) + 256 + 2 * tokens  # micro-yuan: input at 1, output at 2
        made = await city(db, engine, paid_in=50 * reserved + reserved // 2)
        with (
            gateway_process(database_url, tmp_path / "a") as a,
            gateway_process(database_url, tmp_path / "b") as b,
            gateway_process(database_url, tmp_path / "c") as c,
        ):
            statuses = await storm([a, b, c], made, 200, max_tokens=tokens)
            assert statuses.count(200) == 50
            assert statuses.count(402) == 150
            rows = await usage_of(db, 50)
            spent = sum(row.input + 2 * row.output for row in rows)
            left = 50 * reserved + reserved // 2 - spent
            assert left >= 0
            again = await storm([a, b, c], made, 20, max_tokens=tokens)
            assert again == [200] * 20, "what was not used is free again, whichever gateway has it"
            for gateway in (a, b, c):
                assert gateway.terminate() == 0
    await ledger_is_sound(db)
    assert await held(db, made.firm_id) == []
