"""What may be asked on /v1: decode a request just deep enough to bound, name and rewrite it for an engine.

The top level is decoded once into raw values, so that the engine sees each field once and the bulk (messages) is
copied, never rebuilt.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Raw

from serving.admission import Shape, printed_tools_bytes_max
from serving.gateway.media import NO_MEDIA, Media, scan, with_images
from serving.gateway.openai_errors import Refusal
from serving.vocabulary import Capability

CHOICES_MAX = 64
PROMPTS_MAX = 2_048


class Family(Enum):
    """How an endpoint's answers look."""

    OPENAI = auto()  # chat, completions: chunks with `choices`
    RESPONSES = auto()
    ANTHROPIC = auto()
    POOLING = auto()  # embeddings, rerank, score: one answer, prompt tokens only
    FREE = auto()  # tokenize, count_tokens: no model runs, nothing is billed


@dataclass(frozen=True)
class Endpoint:
    """One path of /v1: where it goes in the engine, which fields bound its output, which hold its input."""

    path: bytes
    family: Family
    capability: str
    output_fields: tuple[str, ...] = ()
    output_default: int | None = None
    input_fields: tuple[str, ...] = ("messages",)
    salted: bool = True
    generates: bool = True  # whether it makes output tokens
    paired: bool = False  # whether what is given once goes into the prompt of each input

    @cached_property
    def anthropic(self) -> bool:
        """Whether its clients read errors and headers as Anthropic writes them."""
        return self.path.startswith(b"/v1/messages")

    @cached_property
    def number_fields(self) -> tuple[str, ...]:
        """Those that hold a whole number."""
        return ("n", "best_of", *self.output_fields)


_CHAT = Endpoint(b"/v1/chat/completions", Family.OPENAI, "chat", ("max_completion_tokens", "max_tokens"))
_TOKENIZE = Endpoint(b"/tokenize", Family.FREE, "", input_fields=("messages", "prompt"), salted=False, generates=False)
_RERANK = Endpoint(
    b"/v1/rerank", Family.POOLING, "embeddings", input_fields=("query", "documents"), generates=False, paired=True
)
_SCORE = Endpoint(
    b"/v1/score", Family.POOLING, "embeddings",
    input_fields=("text_1", "text_2", "queries", "documents", "data_1", "data_2", "query", "items"),
    generates=False,
    paired=True,
)  # fmt: skip
ENDPOINTS: Mapping[bytes, Endpoint] = {
    b"/v1/chat/completions": _CHAT,
    b"/v1/completions": Endpoint(
        b"/v1/completions", Family.OPENAI, "completions", ("max_tokens",), 16, input_fields=("prompt",)
    ),
    b"/v1/responses": Endpoint(
        b"/v1/responses", Family.RESPONSES, "chat", ("max_output_tokens",), input_fields=("input",)
    ),
    b"/v1/messages": Endpoint(
        b"/v1/messages", Family.ANTHROPIC, "chat", ("max_tokens",), input_fields=("messages", "system")
    ),
    b"/v1/messages/count_tokens": Endpoint(
        b"/v1/messages/count_tokens",
        Family.FREE,
        "chat",
        input_fields=("messages", "system"),
        salted=False,
        generates=False,
    ),
    b"/v1/embeddings": Endpoint(
        b"/v1/embeddings", Family.POOLING, "embeddings", input_fields=("input", "messages"), generates=False
    ),
    b"/v1/rerank": _RERANK,
    b"/rerank": _RERANK,
    b"/v1/score": _SCORE,
    b"/score": _SCORE,
    b"/v1/tokenize": _TOKENIZE,
    b"/tokenize": _TOKENIZE,
}

_REFUSED = {
    "priority": "the platform orders requests itself",
    "use_beam_search": "beam search is not offered",
    "kv_transfer_params": "it is internal to the engine",
    "ec_transfer_params": "it is internal to the engine",
    "prompt_embeds": "send text or token ids",
    "mm_processor_kwargs": "it is internal to the engine",
    "media_io_kwargs": "it is internal to the engine",
    "chat_template": "the model's own template is used",
    "previous_response_id": "responses are not stored; send the whole conversation",
    "background": "responses are not stored; leave it out or use a text-batch job",
    "vllm_xargs": "it is internal to the engine",
}
_VECTORS_AS = ("float", "base64", None)
"""How vectors may be sent. vLLM's other ways are no JSON and say nowhere what they used."""
_STRIPPED = ("cache_salt", "request_id", "session_id", "store", "data_parallel_rank", "stream_interval")
_SPECIAL = _REFUSED.keys() | frozenset(_STRIPPED)
_JSON = (b"application/json", b"")
_NULL, _TRUE = Raw(b"null"), Raw(b"true")
_BOOLEANS = (_NULL, Raw(b"false"), _TRUE)
_NO_TOOLS = (_NULL, Raw(b"[]"))
_OFF = (b"null", b"false", b"0", b"{}")
_CONTAINERS = (b"[", b"{")
_NESTED = re.compile(rb":\s*[\[{]")
"""Messages of plain text have nothing that could hold an image: no field is a list or an object."""
_USAGE_OPTIONS = Raw(b'{"include_usage":true,"continuous_usage_stats":true}')

_object = msgspec.json.Decoder(dict[str, Raw])
_items = msgspec.json.Decoder(list[Raw])
_string = msgspec.json.Decoder(str)
_name = msgspec.json.Decoder(str | None)
_integer = msgspec.json.Decoder(int)
_encode = msgspec.json.Encoder().encode


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Message(msgspec.Struct):
    content: Raw = Raw(b"null")


_options = msgspec.json.Decoder(_StreamOptions | None)
_messages = msgspec.json.Decoder(list[_Message])


class Asked:
    """A decoded request: its fields raw, and what decides about it."""

    __slots__ = (
        "continuous_usage", "endpoint", "fields", "include_usage", "model", "remote_images", "shape", "stream",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, fields: dict[str, Raw], model: str, stream: bool, shape: Shape) -> None:
        self.endpoint = endpoint
        self.fields = fields
        self.model = model
        self.stream = stream
        self.shape = shape
        self.include_usage = False
        self.continuous_usage = False
        self.remote_images: tuple[str, ...] = ()

    def bring_in(self, images: Mapping[str, str]) -> None:
        """Put fetched images (address → data URL) in the place of their addresses."""
        self.remote_images = ()
        for name in self.endpoint.input_fields:
            raw = bytes(self.fields.get(name, b""))
            if raw.startswith((b"[", b"{")):
                self.fields[name] = Raw(_encode(with_images(msgspec.json.decode(raw), images)))

    def lacking(self, capabilities: Collection[str]) -> str | None:
        """What this request needs and a model of these capabilities has not; None when it has it all."""
        if self.endpoint.capability and self.endpoint.capability not in capabilities:
            return "does not offer this endpoint"
        if self.shape.images and Capability.VISION not in capabilities:
            return "takes text only: it sees no images and hears no sound"
        if self.shape.tools_bytes and Capability.TOOLS not in capabilities:
            return "calls no tools; leave `tools` out"
        return None

    def prompt(self) -> bytes:
        """What the prompt is made of, as JSON: equal beginnings of it are equal beginnings of the prompt."""
        return b"".join(bytes(self.fields[name]) for name in self.endpoint.input_fields if name in self.fields)

    def for_engine(self, *, engine_model: str, salt: str, output_tokens_max: int) -> bytes:
        """The body for the engine: its name for the model, the firm's cache salt, usage asked for, output capped."""
        fields = self.fields
        fields["model"] = Raw(_encode(engine_model))
        if self.endpoint.salted:
            fields["cache_salt"] = Raw(_encode(salt))
        if self.stream and self.endpoint.family is Family.OPENAI:
            fields["stream_options"] = _USAGE_OPTIONS
        if self.endpoint.family is Family.RESPONSES:
            fields["store"] = Raw(b"false")
        wanted = self.shape.output_tokens_max
        if wanted is not None and wanted > output_tokens_max:
            for name in self.endpoint.output_fields:
                if name in fields:
                    fields[name] = Raw(b"%d" % output_tokens_max)
        return _encode(fields)


def decode(endpoint: Endpoint, body: bytes, content_type: bytes) -> Asked | Refusal:
    """The request in `body`, or why it is refused before it costs anything."""
    if content_type not in _JSON and not content_type.lower().startswith(b"application/json"):
        return Refusal(415, "unsupported_media_type", "send the request as application/json")
    try:
        fields = _object.decode(body)
        model = _string.decode(fields["model"])
        if not body.isascii():
            body.decode()  # values are passed on as they came, and raw ones are not looked into
    except KeyError:
        return Refusal(400, "missing_model", "name a model in `model`; GET /v1/models lists yours", "model")
    except msgspec.ValidationError:
        return Refusal(400, "invalid_type", "the body is a JSON object and `model` is a string in it", "model")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refusal(400, "invalid_json", "the body is not valid JSON in UTF-8")
    refusal = None if _SPECIAL.isdisjoint(fields) else _without_special(fields)
    if refusal is not None:
        return refusal
    stream = fields.get("stream", _NULL)
    if stream not in _BOOLEANS:
        return Refusal(400, "invalid_type", "`stream` is true or false", "stream")
    if endpoint.family is Family.POOLING and not _as_json(fields):
        why = "`encoding_format` is `float` or `base64`"
        return Refusal(400, "unsupported_parameter", why, "encoding_format")
    numbers = _numbers(endpoint, fields)
    if isinstance(numbers, Refusal):
        return numbers
    try:
        media = _media(endpoint, fields)
        if isinstance(media, Refusal):
            return media
        shape = _shape(endpoint, fields, numbers, len(body) - media.bytes, media.number)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Refusal(400, "invalid_json", "a value inside the body is not valid JSON in UTF-8, or out of any range")
    if isinstance(shape, Refusal):
        return shape
    streamed = stream == _TRUE and endpoint.generates
    asked = Asked(endpoint, fields, model, streamed, shape)
    asked.remote_images = media.remote
    return _with_stream_options(asked) if streamed and "stream_options" in fields else asked


def _as_json(fields: dict[str, Raw]) -> bool:
    """Whether vectors are asked for in a form that says what it used."""
    try:
        return _name.decode(fields.get("encoding_format", _NULL)) in _VECTORS_AS
    except msgspec.MsgspecError:
        return False


def _numbers(endpoint: Endpoint, fields: dict[str, Raw]) -> dict[str, int] | Refusal:
    """What bounds the output. Refuses what engines would convert on their own: metering and holds need it exact."""
    numbers: dict[str, int] = {}
    for name in endpoint.number_fields:
        raw = fields.get(name)
        if raw is None:
            continue
        if bytes(raw) == b"null":
            del fields[name]  # an engine may take null for "no bound" where it has a default for a field left out
        elif (value := _whole(raw)) is None:
            return Refusal(400, "invalid_type", f"`{name}` is a whole number", name)
        elif value < 0:
            return Refusal(400, "out_of_range", f"`{name}` is not negative", name)
        else:
            numbers[name] = value
    return numbers


def _without_special(fields: dict[str, Raw]) -> Refusal | None:
    """Take out what is the platform's to set; refuse what changes what the engine does."""
    for name in _STRIPPED:
        fields.pop(name, None)
    for name in _REFUSED.keys() & fields.keys():
        if bytes(fields[name]) not in _OFF:
            return Refusal(400, "unsupported_parameter", f"`{name}` is not accepted: {_REFUSED[name]}", name)
        del fields[name]
    return None


def _with_stream_options(asked: Asked) -> Asked | Refusal:
    try:
        options = _options.decode(asked.fields["stream_options"])
    except msgspec.MsgspecError:
        return Refusal(400, "invalid_type", "`stream_options` is an object of booleans", "stream_options")
    if options is not None:
        asked.include_usage = bool(options.include_usage)
        asked.continuous_usage = asked.include_usage and bool(options.continuous_usage_stats)
    return asked


def _shape(
    endpoint: Endpoint, fields: dict[str, Raw], numbers: dict[str, int], body_bytes: int, images: int
) -> Shape | Refusal:
    choices = prompts = 1
    shared = 0
    if "n" in numbers and endpoint.family is Family.OPENAI:
        choices = numbers["n"] or 1
        if not 1 <= choices <= CHOICES_MAX:
            return Refusal(400, "out_of_range", f"`n` is between 1 and {CHOICES_MAX}", "n")
    if endpoint.family is Family.POOLING:
        counts = {name: _count(fields[name]) for name in endpoint.input_fields if name in fields}
        prompts = max(1, sum(counts.values()))
        if endpoint.paired:
            shared = body_bytes - sum(len(bytes(fields[name])) for name, count in counts.items() if count > 1)
    elif "prompt" in fields:
        prompts = _count(fields["prompt"])
    if prompts > PROMPTS_MAX:
        return Refusal(400, "out_of_range", f"a request carries at most {PROMPTS_MAX} inputs", endpoint.input_fields[0])
    output: int | None = 0
    if endpoint.generates:
        output = endpoint.output_default
        for name in endpoint.output_fields:
            if name in numbers:
                output = max(1, numbers[name])
                break
    tools = fields.get("tools", _NULL)
    printed = 0 if tools in _NO_TOOLS else printed_tools_bytes_max(bytes(tools))
    return Shape(body_bytes, images, printed, prompts, choices, output, shared)


def _count(raw: Raw) -> int:
    """How many inputs a value holds: a list of strings or of lists is many, a string or a list of numbers is one."""
    text = bytes(raw)
    if not text.startswith(b"["):
        return 1
    items = _items.decode(text)
    many = sum(1 for item in items if bytes(item)[:1] in (b'"', b"[", b"{"))
    return max(1, many)


def _whole(raw: Raw) -> int | None:
    try:
        return _integer.decode(raw)
    except msgspec.MsgspecError:
        return None


def _media(endpoint: Endpoint, fields: dict[str, Raw]) -> Media | Refusal:
    """The images (or sounds, or films) that come with the request; what is not taken is refused."""
    media = NO_MEDIA
    for name in endpoint.input_fields:
        if name not in fields:
            continue
        raw = bytes(fields[name])
        if raw[:1] not in _CONTAINERS or (name == "messages" and not _NESTED.search(raw)):
            continue
        for part in _parts(name, raw):
            found = scan(part, name)
            if isinstance(found, Refusal):
                return found
            media += found
    return media


def _parts(name: str, raw: bytes) -> list[Any]:
    if name != "messages":
        return [msgspec.json.decode(raw)] if b"{" in raw else []
    try:
        messages = _messages.decode(raw)
    except msgspec.MsgspecError:
        return [msgspec.json.decode(raw)]
    parts: list[Any] = []
    for message in messages:
        content = bytes(message.content)
        if content[:1] in _CONTAINERS:
            parts.append(msgspec.json.decode(content))
    return parts
