"""What a replica tells of its cache, as the gateway takes it over; and as it comes over the wire."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from serving.gateway.cache_events import LINE_BYTES_MAX, Telling, prompt_header
from serving.gateway.directory import Engine
from serving.gateway.engine_watch import cache_blocks
from serving.prefix_index import PrefixIndex
from serving.routing import Prefills
from tests.support.gateways import FakePlane, running
from tests.support.until import until_async


def telling() -> tuple[Telling, PrefixIndex, Prefills]:
    index, prefills = PrefixIndex(100), Prefills()
    return Telling("rep_a", index, prefills), index, prefills


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_lines_are_taken_over_however_they_are_cut(size: int) -> None:
    told, index, prefills = telling()
    index.sent("rep_a", [9])
    prefills.begin("r", 500)
    data = b'{"cleared":true,"stored":[1,2,3]}\n\n{"removed":[3],"left":{"r":40,"other":7}}\n'
    for start in range(0, len(data), size):
        told.feed(data[start : start + size])
    assert index.matched([1, 2, 3]) == {"rep_a": 2}
    assert index.matched([9]) == {}
    assert prefills.tokens == 40


@pytest.mark.parametrize("data", [b"not json\n", b'{"stored":["x"]}\n', b"x" * (LINE_BYTES_MAX + 1)])
def test_what_is_not_understood_is_an_error(data: bytes) -> None:
    told, _, _ = telling()
    with pytest.raises(ValueError, match=r"line without an end|malformed|Expected"):
        told.feed(data)


def test_the_header_names_the_prompt_and_its_blocks() -> None:
    name, value = prompt_header("req_1", [1, 2**64 - 1], 2_560).split(b": ")
    request, blocks, hashes = value.split()
    assert (name, request, float(blocks)) == (b"x-heliu-prompt", b"req_1", 2.5)
    assert struct.unpack("<2Q", base64.b64decode(hashes)) == (1, 2**64 - 1)


def test_the_size_of_a_cache_is_read_from_the_engines_page() -> None:
    page = b'x 1\nvllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="640"} 1.0\n'
    assert cache_blocks(page) == 16 * 640 * 4 // 1_024
    assert cache_blocks(b'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n') is None
    assert cache_blocks(b"") is None


@asynccontextmanager
async def told_by(tmp_path: Path, head: bytes, body: bytes) -> AsyncIterator[tuple[Engine, list[bytes]]]:
    """A gateway with one replica that answers every question with this; and the first lines of what it was asked."""
    asked: list[bytes] = []
    ends: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        if b"/heliu/cache" in asked[-1]:
            writer.write(head + b"%x\r\n%s\r\n%s" % (len(body), body, b"" if b"200" in head else b"0\r\n\r\n"))
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with running(FakePlane(engines=[url]), tmp_path) as gateway:
            (engine,) = gateway.gateway.directory.engines
            yield engine, asked
    finally:
        server.close()
        for writer in ends:
            writer.close()


STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_a_replica_that_tells_is_believed_and_its_bound_lifted(tmp_path: Path) -> None:
    async with told_by(tmp_path, STREAM, b'{"cleared":true,"stored":[5]}\n') as (engine, _):

        async def hears() -> bool:
            return engine.hears

        await until_async(hears, seconds=5, what="the replica to be heard")
        assert engine.prefixes.matched([5]) == {engine.target.id: 1}


@pytest.mark.parametrize(
    ("head", "body"), [(STREAM.replace(b"200 OK", b"404 Not Found"), b"no\n"), (STREAM, b"<html>\n")]
)
async def test_a_server_that_speaks_otherwise_is_asked_once_a_minute(tmp_path: Path, head: bytes, body: bytes) -> None:
    async with told_by(tmp_path, head, body) as (engine, asked):

        async def given_up() -> bool:
            return engine.hearing is None and engine.hear_again_at > 0

        await until_async(given_up, seconds=5, what="the gateway to give up")
        assert not engine.hears
        assert engine.hear_again_at > asyncio.get_running_loop().time() + 50
        assert sum(b"/heliu/cache" in line for line in asked) == 1
        assert engine.target.breaker.failures == 0
