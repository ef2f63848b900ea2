"""Whatever /v1's schema allows or forbids is answered by the gateway as OpenAI's API answers; no 5xx, and no hang.

`make nightly` sends far more of it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given

from serving.gateway.endpoints import ENDPOINTS
from serving.gateway.server import RunningGateway
from tests.support.gateways import KEY, MODEL, FakePlane, running
from tests.support.mock_engines import MockEngine, mock_engine
from tests.support.schema_cases import FUZZ, cases_of, send

TEXT: dict[str, Any] = {"type": "string", "maxLength": 40}
TEXTS = {"oneOf": [TEXT, {"type": "array", "items": TEXT, "maxItems": 4}]}
PART = {
    "type": "object", "required": ["type"],
    "properties": {
        "type": {"enum": ["text", "image_url", "input_audio", "tool_result"]}, "text": TEXT,
        "image_url": {"type": "object", "properties": {"url": {"enum": ["data:image/png;base64,AAAA", "ftp://x", ""]}}},
    },
}  # fmt: skip
MESSAGES = {
    "type": "array", "maxItems": 3,
    "items": {
        "type": "object", "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["user", "system", "assistant", "tool"]},
            "content": {"oneOf": [TEXT, {"type": "array", "items": PART, "maxItems": 2}, {"type": "null"}]},
        },
    },
}  # fmt: skip
WHOLE = {"type": ["integer", "null"], "minimum": 1, "maximum": 40}
FIELDS: dict[str, Any] = {
    "messages": MESSAGES, "prompt": TEXTS, "input": TEXTS, "query": TEXT, "documents": TEXTS, "text_1": TEXT,
    "text_2": TEXTS, "system": TEXT, "max_tokens": WHOLE, "max_completion_tokens": WHOLE, "max_output_tokens": WHOLE,
    "n": {"type": "integer", "minimum": 1, "maximum": 3}, "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "stream": {"type": ["boolean", "null"]}, "logprobs": {"type": ["boolean", "integer", "null"]},
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
    "tools": {"type": ["array", "null"], "items": {"type": "object"}, "maxItems": 2}, "stop": TEXTS,
    "response_format": {"type": "object"}, "encoding_format": {"enum": ["float", "base64"]}, "user": TEXT,
    "priority": {"type": "integer"}, "cache_salt": TEXT, "store": {"type": "boolean"},
}  # fmt: skip


def operation(input_fields: tuple[str, ...]) -> dict[str, Any]:
    body = {
        "type": "object",
        "required": ["model", *input_fields[:1]],
        "properties": {"model": {"const": MODEL}} | FIELDS,
    }
    return {
        "post": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {"200": {"description": "an answer"}},
        }
    }


SCHEMA: dict[str, Any] = {
    "openapi": "3.1.0", "info": {"title": "/v1", "version": "1"},
    "paths": {path.decode(): operation(endpoint.input_fields) for path, endpoint in ENDPOINTS.items()}
    | {"/v1/models": {"get": {"responses": {"200": {"description": "the models"}}}}},
}  # fmt: skip
CASES = cases_of(SCHEMA)


@pytest.fixture
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", "engine-secret") as started:
        yield started


@pytest.fixture
async def gateway(engine: MockEngine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running(FakePlane(engines=[engine.url]), tmp_path) as started:
        yield started


@pytest.fixture
async def http(gateway: RunningGateway) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"http://127.0.0.1:{gateway.port}"
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, verify=False, timeout=20) as client:
        yield client


@pytest.mark.timeout(3_600)
@FUZZ
@given(CASES)
async def test_whatever_the_schema_describes_is_answered_or_refused_in_openais_words(
    gateway: RunningGateway, http: httpx.AsyncClient, case: Any
) -> None:
    answer = await send(http, case)
    assert answer.status_code < 500, (answer.status_code, answer.text[:300], case.as_curl_command())
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) >= {"message", "type"}, answer.text[:300]
    assert not gateway.gateway.streams
    async with asyncio.timeout(10):
        await gateway.gateway.until_idle()
