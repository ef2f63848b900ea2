"""Requests that are refused before an engine sees them, each with a code in OpenAI's shape."""

import gzip
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from serving.gateway.server import RunningGateway
from tests.support.gateways import KEY, FakePlane, RawClient, chat, post, running
from tests.support.mock_engines import MockEngine, mock_engine


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", "engine-secret", "--adapters", "adp_1", "--keep-bodies") as started:
        yield started


@pytest.fixture
def plane(engine: MockEngine) -> FakePlane:
    return FakePlane(engines=[engine.url])


@pytest.fixture
async def gateway(plane: FakePlane, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running(plane, tmp_path) as started:
        yield started


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[]", 400, "invalid_type"),
        (b'{"messages":[]}', 400, "missing_model"),
        (b'{"model":1}', 400, "invalid_type"),
        (b'{"model":"mock-model","messages":[' + b"[" * 100_000, 400, "invalid_json"),
        (b'{"model":"\xff"}', 400, "invalid_json"),
        (b'{"model":"mock-model","user":{"\xff":1}}', 400, "invalid_json"),
        (chat(model="another-firms"), 404, "model_not_found"),
        (chat(priority=-1), 400, "unsupported_parameter"),
        (chat(n=1000), 400, "out_of_range"),
        (chat(stream=1), 400, "invalid_type"),
        (chat(stream="true"), 400, "invalid_type"),
        (chat(n="5"), 400, "invalid_type"),
        (chat(n=5.0), 400, "invalid_type"),
        (chat(max_tokens="1000"), 400, "invalid_type"),
        (chat(max_completion_tokens=True), 400, "invalid_type"),
        (b'{"model":"mock-model","messages":[{"content":[{"text":"\xff"}]}]}', 400, "invalid_json"),
        (b'{"model":"mock-model","messages":[{"content":[' + b"9" * 6_000 + b"]}]}", 400, "invalid_json"),
        (chat(stream=True, stream_options=3), 400, "invalid_type"),
        (chat("!long"), 400, "context_length_exceeded"),
        (chat("!500"), 502, "engine_error"),
    ],
)
async def test_a_bad_request_is_refused_in_openais_shape(
    gateway: RunningGateway, plane: FakePlane, body: object, status: int, code: str
) -> None:
    answer = await post(gateway.port, body)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert plane.records == []
    assert not gateway.gateway.active


@pytest.mark.parametrize(
    ("wanted", "status"), [("bytes", 400), ("bytes_only", 400), (3, 400), (None, 200), ("float", 200)]
)
async def test_vectors_are_only_sent_in_a_form_that_says_what_it_used(
    gateway: RunningGateway, wanted: object, status: int
) -> None:
    """vLLM's `bytes` carries its usage nowhere in the body: it would be free of charge."""
    body = {"model": "mock-model", "input": "x", "encoding_format": wanted}
    answer = await post(gateway.port, body, path="/v1/embeddings")
    assert answer.status == status
    if status == 400:
        assert answer.json()["error"]["param"] == "encoding_format"


@pytest.mark.parametrize("name", ["cache_salt", "request_id", "session_id", "data_parallel_rank", "stream_interval"])
async def test_what_is_the_platform_s_to_set_never_reaches_an_engine(
    gateway: RunningGateway, engine: MockEngine, name: str
) -> None:
    """With an interval between counts, what is made between two would be free for who leaves."""
    answer = await post(gateway.port, chat(stream=True, max_tokens=1) | {name: 1_000_000})
    assert answer.status == 200
    assert engine.requests()[-1]["body"].get(name) in (None, "firm_1")


async def test_a_compressed_body_is_refused_for_what_it_is(gateway: RunningGateway) -> None:
    body = gzip.compress(json.dumps(chat()).encode())
    answer = await post(gateway.port, body, extra="Content-Encoding: gzip\r\n")
    assert (answer.status, answer.json()["error"]["code"]) == (415, "content_encoding_not_supported")


@pytest.mark.parametrize(
    "target",
    [
        "http://gateway/v1/chat/completions",
        "HTTPS://gateway:443/v1/chat/completions",
        "/v1/chat%2Fcompletions",
        "/v1/chat/completions/",
        "//v1//chat/completions",
    ],
)
async def test_a_target_in_another_form_names_the_same_path(gateway: RunningGateway, target: str) -> None:
    assert (await post(gateway.port, chat(max_tokens=1), path=target)).status == 200
    assert (await post(gateway.port, chat(), path="http://gateway")).status == 404


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "the base URL ends in /v1"),
        ("/v1/v1/messages", "the base URL has one /v1 too many"),
        ("/v1/audio/speech", "the API is under /v1"),
    ],
)
async def test_a_path_that_is_not_there_is_named_with_what_was_meant(
    gateway: RunningGateway, path: str, hint: str
) -> None:
    answer = await post(gateway.port, chat(), path=path)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (404, "unknown_path")
    assert f"`{path}`" in error["message"]
    assert hint in error["message"]


async def test_below_messages_every_refusal_has_anthropics_shape(gateway: RunningGateway) -> None:
    client = await RawClient.to(gateway.port)
    for path, status, kind in (("", 405, "invalid_request_error"), ("/batches", 404, "not_found_error")):
        client.send(f"GET /v1/messages{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = await client.answer()
        assert (answer.status, answer.json()["type"], answer.json()["error"]["type"]) == (status, "error", kind)
    await client.close()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/usage"])
async def test_a_page_says_whether_the_key_is_missing_or_wrong(gateway: RunningGateway, path: str) -> None:
    client = await RawClient.to(gateway.port)
    for header, code in (("", "missing_api_key"), ("Authorization: Bearer hl_no_key\r\n", "invalid_api_key")):
        client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode())
        answer = await client.answer()
        assert (answer.status, answer.json()["error"]["code"]) == (401, code)
    await client.close()


@pytest.mark.parametrize("name", ["mock-model", "mock%2Dmodel", "%6dock-model"])
async def test_a_model_is_found_under_its_name_with_escapes(gateway: RunningGateway, name: str) -> None:
    client = await RawClient.to(gateway.port)
    client.send(f"GET /v1/models/{name} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
    assert (await client.answer()).json()["id"] == "mock-model"
    await client.close()
