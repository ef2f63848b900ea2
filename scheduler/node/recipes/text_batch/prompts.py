"""A CSV of prompts: a header with `prompt` and perhaps `id`, then one prompt per row. Every refusal names its line."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.node.recipes.bad_input import BadInput
from scheduler.node.recipes.estimate import InputFact

BYTES_MAX = 64 << 20
PROMPTS_MAX = 100_000
PROMPT_CHARS_MAX = 100_000
ID_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Prompt:
    """`id` is the file's own, or the row's number from 1."""

    line: int
    id: str
    text: str


def parse(lines: Iterable[bytes]) -> list[Prompt]:
    """The prompts, in order. Raises BadInput."""
    text = io.StringIO(_text(lines), newline="")
    reader = csv.reader(text, strict=True)
    prompts: list[Prompt] = []
    ids: set[str] = set()
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        _check_header(columns)
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            prompt = _prompt(dict(zip(columns, row, strict=False)), reader.line_num, len(prompts) + 1)
            if prompt.id in ids:
                raise BadInput(f"line {prompt.line}: the id is there twice", code="duplicate_id")
            ids.add(prompt.id)
            prompts.append(prompt)
            if len(prompts) > PROMPTS_MAX:
                raise BadInput(f"there are more than {PROMPTS_MAX} prompts", code="too_many_prompts")
    except csv.Error as error:
        raise BadInput(f"line {reader.line_num} is not CSV: {error}", code="not_csv") from None
    if not prompts:
        raise BadInput("the file has a header but no prompts", code="empty_input")
    return prompts


def facts(lines: Iterable[bytes], total_bytes: int) -> InputFact:
    """Check a prompt file whole and count its prompts. Raises BadInput."""
    return InputFact(bytes=total_bytes, items=len(parse(lines)))


def _text(lines: Iterable[bytes]) -> str:
    raw = b"".join(lines)
    if not raw.strip():
        raise BadInput("the file is empty", code="empty_input", hint="the first line must be: id,prompt")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadInput(f"line {line} is not UTF-8 text", code="not_csv") from None


def _check_header(columns: list[str]) -> None:
    if "prompt" not in columns:
        raise BadInput('line 1: there is no column "prompt"', code="missing_field", hint="write id,prompt there")
    for name in ("prompt", "id"):
        if columns.count(name) > 1:
            raise BadInput(f'line 1: there are two columns "{name}"', code="duplicate_column")


def _prompt(row: dict[str, str], line: int, number: int) -> Prompt:
    text = row.get("prompt", "")
    if not text.strip():
        raise BadInput(f"line {line}: the prompt is empty", code="bad_field")
    if len(text) > PROMPT_CHARS_MAX:
        raise BadInput(f"line {line}: the prompt is longer than {PROMPT_CHARS_MAX} characters", code="bad_field")
    own = row.get("id", "").strip()
    if len(own) > ID_CHARS_MAX:
        raise BadInput(f"line {line}: the id is longer than {ID_CHARS_MAX} characters", code="bad_field")
    return Prompt(line, own or str(number), text)
