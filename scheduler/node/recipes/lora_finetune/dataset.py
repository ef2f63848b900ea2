"""Training examples: JSON lines with `prompt` and `completion`, or with `messages`. Every refusal names its line."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

from scheduler.node.recipes.bad_input import BadInput
from scheduler.node.recipes.estimate import InputFact

BYTES_MAX = 64 << 20
LINE_BYTES_MAX = 1 << 20
EXAMPLES_MAX = 100_000
MESSAGES_MAX = 100
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation; the assistant's messages are what is learned."""

    line: int
    messages: tuple[Message, ...]


def parse(lines: Iterable[bytes]) -> list[Example]:
    """The examples, in order; blank lines count as lines but hold nothing. Raises BadInput."""
    examples: list[Example] = []
    for number, raw in enumerate(lines, start=1):
        text = _text(raw, number).strip()
        if not text:
            continue
        examples.append(Example(number, _messages(_object(text, number), number)))
        if len(examples) > EXAMPLES_MAX:
            raise BadInput(f"there are more than {EXAMPLES_MAX} examples", code="too_many_examples")
    if not examples:
        raise BadInput(
            "the data file is empty",
            code="empty_input",
            hint='write one JSON object per line: {"prompt": "…", "completion": "…"}',
        )
    return examples


def facts(lines: Iterable[bytes], total_bytes: int) -> InputFact:
    """Check a data file whole and count its examples. Raises BadInput."""
    return InputFact(bytes=total_bytes, items=len(parse(lines)))


def _text(raw: bytes, number: int) -> str:
    if len(raw) > LINE_BYTES_MAX:
        raise BadInput(f"line {number} is longer than {LINE_BYTES_MAX} bytes", code="line_too_long")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"line {number} is not UTF-8 text", code="not_jsonl") from None


def _object(text: str, number: int) -> dict[str, Any]:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput(f"line {number} is not JSON", code="not_jsonl", hint="the file must be JSON Lines") from None
    if not isinstance(value, dict):
        raise BadInput(f"line {number} is not a JSON object", code="not_jsonl")
    return cast(dict[str, Any], value)


def _messages(record: dict[str, Any], number: int) -> tuple[Message, ...]:
    if "messages" in record:
        return _conversation(record["messages"], number)
    for field in ("prompt", "completion"):
        if field not in record:
            raise BadInput(f'line {number} has no "{field}"', code="missing_field")
    prompt, completion = (_content(record[field], field, number) for field in ("prompt", "completion"))
    return Message("user", prompt), Message("assistant", completion)


def _conversation(value: object, number: int) -> tuple[Message, ...]:
    if not isinstance(value, list) or not 2 <= len(cast(list[object], value)) <= MESSAGES_MAX:
        raise BadInput(f'line {number}: "messages" must be a list of 2 to {MESSAGES_MAX}', code="bad_messages")
    messages: list[Message] = []
    for item in cast(list[object], value):
        role = cast(dict[str, Any], item).get("role") if isinstance(item, dict) else None
        if role not in _ROLES:
            raise BadInput(f"line {number}: every message needs a role of {', '.join(_ROLES)}", code="bad_messages")
        content = _content(cast(dict[str, Any], item).get("content"), "content", number)
        messages.append(Message(cast(Literal["system", "user", "assistant"], role), content))
    if messages[-1].role != "assistant":
        raise BadInput(f"line {number}: the last message must be the assistant's", code="bad_messages")
    return tuple(messages)


def _content(value: object, field: str, number: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f'line {number}: "{field}" must be text that is not empty', code="bad_field")
    return value
