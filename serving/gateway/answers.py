"""What an engine says, read for its usage and passed on under the name the client asked for.

Usage that the client did not ask for is taken out again; nothing else of an answer changes.
"""

import re
from typing import Annotated

import msgspec
from msgspec import Raw

from serving.gateway.endpoints import Asked, Family
from serving.gateway.openai_errors import Refusal
from serving.metering import RunningUsage, Tokens

EVENT_BYTES_MAX = 16 << 20


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Details(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    """All shapes of usage at once: OpenAI's, Responses' and Anthropic's."""

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    total_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None


class _Answer(msgspec.Struct):
    """Of a complete answer, what there is to look at when it names the model as the client did."""

    model: str | msgspec.UnsetType = msgspec.UNSET
    usage: _Usage | None = None


class _Index(msgspec.Struct):
    index: int = 0


_object = msgspec.json.Decoder(dict[str, Raw])
_usage = msgspec.json.Decoder(_Usage)
_answer = msgspec.json.Decoder(_Answer)
_choices = msgspec.json.Decoder(list[_Index])
_encode = msgspec.json.Encoder().encode
_DONE = b"[DONE]"
_RUNNING = re.compile(rb',"usage":\{[^{}]*\}\}\n\n')
_PIECES = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments)":\s?"[^"]')


def read_usage(raw: bytes | Raw, family: Family) -> Tokens:
    """The tokens of a usage object."""
    return tokens_of(_usage.decode(raw), family)


def tokens_of(usage: _Usage, family: Family) -> Tokens:
    """The tokens that a usage counts, whichever shape it has."""
    if family is Family.ANTHROPIC:
        cached = usage.cache_read_input_tokens or 0
        created = usage.cache_creation_input_tokens or 0
        return Tokens((usage.input_tokens or 0) + cached + created, cached, usage.output_tokens or 0)
    if family is Family.RESPONSES:
        details = usage.input_tokens_details
        return Tokens(usage.input_tokens or 0, (details and details.cached_tokens) or 0, usage.output_tokens or 0)
    details = usage.prompt_tokens_details
    # Some pooling endpoints fill only the total.
    prompt = usage.prompt_tokens if usage.prompt_tokens is not None else (usage.total_tokens or 0)
    return Tokens(prompt or 0, (details and details.cached_tokens) or 0, usage.completion_tokens or 0)


def whole(body: bytes, asked: Asked) -> tuple[bytes, Tokens | None]:
    """A complete answer: (what the client gets, what was used or None when it does not say).

    Raises MsgspecError for what is no answer of this API.
    """
    try:
        said = _answer.decode(body)
        if said.model in (asked.model, msgspec.UNSET) and asked.endpoint.family is not Family.FREE:
            return body, None if said.usage is None else tokens_of(said.usage, asked.endpoint.family)
    except msgspec.MsgspecError:
        pass  # the long way says what it is
    fields = _object.decode(body)
    model = Raw(_encode(asked.model))
    if fields.get("model", model) != model:
        fields["model"] = model
        body = _encode(fields)
    used = fields.get("usage")
    if used is None or bytes(used) == b"null" or asked.endpoint.family is Family.FREE:
        return body, None
    return body, read_usage(used, asked.endpoint.family)


class EventStream:
    """Splits a streamed answer into events, counts its usage, and returns what the client is to see."""

    __slots__ = (
        "_asked", "_buffer", "_many", "_model", "_named", "_renamed", "_running", "done", "failed", "usage",
    )  # fmt: skip

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._buffer = b""
        self._many = asked.shape.choices * asked.shape.prompts > 1
        self._model = Raw(_encode(asked.model))
        self._named = b""
        """How the engine names the model in its events, once one was read; empty turns the short way off."""
        self._renamed = b'"model":%b' % bytes(self._model)
        self._running = b',"usage":null}\n\n' if asked.include_usage else b"}\n\n"
        self.usage = RunningUsage(choices=asked.shape.choices)
        self.done = False
        self.failed = False

    def feed(self, data: bytes) -> bytes:
        """Bytes of whole events to send on now. After the last one `done` is set; it is held back (see `tail`)."""
        if self._buffer:
            data = self._buffer + data
        if b"\r\n" in data:
            data = data.replace(b"\r\n", b"\n")
        whole, mark, self._buffer = data.rpartition(b"\n\n")
        if len(self._buffer) > EVENT_BYTES_MAX:
            raise ValueError("an event of the engine is larger than any event should be")
        if not mark:
            return b""
        if self._named:
            return self._running_then_last(whole + mark)
        # The first event tells what the engine calls the model; those after it may go the short way.
        first, _, rest = (whole + mark).partition(mark)
        return self._one_by_one(first + mark) + self._running_then_last(rest)

    def _running_then_last(self, data: bytes) -> bytes:
        """Running chunks the short way if they allow it; an engine in a hurry sends its last ones along with them."""
        final = data.find(b'"choices":[]')
        end = len(data) if final < 0 else data.rfind(b"\n\n", 0, final) + 2
        passed = self._at_once(data[:end]) if self._named else None
        return self._one_by_one(data) if passed is None else passed + self._one_by_one(data[end:])

    def _at_once(self, data: bytes) -> bytes | None:
        """What `_one_by_one` makes of these events, without decoding them; None where they must be decoded.

        It takes the running chunks of one choice as vLLM writes them: one line each, `usage` last and flat. What it
        looks for has bare quotes, and inside a JSON string quotes are escaped: a text cannot look like it.
        """
        count = data.count(b"\n\n")
        if not count or data.count(b"\n") != 2 * count or data.count(b"data: {") != count or b'"error":' in data:
            return None
        if self._named != self._renamed:
            data = data.replace(self._named, self._renamed)
        if data.count(self._renamed) != count:
            return None
        last = data.rfind(b',"usage":{')
        stripped, running = _RUNNING.subn(self._running, data)
        if running != count:
            return None
        tokens = read_usage(data[last + 9 : -3], Family.OPENAI)
        self.usage.see(0, input=tokens.input, output=tokens.output)
        return data if self._asked.continuous_usage else stripped

    def _one_by_one(self, data: bytes) -> bytes:
        out: list[bytes] = []
        for event in data.split(b"\n\n")[:-1]:
            passed = self._event(event)
            if passed:
                out.append(passed)
        return b"".join(out)

    @property
    def family(self) -> Family:
        """How its events look."""
        return self._asked.endpoint.family

    @property
    def tail(self) -> bytes:
        """The end mark of a complete stream, sent once its usage is durable."""
        return b"data: [DONE]\n\n" if self.done and self._asked.endpoint.family is Family.OPENAI else b""

    def _event(self, event: bytes) -> bytes:
        if event.startswith(b"data: ") and b"\n" not in event:
            head, data = b"", event[6:]
        else:
            head, data = _joined_data(event)
        if data == _DONE:
            self.done = True
            return b"" if self._asked.endpoint.family is Family.OPENAI else event + b"\n\n"
        try:
            fields = _object.decode(data)
        except msgspec.MsgspecError:
            return event + b"\n\n"
        match self._asked.endpoint.family:
            case Family.OPENAI:
                return self._openai(head, fields)
            case Family.RESPONSES:
                return self._responses(head, fields)
            case _:
                return self._anthropic(head, fields)

    def _openai(self, head: bytes, fields: dict[str, Raw]) -> bytes:
        asked = self._asked
        used = fields.get("usage")
        choices = bytes(fields.get("choices", b"[]"))
        if "error" in fields:
            self.failed = True
        if "model" in fields:
            if not self._many:
                self._named = b'"model":%b' % bytes(fields["model"])
            fields["model"] = self._model
        if used is None or bytes(used) == b"null":
            self.usage.uncounted += len(_PIECES.findall(choices))
        else:
            if choices == b"[]":
                self.usage.close(read_usage(used, Family.OPENAI))
                if not asked.include_usage:
                    return b""
            else:
                tokens = read_usage(used, Family.OPENAI)
                indices = _choices.decode(choices) if self._many else (_Index(),)
                for choice in indices:
                    self.usage.see(choice.index, input=tokens.input, output=tokens.output)
                if not asked.continuous_usage:
                    if asked.include_usage:
                        fields["usage"] = Raw(b"null")
                    else:
                        del fields["usage"]
        return b"%sdata: %s\n\n" % (head, _encode(fields))

    def _responses(self, head: bytes, fields: dict[str, Raw]) -> bytes:
        kind = bytes(fields.get("type", b""))
        response = fields.get("response")
        if response is not None:
            inner = _object.decode(response)
            if "model" in inner:
                inner["model"] = self._model
            used = inner.get("usage")
            if used is not None and bytes(used) != b"null":
                self.usage.close(read_usage(used, Family.RESPONSES))
            fields["response"] = Raw(_encode(inner))
            self.done = self.done or kind in (b'"response.completed"', b'"response.incomplete"')
            self.failed = self.failed or kind == b'"response.failed"'
        elif kind.endswith(b'.delta"'):
            self.usage.bump()
        return b"%sdata: %s\n\n" % (head, _encode(fields))

    def _anthropic(self, head: bytes, fields: dict[str, Raw]) -> bytes:
        kind = bytes(fields.get("type", b""))
        if kind == b'"message_start"' and "message" in fields:
            inner = _object.decode(fields["message"])
            inner["model"] = self._model
            fields["message"] = Raw(_encode(inner))
            if "usage" in inner:
                self.usage.see(0, input=read_usage(inner["usage"], Family.ANTHROPIC).input, output=0)
        elif kind == b'"message_delta"' and "usage" in fields:
            self.usage.close(read_usage(fields["usage"], Family.ANTHROPIC))
        elif kind == b'"content_block_delta"':
            self.usage.bump()
        elif kind == b'"message_stop"':
            self.done = True
        elif kind == b'"error"':
            self.failed = True
        return b"%sdata: %s\n\n" % (head, _encode(fields))


def error_event(refusal: Refusal, family: Family) -> bytes:
    """An error inside a stream that has begun, as the clients of this family of endpoints read it."""
    match family:
        case Family.ANTHROPIC:
            return b"event: error\ndata: %s\n\n" % refusal.body(anthropic=True)
        case Family.RESPONSES:
            error = {"type": "error", "code": refusal.code, "message": refusal.message, "param": refusal.param}
            return b"event: error\ndata: %s\n\n" % _encode(error)
        case _:
            return b"data: %s\n\n" % refusal.body()


def _joined_data(event: bytes) -> tuple[bytes, bytes]:
    """(other lines, the data lines joined): an event may spread its data over lines."""
    data: list[bytes] = []
    other: list[bytes] = []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif line:
            other.append(line + b"\n")
    return b"".join(other), b"\n".join(data)
