"""The gateway before a real vLLM: what it bills is what the engine counted, plain, streamed and cut off."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import text

from kit.db import Database
from serving.gateway.bench_target import Furnished, furnish
from tests.e2e.gateway.conftest import WORDS as MODEL
from tests.support.coverage import covers
from tests.support.gateway_process import GatewayProcess, gateway_process
from tests.support.gateways import Answer, RawClient, chat, post, request
from tests.support.real_engine import SECRET, Engine
from tests.support.until import until, until_async

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600, func_only=True)]


@dataclass
class City:
    gateway: GatewayProcess
    made: Furnished
    db: Database
    engine: Engine
    before: tuple[int, int]

    async def post(self, body: dict[str, Any], **how: Any) -> Answer:
        return await post(self.gateway.port, body, key=self.made.key, **how)

    async def billed(self, count: int) -> tuple[int, int]:
        """(prompt tokens, generated tokens) billed, once there are so many records."""

        async def shipped() -> tuple[int, int] | None:
            async with self.db.transaction() as tx:
                query = text("SELECT count(*), sum(input), sum(output) FROM quotas.token_usage")
                rows, prompt, generated = (await tx.execute(query)).one()
            return (int(prompt), int(generated)) if rows >= count else None

        return await until_async(shipped, seconds=60, what=f"{count} records")

    def counted(self) -> tuple[int, int]:
        until(self.engine.idle, seconds=60, what="the engine to be idle")
        prompt, generated = self.engine.counted()
        return prompt - self.before[0], generated - self.before[1]


@asynccontextmanager
async def city_of(db: Database, url: str, folder: Path, engine: Engine) -> AsyncIterator[City]:
    made = await furnish(db, [engine.url], model=MODEL, engine_key=SECRET, context_tokens=1024)
    with gateway_process(url, folder) as gateway:
        yield City(gateway, made, db, engine, engine.counted())


@pytest.fixture
async def city(db: Database, database_url: str, tmp_path: Path, engine: Engine) -> AsyncIterator[City]:
    async with city_of(db, database_url, tmp_path / "gw", engine) as made:
        yield made


@covers("vLLM", "/v1/chat/completions", "plain", "streamed")
@covers("vLLM", "/v1/completions", "streamed", "several prompts")
async def test_plain_and_streamed_answers_are_billed_as_the_engine_counted(city: City) -> None:
    story = "Tell me a long story about a river."
    plain = await city.post(chat(story, model=MODEL, max_tokens=20))
    assert plain.status == 200
    streamed = await city.post(chat(story, model=MODEL, max_tokens=20, stream=True, temperature=0))
    assert streamed.events()[-1] == "[DONE]"
    completion = await city.post(
        {"model": MODEL, "prompt": ["The river", "A mountain stands"], "max_tokens": 8, "stream": True},
        path="/v1/completions",
    )
    assert completion.status == 200
    assert await city.billed(3) == city.counted()


@covers("vLLM", "/v1/chat/completions", "n > 1")
async def test_several_choices_are_billed_one_prompt_and_reconciled_with_the_engines_three(city: City) -> None:
    several = await city.post(chat("Tell me of a river.", model=MODEL, max_tokens=10, stream=True, n=3))
    assert several.status == 200
    (prompt, generated), (prompt_counted, generated_counted) = await city.billed(1), city.counted()
    assert (3 * prompt, generated) == (prompt_counted, generated_counted)
    async with city.db.transaction() as tx:
        made = (await tx.execute(text("SELECT prompt_tokens, generation_tokens FROM serving.engine_usage"))).one()
    assert tuple(made) == (prompt_counted, generated_counted)


@covers("vLLM", "/v1/messages", "plain", "streamed")
@covers("vLLM", "/v1/responses", "plain", "streamed")
async def test_messages_and_responses_are_billed_as_the_engine_counted(city: City) -> None:
    for stream in (False, True):
        ask: dict[str, Any] = {"model": MODEL, "stream": stream}
        messages = [{"role": "user", "content": "Name three rivers."}]
        answer = await city.post(ask | {"messages": messages, "max_tokens": 12}, path="/v1/messages")
        assert answer.status == 200, answer.body
        answer = await city.post(ask | {"input": "Name three rivers.", "max_output_tokens": 12}, path="/v1/responses")
        assert answer.status == 200, answer.body
    assert await city.billed(4) == city.counted()


async def test_a_client_that_leaves_pays_for_what_the_engine_generated_until_it_stopped(city: City) -> None:
    cuts = (3, 10, 25)
    for chunks in cuts:
        client = await RawClient.to(city.gateway.port)
        body = chat("Count to one thousand.", model=MODEL, max_tokens=900, stream=True, ignore_eos=True)
        client.send(request(body, key=city.made.key))
        assert (await client.head())[0] == 200
        for _ in range(chunks):
            await client.chunk()
        await client.close()
    billed, counted = await city.billed(len(cuts)), city.counted()
    assert billed == counted
    assert sum(cuts) - 2 * len(cuts) <= counted[1] < 900


@covers("vLLM", "/v1/chat/completions", "errors")
async def test_the_engines_refusals_keep_openais_shape(city: City) -> None:
    long = await city.post(chat("river " * 3_000, model=MODEL))
    assert (long.status, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    wrong = await city.post(chat("hello", model=MODEL, temperature=-3))
    assert (wrong.status, wrong.json()["error"]["type"]) == (400, "invalid_request_error")
    assert city.counted() == (0, 0)


@covers("vLLM", "/v1/chat/completions", "usage in the stream", "structured outputs")
async def test_the_official_sdk_streams_with_usage_and_constrains_output(city: City) -> None:
    async with openai.AsyncOpenAI(base_url=f"{city.gateway.url}/v1", api_key=city.made.key) as client:
        messages: Any = [{"role": "user", "content": "Is the Yangtze a river?"}]
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=10, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        assert all(chunk.usage is None for chunk in chunks[:-1])
        answer = await client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=10, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
        )
        assert answer.choices[0].message.content in ("yes", "no")
    assert await city.billed(2) == city.counted()
