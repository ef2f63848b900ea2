"""OpenTelemetry traces of requests with the GenAI names, where OTEL_EXPORTER_OTLP_ENDPOINT is set; else nothing.

A span is made when its request is over, from times noted anyway: a gateway without an exporter pays one comparison.
Prompts, outputs, keys and firms are never in them.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.metering import NOTHING, Tokens

VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SERVICE = "heliu-gateway"
FLUSH_SECONDS = 5
OPERATIONS: Mapping[bytes, str] = {
    b"/v1/completions": "text_completion",
    b"/v1/embeddings": "embeddings",
    b"/v1/rerank": "rerank",
    b"/v1/score": "score",
    b"/tokenize": "tokenize",
    b"/v1/messages/count_tokens": "tokenize",
}
"""Path in the engine → gen_ai.operation.name; every other path chats."""


class Ended(NamedTuple):
    """A request that is over. `began`, `sent`, `first`: monotonic seconds, 0 for what did not happen."""

    id: str
    path: bytes
    parent: bytes  # its traceparent header
    model: str  # "" when it was refused before its model was known
    replica: str
    streamed: bool
    began: float
    sent: float
    first: float
    tokens: Tokens = NOTHING
    error: str = ""  # a refusal's code, or an outcome that is not a completed answer
    status: int = 200


class Traces:
    """Makes spans and hands them to an exporter's own thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", SERVICE)})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("heliu.gateway")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, ended: Ended) -> None:
        """One span, from the request's arrival until now, as a child of the client's own."""
        wall, clock = time.time_ns(), time.monotonic()

        def at(monotonic: float) -> int:
            return wall - round((clock - monotonic) * 1e9)

        operation = OPERATIONS.get(ended.path, "chat")
        span = self._tracer.start_span(
            f"{operation} {ended.model}".rstrip(),
            context=self._parent(ended.parent),
            kind=SpanKind.SERVER,
            start_time=at(ended.began),
            attributes=_attributes(operation, ended),
        )
        if ended.sent:
            span.add_event("sent to the replica", timestamp=at(ended.sent))
        if ended.first:
            span.add_event("first token", timestamp=at(ended.first))
        if ended.status >= 500:
            span.set_status(Status(StatusCode.ERROR, ended.error))
        span.end(wall)

    async def close(self) -> None:
        """Send what is left, within a few seconds."""
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            pass  # the collector is away, and its own problem

    def _parent(self, header: bytes) -> Context | None:
        return self._propagator.extract({"traceparent": header.decode("latin-1")}) if header else None


def _attributes(operation: str, ended: Ended) -> dict[str, str | int | bool]:
    told: dict[str, str | int | bool] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "heliu",
        "gen_ai.request.model": ended.model,
        "gen_ai.request.stream": ended.streamed,
        "gen_ai.usage.input_tokens": ended.tokens.input,
        "gen_ai.usage.cache_read.input_tokens": ended.tokens.cached_input,
        "gen_ai.usage.output_tokens": ended.tokens.output,
        "http.response.status_code": ended.status,
        "error.type": ended.error,
        "heliu.request.id": ended.id,
        "heliu.replica.id": ended.replica,
    }
    return {name: value for name, value in told.items() if value != ""}


def from_environment() -> Traces | None:
    """Traces to where the OTEL_… variables say, None where they say nothing."""
    if not any(os.environ.get(name) for name in VARIABLES):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Traces(OTLPSpanExporter())
