"""A real vLLM tells what its cache holds and lets go, and requests follow; no text or token of a prompt is told."""

import asyncio
import dataclasses
import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from serving.admission import Rate
from serving.gateway.cache_events import prompt_header
from serving.gateway.server import RunningGateway
from serving.prefix_index import prompt_blocks
from serving.vocabulary import RouteTable
from tests.support.gateways import MODEL as NAME
from tests.support.gateways import FakePlane, chat, post, running
from tests.support.mock_engines import mock_engine
from tests.support.real_engine import SECRET, Engine
from tests.support.until import until_async

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600, func_only=True)]


class WithSecret(FakePlane):
    """Every replica has the real engine's key."""

    async def table(self) -> tuple[RouteTable, dict[str, Rate]]:
        table, rates = await super().table()
        replicas = tuple(dataclasses.replace(route, engine_key=SECRET) for route in table.replicas)
        return dataclasses.replace(table, replicas=replicas), rates


def story(number: int) -> str:
    """Some 600 tokens that share nothing with another story's."""
    return f"Story {number}. " + " ".join(f"On day {day} of {number} the river rose." for day in range(60))


def believed(gateway: RunningGateway, text: str) -> dict[str, int]:
    """Replica → blocks of this prompt that the gateway thinks it holds."""
    (service,) = gateway.gateway.directory.services.values()
    prompt = json.dumps(chat(text)["messages"]).encode()
    return service.prefixes.matched(prompt_blocks(b"firm_1 None", prompt))


async def test_a_prompt_goes_where_it_is_cached_until_the_engine_says_it_is_not(engine: Engine, tmp_path: Path) -> None:
    with mock_engine("--model", NAME, "--key", SECRET) as mock:
        plane = WithSecret(engines=[mock.url, engine.url], context=1024)
        async with running(plane, tmp_path) as gateway:
            targets = {e.route.url: e for e in gateway.gateway.directory.engines}
            real, other = targets[engine.url], targets[mock.url]

            async def hears() -> bool:
                return real.hears

            await until_async(hears, seconds=10, what="the gateway to hear the engine")
            assert not other.hears

            # Told, not guessed: another gateway's request, sent straight to the engine.
            await asyncio.to_thread(ask, engine, story(1))
            blocks = len(story(1)) // 1_024

            async def told() -> bool:
                return believed(gateway, story(1)).get(real.target.id, 0) >= blocks

            await until_async(told, seconds=10, what="the engine to tell of the story")
            before = mock_requests(mock.url)
            for _ in range(3):
                assert (await post(gateway.port, chat(story(1), max_tokens=1))).status == 200
            assert mock_requests(mock.url) == before
            assert real.target.prefills.tokens == 0

            for number in range(2, 5):
                await asyncio.to_thread(ask, engine, story(number))

            async def let_go() -> bool:
                return real.target.id not in believed(gateway, story(1))

            await until_async(let_go, seconds=10, what="the engine to let the story go")
            assert believed(gateway, story(4)).get(real.target.id, 0) >= blocks


async def test_what_is_told_names_no_token_and_no_text(engine: Engine) -> None:
    parts = urlsplit(engine.url)
    assert parts.hostname is not None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"GET /heliu/cache HTTP/1.1\r\nhost: engine\r\nauthorization: Bearer %s\r\n\r\n" % SECRET.encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert b" 200 " in head
    seen: dict[str, Any] = {}
    sent = asyncio.create_task(asyncio.to_thread(ask, engine, story(9)))
    while "left" not in seen:
        size = int(await asyncio.wait_for(reader.readline(), 20), 16)
        chunk = (await reader.readexactly(size + 2))[:-2]
        for line in filter(None, chunk.split(b"\n")):
            seen |= json.loads(line)
    await sent
    writer.close()
    assert seen.keys() <= {"cleared", "stored", "removed", "left"}
    mine = set(prompt_blocks(b"firm_1 None", json.dumps(chat(story(9))["messages"]).encode()))
    assert mine & set(seen["stored"])
    assert set(seen["left"]) == {"elsewhere"}


def ask(engine: Engine, text: str) -> None:
    """A request as another gateway of the same platform would send it."""
    body = chat(text, max_tokens=1)
    prompt = json.dumps(body["messages"]).encode()
    header = prompt_header("elsewhere", prompt_blocks(b"firm_1 None", prompt), len(prompt)).decode().strip()
    name, _, value = header.partition(": ")
    connection = http.client.HTTPConnection(urlsplit(engine.url).netloc, timeout=60)
    headers = {name: value, "authorization": f"Bearer {SECRET}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body | {"cache_salt": "firm_1"}), headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()


def mock_requests(url: str) -> int:
    """Requests for answers that the mock engine got."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request("GET", "/metrics", headers={"authorization": f"Bearer {SECRET}"})
    page = connection.getresponse().read().decode()
    connection.close()
    return int(page.partition("vllm:prompt_tokens_total")[2].partition("} ")[2].split()[0])
