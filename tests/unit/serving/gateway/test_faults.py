"""What nobody foresaw costs one request a 500 and nothing else: no hang, no lost place, no prompt in the log."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from serving.gateway import exchange, intake, waiting
from serving.gateway.answers import EventStream
from serving.gateway.endpoints import ENDPOINTS, Asked, decode
from serving.gateway.openai_errors import Refusal
from serving.gateway.server import RunningGateway
from serving.metering import Outcome, Tokens
from tests.support.gateways import KEY, FakePlane, RawClient, billed, chat, post, request, running
from tests.support.mock_engines import MockEngine, mock_engine


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", "engine-secret") as started:
        yield started


@pytest.fixture
def plane(engine: MockEngine) -> FakePlane:
    return FakePlane(engines=[engine.url])


@pytest.fixture
async def gateway(plane: FakePlane, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running(plane, tmp_path) as started:
        yield started


def broken(*_: Any, **__: Any) -> NoReturn:
    raise ZeroDivisionError("the secret lore of the bridge")


Break = Callable[[pytest.MonkeyPatch, RunningGateway], None]
FAULTS: dict[str, tuple[Break, bool]] = {
    "while the request is read": (lambda patch, _: patch.setattr(intake, "decode", broken), False),
    "while the key is looked up": (lambda patch, g: patch.setattr(g.gateway.keys, "cached", broken), False),
    "while money is held": (lambda patch, g: patch.setattr(g.gateway.purses, "hold", broken), False),
    "while a replica is chosen": (lambda patch, _: patch.setattr(waiting, "route", broken), False),
    "while the engine's answer begins": (lambda patch, _: patch.setattr(exchange, "EventStream", broken), True),
    "while the engine's answer is read": (lambda patch, _: patch.setattr(exchange, "whole", broken), False),
    "while the engine's stream is read": (lambda patch, _: patch.setattr(EventStream, "feed", broken), True),
    "while usage is logged": (lambda patch, g: patch.setattr(g.gateway.shipper, "end", broken), False),
}


@pytest.mark.parametrize("when", FAULTS)
async def test_a_fault_is_that_request_s_alone(
    gateway: RunningGateway, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inject, stream = FAULTS[when]
    if when == "while a replica is chosen":
        only = next(iter(gateway.gateway.directory.services.values())).targets[0]
        only.breaker.failed(0)  # so that the router is asked
    with monkeypatch.context() as patch:
        inject(patch, gateway)
        client = await RawClient.to(gateway.port)
        client.send(request(chat("a prompt", stream=stream, max_tokens=3)))
        if when == "while the engine's stream is read":
            assert not (await client.answer()).complete, "what has begun can only be cut"
        elif when == "while usage is logged":
            assert await client.closed()
        else:
            answer = await client.answer()
            assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        await client.close()
    assert not gateway.gateway.active
    assert all(target.running == 0 for s in gateway.gateway.directory.services.values() for target in s.targets)
    assert (await post(gateway.port, chat(max_tokens=2))).status == 200
    logged = " ".join(str(record.__dict__) for record in caplog.records)
    assert "ZeroDivisionError < " in logged
    assert "secret lore" not in logged
    assert "a prompt" not in logged
    assert KEY not in logged


async def test_a_page_that_fails_says_so(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gateway.gateway.directory, "names", broken)
        client = await RawClient.to(gateway.port)
        client.send(f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
        answer = await client.answer()
        assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
        client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer()).status == 200, "on the same connection"
        await client.close()


async def test_an_answer_without_usage_reaches_its_client_and_is_noticed(
    gateway: RunningGateway, plane: FakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Asked, "for_engine", _without_usage(Asked.for_engine))
        answer = await post(gateway.port, chat(stream=True, max_tokens=5))
    assert answer.events()[-1] == "[DONE]"
    assert [tokens for tokens, _ in await billed(plane)] == [Tokens(0, 0, 5)], "each piece is at least one token"
    assert gateway.gateway.metrics.uncounted == {"rep_0": 1}


def _without_usage(rewrite: Callable[..., bytes]) -> Callable[..., bytes]:
    def rewritten(asked: Asked, **how: Any) -> bytes:
        return rewrite(asked, **how).replace(b'"include_usage":true', b'"include_usage":false')

    return rewritten


def test_pieces_without_a_count_are_not_added_to_what_the_engine_counts() -> None:
    asked = decode(ENDPOINTS[b"/v1/chat/completions"], b'{"model":"m","messages":[],"stream":true}', b"")
    assert not isinstance(asked, Refusal)
    stream = EventStream(asked)
    stream.feed(b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n')
    assert stream.usage.tokens == Tokens(0, 0, 0), "the first piece names the role"
    stream.feed(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
    assert stream.usage.tokens == Tokens(0, 0, 1)
    stream.feed(b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":4,"completion_tokens":1}}\n\n')
    assert stream.usage.tokens == Tokens(4, 0, 1)


BROKEN = {
    "/v1/chat/completions": lambda events: events[-1]["error"]["code"] == "engine_failed",
    "/v1/messages": lambda events: (
        events[-1]["type"] == "error" and events[-1]["error"]["type"] == "api_error" and len(events[-1]) == 2
    ),
    "/v1/responses": lambda events: events[-1]["type"] == "error" and events[-1]["code"] == "engine_failed",
}


@pytest.mark.parametrize("path", BROKEN)
async def test_a_stream_that_breaks_off_ends_in_an_error_its_client_can_read(
    gateway: RunningGateway, plane: FakePlane, path: str
) -> None:
    body = chat("!drop-after-3", stream=True, max_tokens=9) | {"input": "!drop-after-3"}
    answer = await post(gateway.port, body, path=path)
    assert BROKEN[path](answer.events())
    if path != "/v1/chat/completions":
        assert answer.body.decode().rstrip().split("\n")[-2] == "event: error", "without a name SDKs skip it"
    assert [(tokens.output, outcome) for tokens, outcome in await billed(plane)] == [(3, Outcome.ENGINE_FAILED)]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_an_error_that_the_engine_says_inside_a_stream_is_a_failure_and_said_once(
    gateway: RunningGateway, plane: FakePlane, path: str
) -> None:
    answer = await post(gateway.port, chat("!fail", stream=True, max_tokens=9), path=path)
    assert answer.body.count(b"boom") == 1
    assert b"engine_failed" not in answer.body
    assert [(tokens.output, outcome) for tokens, outcome in await billed(plane)] == [(1, Outcome.ENGINE_FAILED)]
