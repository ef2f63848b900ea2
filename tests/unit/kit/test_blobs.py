import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from kit.blobs import CHUNK_BYTES, Blobs, check_signed, signed_query
from kit.clock import FixedClock
from kit.errors import Forbidden, InvalidInput, NotFound, TooLarge

KEY = b"signing key"


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def broken_off() -> AsyncIterator[bytes]:
    yield b"half of i"
    raise ConnectionError("the sender went away")


def files(blobs_folder: Path) -> list[str]:
    return sorted(str(path.relative_to(blobs_folder)) for path in blobs_folder.rglob("*") if path.is_file())


async def test_a_stream_is_written_whole_and_hashed_on_the_way(blobs: Blobs) -> None:
    stored = await blobs.put("firm_1/art_1", stream(b"ab", b"", b"c"), limit_bytes=3)
    assert (stored.path, stored.size, stored.sha256) == ("firm_1/art_1", 3, hashlib.sha256(b"abc").hexdigest())
    assert await blobs.read_bytes("firm_1/art_1") == b"abc"
    assert await blobs.size("firm_1/art_1") == 3


async def test_a_large_object_comes_back_in_chunks_from_where_the_reader_stopped(blobs: Blobs) -> None:
    content = bytes(range(256)) * (CHUNK_BYTES // 64)
    await blobs.put("large", stream(content[:1000], content[1000:]), limit_bytes=len(content))
    chunks = [chunk async for chunk in blobs.read("large")]
    assert b"".join(chunks) == content
    assert len(chunks) > 1
    assert b"".join([chunk async for chunk in blobs.read("large", start=3_000_000)]) == content[3_000_000:]


@pytest.mark.parametrize(
    ("chunks", "limit", "digest", "refusal"),
    [
        (stream(b"abcd"), 3, None, TooLarge),
        (stream(b"ab", b"cd"), 3, None, TooLarge),
        (stream(b"abc"), 3, hashlib.sha256(b"xyz").hexdigest(), InvalidInput),
        (broken_off(), 100, None, ConnectionError),
    ],
    ids=["one chunk over the limit", "second chunk over the limit", "other content than announced", "broken off"],
)
async def test_a_write_that_fails_leaves_what_was_there_and_no_debris(
    blobs: Blobs,
    blobs_folder: Path,
    chunks: AsyncIterator[bytes],
    limit: int,
    digest: str | None,
    refusal: type[Exception],
) -> None:
    await blobs.put("firm_1/art_1", stream(b"before"), limit_bytes=100)
    with pytest.raises(refusal):
        await blobs.put("firm_1/art_1", chunks, limit_bytes=limit, sha256=digest)
    assert await blobs.read_bytes("firm_1/art_1") == b"before"
    assert files(blobs_folder) == ["firm_1/art_1"]


async def test_a_write_may_replace_what_was_there(blobs: Blobs) -> None:
    await blobs.put("a", stream(b"before"), limit_bytes=100)
    await blobs.put("a", stream(b"after"), limit_bytes=10, sha256=hashlib.sha256(b"after").hexdigest().upper())
    assert await blobs.read_bytes("a") == b"after"


async def test_two_writers_of_one_path_at_once_do_not_mix(blobs: Blobs, blobs_folder: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"sl"
        begun.set()
        await go_on.wait()
        yield b"ow"

    slow = asyncio.create_task(blobs.put("a", slowly(), limit_bytes=10))
    await asyncio.wait_for(begun.wait(), 5)
    await blobs.put("a", stream(b"fast"), limit_bytes=10)
    assert await blobs.read_bytes("a") == b"fast"
    go_on.set()
    assert (await asyncio.wait_for(slow, 5)).sha256 == hashlib.sha256(b"slow").hexdigest()
    assert await blobs.read_bytes("a") == b"slow"
    assert files(blobs_folder) == ["a"]


async def test_what_is_not_there_is_not_found(blobs: Blobs) -> None:
    with pytest.raises(NotFound):
        await blobs.read_bytes("nothing")
    with pytest.raises(NotFound):
        await anext(blobs.read("nothing"))
    with pytest.raises(NotFound):
        await blobs.size("nothing")
    await blobs.delete("nothing")


async def test_a_deleted_object_is_gone(blobs: Blobs, blobs_folder: Path) -> None:
    await blobs.put("a", stream(b"x"), limit_bytes=100)
    await blobs.delete("a")
    assert files(blobs_folder) == []


async def test_an_object_too_large_to_hold_is_not_read_at_once(blobs: Blobs) -> None:
    await blobs.put("a", stream(b"four"), limit_bytes=100)
    with pytest.raises(TooLarge):
        await blobs.read_bytes("a", limit_bytes=3)


def test_a_signed_link_opens_its_object_until_it_expires(clock: FixedClock) -> None:
    query = parse_qs(signed_query(KEY, "art_1", until=clock.now() + timedelta(minutes=5)))
    expires, signature = int(query["expires"][0]), query["signature"][0]
    check_signed(KEY, "art_1", expires=expires, signature=signature, now=clock.now())
    clock.advance(timedelta(minutes=5))
    with pytest.raises(Forbidden) as refused:
        check_signed(KEY, "art_1", expires=expires, signature=signature, now=clock.now())
    assert refused.value.code == "link_expired"


@pytest.mark.parametrize("change", ["subject", "expires", "signature", "key"])
def test_a_signed_link_opens_nothing_else(clock: FixedClock, change: str) -> None:
    query = parse_qs(signed_query(KEY, "art_1", until=clock.now() + timedelta(minutes=5)))
    expires, signature = int(query["expires"][0]), query["signature"][0]
    with pytest.raises(Forbidden):
        check_signed(
            b"another" if change == "key" else KEY,
            "art_2" if change == "subject" else "art_1",
            expires=expires + 1 if change == "expires" else expires,
            signature="0" * 64 if change == "signature" else signature,
            now=clock.now(),
        )
