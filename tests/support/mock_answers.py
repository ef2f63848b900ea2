"""What the mock engine says, in vLLM's shapes: whole answers and the events of streamed ones."""

import base64
import itertools
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

TOOL = "weather"
ARGUMENTS = '{"city":"Wuhan"}'
VECTOR = (0.0, 1.0)
Event = tuple[str, dict[str, Any]]

_CHUNK = b"%x\r\ndata: %b%b\r\n"
_USAGE = b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}\n\n'
_inputs = msgspec.json.Decoder()


def many(raw: bytes) -> int:
    """How many inputs a field holds."""
    value = _inputs.decode(raw) if raw else ""
    return len(value) if isinstance(value, list) and value and isinstance(value[0], str | list) else 1


def embeddings(model: str, count: int, tokens: int, encoding: str | None) -> dict[str, Any]:
    """`count` vectors, as numbers or packed as the SDKs ask for them."""
    packed = base64.b64encode(struct.pack("<2f", *VECTOR)).decode()
    vector: Any = packed if encoding == "base64" else list(VECTOR)
    rows = [{"object": "embedding", "index": i, "embedding": vector} for i in range(count)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    return {"id": "embd-1", "object": "list", "created": 1, "data": rows, "model": model, "usage": usage}


def rerank(model: str, count: int, tokens: int) -> dict[str, Any]:
    """The documents, the last one first."""
    rows = [{"index": i, "document": {"text": ""}, "relevance_score": 1 / (count - i)} for i in reversed(range(count))]
    return {
        "id": "rerank-1",
        "model": model,
        "results": rows,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def score(model: str, count: int, tokens: int) -> dict[str, Any]:
    """Every pair is as alike as every other."""
    rows = [{"object": "score", "index": i, "score": 0.5} for i in range(count)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"id": "score-1", "object": "list", "created": 1, "model": model, "data": rows, "usage": usage}


def chat_deltas(tokens: int, *, tool: bool) -> Iterator[tuple[dict[str, Any], str | None]]:
    """(delta, finish reason) of each token of a streamed chat."""
    if not tool:
        for count in range(1, tokens + 1):
            yield {"content": "tok "}, "length" if count == tokens else None
        return
    halves = ARGUMENTS[:8], ARGUMENTS[8:]
    call: dict[str, Any] = {"index": 0, "id": "call_1", "type": "function", "function": {"name": TOOL, "arguments": ""}}
    yield {"tool_calls": [call]}, None
    for half in halves:
        yield {"tool_calls": [{"index": 0, "function": {"arguments": half}}]}, None
    yield {}, "tool_calls"


class Chunks:
    """A stream's running chunks, as HTTP. One token is like another: what it shares with the last is encoded once."""

    def __init__(self, base: dict[str, Any], *, chat: bool, choices: int, prompt: int, usage: bool) -> None:
        self.base, self.chat, self.choices = base, chat, choices
        self.prompt, self.usage = prompt, usage
        self.said: tuple[dict[str, Any], str | None] | None = None
        self.heads: list[bytes] = []

    def of(self, delta: dict[str, Any], finish: str | None, count: int) -> list[bytes]:
        """Those of token number `count`, one for each choice."""
        if self.said != (delta, finish):
            self.said = delta, finish
            part = {"delta": delta} if self.chat else {"text": "tok "}
            rows = [{"index": i, **part, "finish_reason": finish} for i in range(self.choices)]
            self.heads = [msgspec.json.encode(self.base | {"choices": [row]})[:-1] for row in rows]
        end = _USAGE % (self.prompt, count, self.prompt + count) if self.usage else b"}\n\n"
        return [_CHUNK % (6 + len(head) + len(end), head, end) for head in self.heads]


def message(model: str, tokens: int, prompt: int, *, tool: bool) -> dict[str, Any]:
    """A whole Anthropic message."""
    block = {"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": {"city": "Wuhan"}}
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": model,
        "content": [block if tool else {"type": "text", "text": "tok " * tokens}],
        "stop_reason": "tool_use" if tool else "max_tokens", "stop_sequence": None,
        "usage": message_usage(tokens, prompt),
    }  # fmt: skip


def message_usage(tokens: int, prompt: int) -> dict[str, int]:
    """Anthropic counts cached input apart."""
    return {"input_tokens": prompt - prompt // 2, "output_tokens": tokens, "cache_read_input_tokens": prompt // 2}


def message_start(model: str, prompt: int, *, tool: bool) -> Iterator[Event]:
    """What comes before the first token."""
    start: dict[str, Any] = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [],
        "usage": {"input_tokens": prompt, "output_tokens": 0}, "stop_reason": None, "stop_sequence": None,
    }  # fmt: skip
    yield "message_start", {"type": "message_start", "message": start}
    block = {"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": {}} if tool else {"type": "text", "text": ""}
    yield "content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}


def message_deltas(tokens: int, *, tool: bool) -> Iterator[Event]:
    """One event for each token."""
    parts = (
        [{"type": "input_json_delta", "partial_json": half} for half in (ARGUMENTS[:8], ARGUMENTS[8:])]
        if tool
        else [{"type": "text_delta", "text": "tok "}] * tokens
    )
    for part in parts:
        yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": part}


def message_end(tokens: int, prompt: int, *, tool: bool) -> Iterator[Event]:
    """What comes after the last token."""
    yield "content_block_stop", {"type": "content_block_stop", "index": 0}
    stop = {"stop_reason": "tool_use" if tool else "max_tokens", "stop_sequence": None}
    yield "message_delta", {"type": "message_delta", "delta": stop, "usage": message_usage(tokens, prompt)}
    yield "message_stop", {"type": "message_stop"}


class Response:
    """An answer of /v1/responses: whole, or as numbered events."""

    def __init__(self, model: str, tokens: int, prompt: int, *, tool: bool) -> None:
        self.tokens = tokens
        self.tool = tool
        self._numbers = itertools.count()
        self.base: dict[str, Any] = {
            "id": "resp_1", "object": "response", "created_at": 1, "model": model, "status": "in_progress",
            "output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        }  # fmt: skip
        usage = {
            "input_tokens": prompt, "output_tokens": tokens, "total_tokens": prompt + tokens,
            "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
        }  # fmt: skip
        self.whole = self.base | {"status": "completed", "output": [self.item("completed")], "usage": usage}

    def item(self, status: str) -> dict[str, Any]:
        """The one output item."""
        done = status == "completed"
        if self.tool:
            arguments = ARGUMENTS if done else ""
            call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": TOOL}
            return call | {"arguments": arguments, "status": status}
        text = {"type": "output_text", "text": "tok " * self.tokens, "annotations": []}
        content = [text] if done else []
        return {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": content}

    def start(self) -> Iterator[Event]:
        """Before the first token."""
        yield self._event("response.created", response=self.base)
        yield self._event("response.output_item.added", output_index=0, item=self.item("in_progress"))
        if not self.tool:
            empty = {"type": "output_text", "text": "", "annotations": []}
            yield self._event("response.content_part.added", **self._where, content_index=0, part=empty)

    def deltas(self) -> Iterator[Event]:
        """One event for each token."""
        if self.tool:
            for half in (ARGUMENTS[:8], ARGUMENTS[8:]):
                yield self._event("response.function_call_arguments.delta", item_id="fc_1", output_index=0, delta=half)
            return
        for _ in range(self.tokens):
            yield self._event("response.output_text.delta", **self._where, content_index=0, delta="tok ", logprobs=[])

    def end(self) -> Iterator[Event]:
        """After the last token."""
        yield self._event("response.output_item.done", output_index=0, item=self.item("completed"))
        yield self._event("response.completed", response=self.whole)

    @property
    def _where(self) -> dict[str, Any]:
        return {"item_id": "msg_1", "output_index": 0}

    def _event(self, kind: str, **fields: Any) -> Event:
        return kind, {"type": kind, "sequence_number": next(self._numbers), **fields}
