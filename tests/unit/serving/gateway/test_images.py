"""Images by address cannot hold a gateway: one deadline and one number of bytes a request, a few at a time a firm."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kit.errors import InvalidInput, TooLarge
from kit.fetch import Fetched, FetchPolicy
from serving.gateway.images import ImageBounds, ImageFetcher
from serving.gateway.openai_errors import Refusal
from tests.support.gateways import MODEL, FakePlane, RawClient, post, request, running
from tests.support.mock_engines import mock_engine
from tests.support.until import until_async

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 40
POLICY = FetchPolicy(1_000, redirects_max=3)


class Web:
    """Servers of pictures whose answers wait until they are let go."""

    def __init__(self, answers: dict[str, bytes | Exception] | None = None) -> None:
        self.go = asyncio.Event()
        self.open: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.asked: list[str] = []
        self._answers = answers or {}

    async def get(self, address: str, policy: FetchPolicy) -> Fetched:
        host = address.split("/")[2]
        self.asked.append(address)
        for name in (host, "all"):
            self.open[name] += 1
            self.most[name] = max(self.most[name], self.open[name])
        try:
            await self.go.wait()
            await asyncio.sleep(0)
        finally:
            self.open[host] -= 1
            self.open["all"] -= 1
        answer = self._answers.get(address, PNG)
        if isinstance(answer, Exception):
            raise answer
        return Fetched(200, address, {}, answer)


def fetcher(web: Web, **changes: Any) -> ImageFetcher:
    bounds = {"bytes_max": 10_000, "seconds_max": 5, "at_once_per_firm": 3, "at_once": 4} | changes
    return ImageFetcher(POLICY, ImageBounds(**bounds), web.get)


def album(host: str, count: int) -> tuple[str, ...]:
    return tuple(f"https://{host}/{n}.png" for n in range(count))


async def test_a_firm_fetches_a_few_at_a_time_and_leaves_the_other_turns_to_others() -> None:
    web = Web()
    images = fetcher(web)
    crowd = [asyncio.create_task(images.fetch("firm_1", album(f"a{n}.example", 8))) for n in range(3)]

    async def all_turns_taken() -> bool:
        return web.open["all"] == 4

    other = asyncio.create_task(images.fetch("firm_2", album("b.example", 2)))
    await until_async(all_turns_taken, seconds=5, what="every turn to be taken")
    assert sum(web.open[f"a{n}.example"] for n in range(3)) == 3
    assert web.open["b.example"] == 1
    web.go.set()
    assert [len(found) for found in await asyncio.gather(*crowd, other) if isinstance(found, dict)] == [8, 8, 8, 2]
    assert web.most["all"] == 4


async def test_all_images_of_a_request_have_one_deadline() -> None:
    web = Web()
    images = fetcher(web, seconds_max=0.2)
    began = asyncio.get_running_loop().time()
    told = await images.fetch("firm_1", album("slow.example", 32))
    assert asyncio.get_running_loop().time() - began < 2
    assert isinstance(told, Refusal) and (told.status, told.code) == (400, "image_not_fetched")
    assert web.open["all"] == 0 and len(web.asked) == 3


async def test_a_request_whose_turn_never_came_may_try_again() -> None:
    done = asyncio.Event()

    async def endless(address: str, policy: FetchPolicy) -> Fetched:
        while not done.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await done.wait()
        return Fetched(200, address, {}, PNG)

    images = ImageFetcher(POLICY, ImageBounds(10_000, 0.05, 1, 1), endless)
    crowd = asyncio.create_task(images.fetch("firm_1", album("slow.example", 1)))
    await asyncio.sleep(0)
    told = await images.fetch("firm_2", album("b.example", 1))
    assert isinstance(told, Refusal) and (told.status, told.code) == (503, "overloaded") and told.retry_after_seconds
    done.set()
    await crowd


async def test_the_first_image_that_cannot_be_had_ends_the_others() -> None:
    web = Web({"https://a.example/1.png": InvalidInput("10.0.0.1 is private", code="address_private")})
    images = fetcher(web)
    web.go.set()
    told = await images.fetch("firm_1", album("a.example", 30))
    assert isinstance(told, Refusal) and told.code == "image_not_fetched" and "10.0.0.1" not in told.message
    assert len(web.asked) < 30 and web.open["all"] == 0


async def test_the_bytes_of_a_request_count_together() -> None:
    for bytes_max, answer in ((2 * len(PNG), "image_too_large"), (3 * len(PNG), None)):
        web = Web()
        web.go.set()
        told = await fetcher(web, bytes_max=bytes_max).fetch("firm_1", album("a.example", 3))
        assert (told.code if isinstance(told, Refusal) else None) == answer
    web = Web({"https://a.example/0.png": TooLarge("more than 1000 bytes")})
    web.go.set()
    told = await fetcher(web).fetch("firm_1", album("a.example", 1))
    assert isinstance(told, Refusal) and told.code == "image_too_large"


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """It takes a question and says nothing; its address, and who asks."""
    asking: list[asyncio.StreamWriter] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asking.append(writer)
        await reader.read(-1)
        asking.remove(writer)
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.png", asking


def beside(*addresses: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in addresses]
    return {"model": MODEL, "messages": [{"role": "user", "content": parts}]}


async def test_a_client_that_leaves_ends_its_fetches_and_nothing_stays_taken(tmp_path: Path) -> None:
    own: dict[str, Any] = {"image_schemes": ("http",), "image_networks": ("127.0.0.0/8",)}
    with mock_engine("--key", "engine-secret") as engine:
        plane = FakePlane(engines=[engine.url])
        async with silent_server() as (url, asking), running(plane, tmp_path, **own) as gateway:
            client = await RawClient.to(gateway.port)
            client.send(request(beside(*[f"{url}?{n}" for n in range(20)])))

            async def busy() -> bool:
                return len(asking) == gateway.gateway.settings.image_fetches_per_firm_max

            async def idle() -> bool:
                return not asking and not gateway.gateway.active

            await until_async(busy, seconds=5, what="the fetches of one firm")
            await client.close()
            await until_async(idle, seconds=5, what="the fetches to end")
            assert plane.records == []


async def test_a_silent_server_costs_a_request_its_deadline_and_no_more(tmp_path: Path) -> None:
    own: dict[str, Any] = {"image_schemes": ("http",), "image_networks": ("127.0.0.0/8",), "images_seconds_max": 0.3}
    with mock_engine("--key", "engine-secret") as engine:
        plane = FakePlane(engines=[engine.url])
        async with silent_server() as (url, asking), running(plane, tmp_path, **own) as gateway:
            answer = await post(gateway.port, beside(*[f"{url}?{n}" for n in range(20)]))
            assert (answer.status, answer.json()["error"]["code"]) == (400, "image_not_fetched")

            async def idle() -> bool:
                return not asking and not gateway.gateway.active

            await until_async(idle, seconds=5, what="the fetches to end")
