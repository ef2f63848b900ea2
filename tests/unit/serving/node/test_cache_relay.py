"""Between an engine's cache events and the gateways."""

import base64
import json
import struct
from typing import Any

import msgspec
import pytest

from serving.node.cache_relay import PROMPT, CacheRelay, current

SECRET_TOKENS = list(range(70_000, 70_032))


def batch(*events: dict[str, Any]) -> bytes:
    """As vLLM publishes them."""
    return msgspec.msgpack.encode([12.5, list(events), 0])


def stored(session: str | None, blocks: list[bytes], before: bytes | None = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored", "block_hashes": blocks, "parent_block_hash": before, "token_ids": SECRET_TOKENS,
        "block_size": 16, "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": [["firm_1"], None],
        "session_id": session, **more,
    }  # fmt: skip


def header(request: bytes = b"r", blocks: bytes = b"2.0", hashes: tuple[int, ...] = (7, 8)) -> bytes:
    return b" ".join([request, blocks, base64.b64encode(struct.pack(f"<{len(hashes)}Q", *hashes))])


def relay_with_prompt() -> CacheRelay:
    relay = CacheRelay("ipc:///nowhere")
    relay.name([(b"host", b"x"), (PROMPT, header())])
    named = current.get()
    assert named is not None
    named.enters(32)
    return relay


async def heard(relay: CacheRelay, *payloads: tuple[int, bytes]) -> list[Any]:
    """What a gateway reads that listened before these came."""
    told = relay.tell()
    data = await anext(told)
    for number, payload in payloads:
        relay._take(number, payload)
    data += await anext(told)
    await told.aclose()
    return [json.loads(line) for line in data.split(b"\n") if line]


async def test_gateways_are_told_their_own_names_and_no_token() -> None:
    relay = relay_with_prompt()
    lines = await heard(relay, (0, batch(stored("r", [b"a"]))), (1, batch(stored("r", [b"b"], b"a"))))
    assert lines == [{"cleared": True}, {"stored": [7], "left": {"r": 16}}, {"stored": [8], "left": {"r": 0}}]


async def test_who_listens_later_is_told_all_that_is_held() -> None:
    relay = relay_with_prompt()
    relay._take(0, batch(stored("r", [b"a", b"b"])))
    removed = batch({"type": "BlockRemoved", "block_hashes": [b"b"], "medium": "GPU", "group_idx": 0})
    assert await heard(relay, (1, removed)) == [{"cleared": True, "stored": [7, 8]}, {"removed": [8]}]


async def test_a_missed_batch_voids_what_is_known() -> None:
    relay = relay_with_prompt()
    relay._take(0, batch(stored("r", [b"a", b"b"])))
    lines = await heard(relay, (2, batch({"type": "AllBlocksCleared"})))
    assert lines[1] == {"cleared": True}


async def test_layers_of_another_kind_are_left_out() -> None:
    relay = relay_with_prompt()
    relay._take(0, batch(stored("r", [b"a", b"b"], group_idx=1)))
    assert not relay.map.all().stored


@pytest.mark.parametrize(
    "said", [b"", b"r 2.0", b"r two AAAA", b"r 2.0 A", header(b"\xff"), b"r 2.0 AAAA=AAA", b"r 2 AAAA x"]
)
def test_a_header_that_is_not_understood_names_nothing(said: bytes) -> None:
    relay = CacheRelay("ipc:///nowhere")
    relay.name([(PROMPT, said)])
    assert current.get() is None


def test_a_request_without_the_header_does_not_take_over_the_last_ones() -> None:
    relay = relay_with_prompt()
    relay.name([(b"host", b"x")])
    assert current.get() is None


def test_an_engine_that_publishes_nothing_has_no_relay() -> None:
    assert CacheRelay.of({}) is None
