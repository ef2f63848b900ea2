"""Images in requests: as data, and by addresses that only the gateway ever calls."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.gateway.media import image_type, scan, with_images
from serving.gateway.openai_errors import Refusal
from serving.gateway.server import RunningGateway
from serving.vocabulary import Capability
from tests.support.gateways import MODEL, Answer, FakePlane, chat, post, running
from tests.support.mock_engines import MockEngine, mock_engine

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 40
LOOPBACK: dict[str, Any] = {"image_schemes": ("http",), "image_networks": ("127.0.0.0/8",)}


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", "engine-secret", "--keep-bodies") as started:
        yield started


@pytest.fixture
def plane(engine: MockEngine) -> FakePlane:
    return FakePlane(engines=[engine.url])


@pytest.fixture
async def gateway(plane: FakePlane, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running(plane, tmp_path, **LOOPBACK, image_bytes_max=1_000) as started:
        yield started


@asynccontextmanager
async def pictures(body: bytes = PNG, *, head: str = "200 OK") -> AsyncIterator[tuple[str, list[str]]]:
    """A server of one picture: its address, and what it was asked."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0])
        writer.write(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.png", asked
    finally:
        server.close()
        await server.wait_closed()


def beside(url: str, *, copies: int = 1) -> dict[str, Any]:
    """A question beside an image."""
    part = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    text = {"type": "text", "text": "what does http://example.org show?"}
    return {"model": MODEL, "messages": [{"role": "user", "content": [text, *[part] * copies]}]}


def code(answer: Answer) -> str:
    return answer.json()["error"]["code"]


async def test_the_engine_gets_a_remote_image_as_data_and_never_its_address(
    gateway: RunningGateway, engine: MockEngine
) -> None:
    data = base64.b64encode(PNG).decode()
    async with pictures() as (url, asked):
        asks: list[tuple[str, dict[str, Any]]] = [
            ("/v1/chat/completions", beside(url, copies=2)),
            (
                "/v1/responses",
                {"model": MODEL, "input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
            ),
            (
                "/v1/messages",
                {
                    "model": MODEL,
                    "max_tokens": 2,
                    "messages": [
                        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}
                    ],
                },
            ),
        ]
        for path, body in asks:
            assert (await post(gateway.port, body, path=path)).status == 200
            sent = json.dumps(await asyncio.to_thread(engine.requests))
            assert data in sent and url not in sent
        assert asked == ["GET /a.png HTTP/1.1"] * 3
    last = (await asyncio.to_thread(engine.requests))[-1]["body"]["messages"][0]["content"][0]
    assert last["source"] == {"type": "base64", "media_type": "image/png", "data": data}


async def test_what_is_no_image_or_too_large_or_not_there_is_refused_and_nothing_is_kept(
    gateway: RunningGateway, plane: FakePlane, engine: MockEngine
) -> None:
    before = len(await asyncio.to_thread(engine.requests))
    for body, head, refusal in (
        (b"<html>", "200 OK", "image_type"),
        (PNG + b"\0" * 2_000, "200 OK", "image_too_large"),
        (PNG, "404 Not Found", "image_not_fetched"),
    ):
        async with pictures(body, head=head) as (url, _):
            answer = await post(gateway.port, beside(url))
        assert (answer.status, code(answer)) == (400, refusal)
    assert len(await asyncio.to_thread(engine.requests)) == before
    assert plane.records == [] and not gateway.gateway.active


async def test_an_address_of_our_own_network_is_not_called_and_not_told(plane: FakePlane, tmp_path: Path) -> None:
    async with running(plane, tmp_path, image_schemes=("http",)) as gateway, pictures() as (url, asked):
        answer = await post(gateway.port, beside(url.replace("127.0.0.1", "localhost")))
        assert (answer.status, code(answer)) == (400, "image_not_fetched")
        assert "127.0.0.1" not in answer.body.decode() and "::1" not in answer.body.decode()
        assert asked == []


async def test_a_redirect_into_our_own_network_is_not_followed(plane: FakePlane, tmp_path: Path) -> None:
    own: dict[str, Any] = {"image_schemes": ("http",), "image_networks": ("127.0.0.1/32",)}
    async with pictures() as (inner, asked):
        aside = inner.replace("127.0.0.1", "127.0.0.2")
        async with (
            pictures(b"", head=f"302 Found\r\nLocation: {aside}") as (url, _),
            running(plane, tmp_path, **own) as gateway,
        ):
            assert code(await post(gateway.port, beside(url))) == "image_not_fetched"
        assert asked == []


async def test_plain_http_is_not_fetched_unless_the_installation_says_so(plane: FakePlane, tmp_path: Path) -> None:
    async with running(plane, tmp_path) as gateway, pictures() as (url, asked):
        assert code(await post(gateway.port, beside(url))) == "image_not_fetched"
        assert asked == []


async def test_a_model_that_sees_no_images_fetches_none(plane: FakePlane, tmp_path: Path) -> None:
    plane.capabilities = frozenset({Capability.CHAT})
    async with running(plane, tmp_path, **LOOPBACK) as gateway, pictures() as (url, asked):
        assert code(await post(gateway.port, beside(url))) == "unsupported_by_model"
        assert asked == []
        tools = [{"type": "function", "function": {"name": "weather"}}]
        assert code(await post(gateway.port, chat(tools=tools))) == "unsupported_by_model"
        assert (await post(gateway.port, chat(tools=[]))).status == 200


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": " HTTPS://example.org/x.png"}},
        {"type": "image_url", "image_url": {"uri": "https://example.org/x.png"}},
        {"type": "input_image", "image_url": "gopher://example.org"},
        {"type": "audio_url", "audio_url": {"url": "https://example.org/x.mp3"}},
        {"type": "video_url", "video_url": {"url": "https://example.org/x.mp4"}},
        {"type": "input_file", "file_url": "https://example.org/x.pdf"},
        {"type": "image", "source": {"type": "base64", "data": "https://example.org/x"}},
        [[{"image_url": "https://example.org/no-type"}]],
    ],
)
def test_every_other_address_is_refused_where_it_stands(part: Any) -> None:
    found = scan(part, "messages")
    assert isinstance(found, Refusal) and found.code == "remote_media_not_accepted"


def test_data_of_other_kinds_and_too_many_images_are_refused() -> None:
    svg = scan({"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,AAAA"}}, "messages")
    many = scan([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}] * 33, "messages")
    assert isinstance(svg, Refusal) and svg.code == "image_type"
    assert isinstance(many, Refusal) and many.code == "too_many_images"


def test_only_addresses_of_image_parts_are_replaced() -> None:
    said = {"type": "text", "text": "https://example.org/x.png"}
    assert with_images([said], {"https://example.org/x.png": "data:image/png;base64,AAAA"}) == [said]


def test_a_picture_is_known_by_its_content() -> None:
    assert image_type(b"RIFF\0\0\0\0WEBPVP8 ") == "image/webp"
    assert image_type(b"RIFF\0\0\0\0WAVE") is None
    assert image_type(b"") is None
