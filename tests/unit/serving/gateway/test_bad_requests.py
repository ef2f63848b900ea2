"""Requests that are refused before an engine sees them, each with a code in OpenAI's shape."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from serving.gateway.server import RunningGateway
from tests.support.gateways import FakePlane, chat, post, running
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
