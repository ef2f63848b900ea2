"""Traces as a collector gets them: GenAI names, no words of anybody, nothing at all unless asked for."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.gateways import FakePlane, chat, post, running
from tests.support.mock_engines import MockEngine, mock_engine

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with mock_engine("--key", "engine-secret") as started:
        yield started


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[bytes]]]:
    """An OTLP collector: its address, and what it was sent."""
    got: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        got.append(gzip.decompress(body) if b"content-encoding: gzip" in head else body)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", got
    finally:
        server.close()
        await server.wait_closed()


def spans(got: list[bytes]) -> list[Any]:
    requests = [ExportTraceServiceRequest.FromString(body) for body in got]
    return [s for r in requests for resource in r.resource_spans for scope in resource.scope_spans for s in scope.spans]


def attributes(span: Any) -> dict[str, Any]:
    values = {a.key: a.value for a in span.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


async def test_a_request_is_a_span_under_the_clients_own_with_genai_names_and_no_words(
    engine: MockEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collector() as (address, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        async with running(FakePlane(engines=[engine.url]), tmp_path) as gateway:
            said = chat("a secret of ours", max_tokens=3, stream=True)
            await post(gateway.port, said, extra=f"traceparent: {PARENT}\r\n")
            await post(gateway.port, chat(model="a-name-of-the-clients-choice"))
    answered, refused = spans(got)
    assert answered.name == "chat mock-model"
    assert answered.trace_id.hex() == PARENT.split("-")[1]
    assert answered.parent_span_id.hex() == PARENT.split("-")[2]
    told = attributes(answered)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "mock-model"
    assert told["gen_ai.usage.output_tokens"] == 3
    assert told["gen_ai.usage.input_tokens"] > 0
    assert told["heliu.replica.id"] == "rep_0"
    assert [event.name for event in answered.events] == ["sent to the replica", "first token"]
    times = [answered.start_time_unix_nano, *(e.time_unix_nano for e in answered.events), answered.end_time_unix_nano]
    assert times == sorted(times)
    assert attributes(refused)["error.type"] == "model_not_found"
    assert attributes(refused)["http.response.status_code"] == 404
    everything = b"".join(got)
    for word in (b"secret of ours", b"tok ", b"hl_key1", b"firm_1", b"clients-choice"):
        assert word not in everything


async def test_nothing_is_traced_unless_a_collector_is_named(engine: MockEngine, tmp_path: Path) -> None:
    async with running(FakePlane(engines=[engine.url]), tmp_path) as gateway:
        assert gateway.gateway.traces is None
        assert (await post(gateway.port, chat())).status == 200


async def test_a_collector_that_is_away_hinders_nothing(
    engine: MockEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with running(FakePlane(engines=[engine.url]), tmp_path) as gateway:
        assert (await post(gateway.port, chat())).status == 200
