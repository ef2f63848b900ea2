"""An engine that speaks vLLM's shapes and counts like it, without a model: its own process, for tests and benchmarks.

`python -m tests.support.mock_engine --port 9100 --model NAME` answers `max_tokens` tokens (16 by default), one each
`--interval-ms` (0: at once). A prompt may ask for trouble: `!500`, `!429`, `!drop` (before any answer), `!drop-after-N`
(chunks), `!stall-after-N`, `!fail` (an error inside a stream), `!hang`, `!long` (over the context), `!tool`. Its
counters are at /metrics as vLLM names them, and /requests shows the bodies it got. Beyond `--at-once` it answers 429.
"""

import argparse
import asyncio
import itertools
import json
import re
import signal
import sys
from collections.abc import Coroutine, Iterator
from typing import Any

import httptools
import msgspec
import uvloop

from tests.support import mock_answers

ERROR = {"message": "", "type": "BadRequestError", "param": None, "code": 400}
WRITE_TOGETHER = 32
Events = Iterator[tuple[str, dict[str, Any]]]
_STALL_AFTER = re.compile(r"!stall-after-(\d+)")
_DROP_AFTER = re.compile(r"!drop-after-(\d+)")


class Body(msgspec.Struct):
    model: str = ""
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    stream: bool | None = None
    stream_options: dict[str, bool] | None = None
    max_tokens: int | msgspec.UnsetType | None = msgspec.UNSET
    max_completion_tokens: int | msgspec.UnsetType | None = msgspec.UNSET
    max_output_tokens: int | msgspec.UnsetType | None = msgspec.UNSET
    documents: msgspec.Raw = msgspec.Raw(b"")
    text_2: msgspec.Raw = msgspec.Raw(b"")
    encoding_format: str | None = None
    n: int | None = None


class Engine:
    """What all connections share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model: str = options.model
        self.adapters: set[str] = set(filter(None, options.adapters.split(",")))
        self.key: str = options.key
        self.interval: float = options.interval_ms / 1000
        self.context: int = options.context
        self.at_once: int = options.at_once
        self.prompt_tokens = self.generation_tokens = self.running = self.requests = 0
        self.keep_bodies: bool = options.keep_bodies
        self.bodies: list[Any] = []
        self.decoder = msgspec.json.Decoder(Body)
        self.ids = itertools.count(1)

    def metrics(self) -> bytes:
        label = f'{{model_name="{self.model}"}}'
        return (
            f"vllm:prompt_tokens_total{label} {self.prompt_tokens}\n"
            f"vllm:generation_tokens_total{label} {self.generation_tokens}\n"
            f"vllm:num_requests_running{label} {self.running}\nmock:requests_total {self.requests}\n"
        ).encode()


class Connection(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.parser = httptools.HttpRequestParser(self)
        self.url, self.body, self.headers = b"", b"", {}
        self.task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport
        self.room = asyncio.Event()
        self.room.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.room.set()
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url, self.body, self.headers = b"", b"", {}

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        engine, path = self.engine, self.url.partition(b"?")[0]
        if path == b"/metrics":
            self.reply(200, engine.metrics(), b"text/plain")
        elif path == b"/requests":
            self.reply(200, json.dumps(engine.bodies).encode())
        elif path == b"/health":
            self.reply(200, b"")
        elif engine.key and self.headers.get(b"authorization") != b"Bearer " + engine.key.encode():
            self.reply(401, b'{"error":"Unauthorized"}')
        elif path == b"/heliu/cache":
            self.refuse(404, "Not Found")
        else:
            try:
                self.answer(path, self.engine.decoder.decode(self.body))
            except (msgspec.MsgspecError, TypeError, ValueError) as error:
                self.refuse(400, f"not understood: {type(error).__name__}")

    def reply(self, status: int, body: bytes, kind: bytes = b"application/json") -> None:
        self.transport.write(
            b"HTTP/1.1 %d X\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (status, kind, len(body), body)
        )

    def refuse(self, status: int, message: str) -> None:
        self.reply(status, json.dumps({"error": ERROR | {"message": message, "code": status}}).encode())

    def answer(self, path: bytes, asked: Body) -> None:
        engine = self.engine
        engine.requests += 1
        if engine.keep_bodies:
            headers = sorted(map(bytes.decode, self.headers))
            engine.bodies.append({"path": path.decode(), "body": json.loads(self.body), "headers": headers})
        text = bytes(asked.messages) or bytes(asked.prompt) or bytes(asked.input) or b'""'
        if asked.model != engine.model and asked.model not in engine.adapters:
            self.refuse(404, f"The model `{asked.model}` does not exist.")
        elif 0 < engine.at_once <= engine.running:
            self.refuse(429, "too many requests")
        elif not self.trouble(text):
            self.work(path, asked, text)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        self.task = asyncio.get_running_loop().create_task(work)
        self.task.add_done_callback(self.over)

    def over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            sys.stderr.write(f"mock engine: {task.exception()!r}\n")
            self.transport.abort()

    def trouble(self, text: bytes) -> bool:
        """Whether the prompt asked for trouble, and got it."""
        if status := re.search(rb"!(500|429)", text):
            self.refuse(int(status[1]), "boom")
        elif b"!long" in text:
            self.refuse(400, f"This model's maximum context length is {self.engine.context} tokens.")
        elif b"!drop" in text and b"!drop-after" not in text:
            self.transport.abort()
        else:
            return b"!hang" in text
        return True

    def work(self, path: bytes, asked: Body, text: bytes) -> None:
        engine = self.engine
        if path in (b"/v1/chat/completions", b"/v1/completions"):
            self.complete(path, asked, text)
        elif path == b"/v1/messages":
            self.begin(self.messages(asked, text))
        elif path == b"/v1/responses":
            self.begin(self.responses(asked, text))
        elif path in (b"/v1/embeddings", b"/v1/rerank", b"/v1/score"):
            self.pool(path, asked, text)
        elif path == b"/tokenize":
            self.reply(200, json.dumps({"count": self.size(text), "max_model_len": engine.context}).encode())
        elif path == b"/v1/messages/count_tokens":
            self.reply(200, json.dumps({"input_tokens": self.size(text)}).encode())
        else:
            self.refuse(404, "Not Found")

    def pool(self, path: bytes, asked: Body, text: bytes) -> None:
        tokens = self.size(text)
        self.engine.prompt_tokens += tokens
        if path == b"/v1/embeddings":
            answer = mock_answers.embeddings(asked.model, mock_answers.many(text), tokens, asked.encoding_format)
        else:
            shape = mock_answers.rerank if path == b"/v1/rerank" else mock_answers.score
            count = mock_answers.many(bytes(asked.documents) or bytes(asked.text_2))
            answer = shape(asked.model, count, tokens)
        self.reply(200, json.dumps(answer).encode())

    @staticmethod
    def size(text: bytes) -> int:
        return len(text) // 4 + 1

    def wanted(self, prompt: int, *given: int | msgspec.UnsetType | None) -> int:
        """Output tokens: as many as said; with an explicit null as many as the context holds; left out: 16."""
        stated = next((value for value in given if isinstance(value, int)), None)
        return stated or (self.engine.context - prompt if None in given else 16)

    def complete(self, path: bytes, asked: Body, text: bytes) -> None:
        tokens = self.wanted(self.size(text), asked.max_completion_tokens, asked.max_tokens)
        choices = asked.n or 1
        if asked.stream or self.engine.interval:
            self.begin(self.generate(path, asked, text, tokens, choices))
            return
        self.engine.prompt_tokens += self.size(text)
        self.engine.generation_tokens += tokens * choices
        self.reply(200, self.whole(path, asked, self.size(text), tokens, choices, b"!tool" in text))

    def whole(self, path: bytes, asked: Body, prompt: int, tokens: int, choices: int, tool: bool) -> bytes:
        chat = path == b"/v1/chat/completions"
        content = "tok " * tokens
        usage = {
            "prompt_tokens": prompt, "completion_tokens": tokens * choices, "total_tokens": prompt + tokens * choices,
            "prompt_tokens_details": {"cached_tokens": prompt // 2},
        }  # fmt: skip
        function = {"name": mock_answers.TOOL, "arguments": mock_answers.ARGUMENTS}
        call = {"id": "call_1", "type": "function", "function": function}
        message = {"role": "assistant", "content": None if tool else content, "tool_calls": [call] if tool else []}
        rows = [
            {"index": i, "finish_reason": "tool_calls" if tool else "length"}
            | ({"message": message} if chat else {"text": content})
            for i in range(choices)
        ]
        return msgspec.json.encode(
            {"id": f"chatcmpl-{next(self.engine.ids)}", "object": "chat.completion" if chat else "text_completion",
             "created": 1, "model": asked.model, "choices": rows, "usage": usage}
        )  # fmt: skip

    async def generate(self, path: bytes, asked: Body, text: bytes, tokens: int, choices: int) -> None:
        engine, prompt = self.engine, self.size(text)
        engine.prompt_tokens += prompt
        engine.running += 1
        try:
            if not asked.stream:
                for _ in range(tokens):
                    await asyncio.sleep(engine.interval)
                    engine.generation_tokens += choices
                self.reply(200, self.whole(path, asked, prompt, tokens, choices, False))
                return
            await self.stream(path, asked, text, prompt, tokens, choices)
        finally:
            engine.running -= 1

    async def stream(self, path: bytes, asked: Body, text: bytes, prompt: int, tokens: int, choices: int) -> None:
        tool, failing = b"!tool" in text, b"!fail" in text
        drop_after, stall_after = (
            int(found[1]) if (found := asks.search(text.decode())) else -1 for asks in (_DROP_AFTER, _STALL_AFTER)
        )
        engine, options = self.engine, asked.stream_options or {}
        usage, each = options.get("include_usage", False), options.get("continuous_usage_stats", False)
        chat = path == b"/v1/chat/completions"
        base: dict[str, Any] = {
            "id": f"chatcmpl-{next(engine.ids)}", "created": 1, "model": asked.model,
            "object": "chat.completion.chunk" if chat else "text_completion",
        }  # fmt: skip
        self.begin_stream()

        def running(count: int) -> dict[str, Any]:
            return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}

        if chat:
            for i in range(choices):
                first = {"choices": [{"index": i, "delta": {"role": "assistant", "content": ""}}]}
                self.event(base | first | ({"usage": running(0)} if usage and each else {}))
        tokens_as = mock_answers.Chunks(base, chat=chat, choices=choices, prompt=prompt, usage=usage and each)
        count, chunks = 0, list[bytes]()
        for count, (delta, finish) in enumerate(mock_answers.chat_deltas(tokens, tool=tool and chat), 1):
            if count - 1 in (drop_after, stall_after) or (count == 2 and failing):
                self.send(chunks)
            if count - 1 == drop_after:
                self.transport.abort()
                return
            if count - 1 == stall_after:
                await asyncio.Event().wait()
            if count == 2 and failing:
                self.event({"error": ERROR | {"message": "boom", "code": 500}})
                usage = False
                break
            if engine.interval:
                await asyncio.sleep(engine.interval)
            if not self.room.is_set():
                self.send(chunks)  # what is counted is sent, whoever leaves meanwhile
                await self.room.wait()
            engine.generation_tokens += choices
            chunks += tokens_as.of(delta, finish, count)
            if engine.interval or len(chunks) >= WRITE_TOGETHER or finish:
                self.send(chunks)
        if usage:
            final = running(count * choices) | {"prompt_tokens_details": {"cached_tokens": prompt // 2}}
            self.event(base | {"choices": [], "usage": final})
        self.chunk(b"data: [DONE]\n\n")
        self.transport.write(b"0\r\n\r\n")

    async def messages(self, asked: Body, text: bytes) -> None:
        prompt, tool = self.size(text), b"!tool" in text
        tokens = self.wanted(prompt, asked.max_tokens)
        self.engine.prompt_tokens += prompt
        if not asked.stream:
            self.engine.generation_tokens += tokens
            self.reply(200, json.dumps(mock_answers.message(asked.model, tokens, prompt, tool=tool)).encode())
            return
        await self.events(
            text,
            mock_answers.message_start(asked.model, prompt, tool=tool),
            mock_answers.message_deltas(tokens, tool=tool),
            mock_answers.message_end(tokens, prompt, tool=tool),
        )

    async def responses(self, asked: Body, text: bytes) -> None:
        prompt = self.size(text)
        tokens = self.wanted(prompt, asked.max_output_tokens)
        self.engine.prompt_tokens += prompt
        response = mock_answers.Response(asked.model, tokens, prompt, tool=b"!tool" in text)
        if not asked.stream:
            self.engine.generation_tokens += tokens
            self.reply(200, json.dumps(response.whole).encode())
            return
        await self.events(text, response.start(), response.deltas(), response.end())

    async def events(self, text: bytes, start: Events, deltas: Events, end: Events) -> None:
        """A whole streamed answer of named events, one token each `--interval-ms`."""
        drop = _DROP_AFTER.search(text.decode())
        self.begin_stream()
        for name, fields in start:
            self.event(fields, name)
        for count, (name, fields) in enumerate(deltas):
            if drop and count == int(drop[1]):
                self.transport.abort()
                return
            if count == 1 and b"!fail" in text:
                self.event({"type": "error", "error": {"type": "api_error", "message": "boom"}}, "error")
                self.transport.write(b"0\r\n\r\n")
                return
            await asyncio.sleep(self.engine.interval)
            self.engine.generation_tokens += 1
            self.event(fields, name)
        for name, fields in end:
            self.event(fields, name)
        self.transport.write(b"0\r\n\r\n")

    def begin_stream(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    def send(self, chunks: list[bytes]) -> None:
        self.transport.write(b"".join(chunks))
        chunks.clear()

    def event(self, fields: dict[str, Any], name: str = "") -> None:
        head = b"event: %s\n" % name.encode() if name else b""
        self.chunk(b"%sdata: %s\n\n" % (head, msgspec.json.encode(fields)))

    def chunk(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%s\r\n" % (len(data), data))


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM; prints the port it listens on."""
    loop = asyncio.get_running_loop()
    engine = Engine(options)
    server = await loop.create_server(lambda: Connection(engine), "127.0.0.1", options.port, backlog=2048)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="mock-model")
    parser.add_argument("--adapters", default="")
    parser.add_argument("--key", default="")
    parser.add_argument("--interval-ms", type=float, default=0)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--at-once", type=int, default=0)
    parser.add_argument("--keep-bodies", action="store_true")
    uvloop.run(serve(parser.parse_args()))
