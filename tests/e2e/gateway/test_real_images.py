"""Images through the gateway to a real vLLM, and what one firm's prompts leave in its cache for another's.

The model is tiny-random-vision-smollm2: SmolLM2 answers, the vision tower has random weights and understands nothing.
"""

import asyncio
import base64
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from sqlalchemy import text

from kit.db import Database
from serving.catalogue import ModelSpec
from serving.gateway.bench_target import furnish
from serving.vocabulary import Capability, Modality
from tests.support.coverage import covers
from tests.support.gateway_process import GatewayProcess, gateway_process
from tests.support.real_engine import SECRET, Engine
from tests.support.tiny_vision import IMAGE_SIDE, NAME
from tests.support.until import until_async

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600, func_only=True)]

CAN = frozenset({Capability.CHAT, Capability.VISION})
SPEC = ModelSpec(NAME, NAME, "bench", "Apache-2.0", Modality.IMAGE_TEXT, 1024, CAN, NAME, "1")
LONG = "The river runs through the city and the city lends its light to the river. " * 20


@dataclass
class City:
    gateway: GatewayProcess
    keys: tuple[str, str]  # of two firms
    db: Database


@pytest.fixture
async def city(db: Database, database_url: str, tmp_path: Path, engine: Engine) -> AsyncIterator[City]:
    one = await furnish(db, [engine.url], model="words-only", engine_key=SECRET, context_tokens=1024, others=(SPEC,))
    other = await furnish(db, [], model="words-only", context_tokens=1024, others=(SPEC,))
    allowed = {"image_schemes": '["http"]', "image_networks": '["127.0.0.0/8"]'}
    with gateway_process(database_url, tmp_path / "gw", **allowed) as gateway:
        yield City(gateway, (one.key, other.key), db)


def red_png() -> bytes:
    rows = (b"\0" + b"\xff\0\0" * IMAGE_SIDE) * IMAGE_SIDE

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", IMAGE_SIDE, IMAGE_SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@covers("vLLM", "/v1/chat/completions", "image as data URL", "image by address")
async def test_a_question_beside_an_image_is_answered_and_the_images_tokens_are_billed(
    city: City, engine: Engine
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(red_png()) + red_png())
        await writer.drain()
        writer.close()

    before = engine.counted()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/red.png"
    data = "data:image/png;base64," + base64.b64encode(red_png()).decode()
    answers: list[str | None] = []
    async with server, openai.AsyncOpenAI(base_url=f"{city.gateway.url}/v1", api_key=city.keys[0]) as client:
        for url in (data, address):
            picture = {"type": "image_url", "image_url": {"url": url}}
            asked: Any = [picture, {"type": "text", "text": "What is the capital of France?"}]
            answer = await client.chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": asked}], max_tokens=20, temperature=0
            )
            assert answer.usage is not None and answer.usage.prompt_tokens == 32, "16 of them are the image's"
            answers.append(answer.choices[0].message.content)
    assert answers[0] == answers[1]
    assert "Paris" in (answers[0] or "")

    async def billed() -> tuple[int, int] | None:
        async with city.db.transaction() as tx:
            query = text("SELECT count(*), sum(input), sum(output) FROM quotas.token_usage")
            rows, prompt, generated = (await tx.execute(query)).one()
        return (int(prompt), int(generated)) if rows == 2 else None

    after = engine.counted()
    assert await until_async(billed, seconds=20, what="both answers to be billed") == (
        after[0] - before[0],
        after[1] - before[1],
    )


@covers("vLLM", "/v1/messages", "prompt cache apart per firm")
async def test_a_firm_finds_its_own_prompt_in_the_cache_and_never_another_firms(city: City) -> None:
    cached: list[int] = []
    for key in (city.keys[0], city.keys[0], city.keys[1]):
        async with anthropic.AsyncAnthropic(base_url=city.gateway.url, api_key=key) as client:
            answer = await client.messages.create(
                model=NAME, max_tokens=2, messages=[{"role": "user", "content": LONG}], extra_body={"cache_salt": "x"}
            )
            cached.append(answer.usage.cache_read_input_tokens or 0)
    assert cached[0] == cached[2] == 0
    assert cached[1] >= 256
