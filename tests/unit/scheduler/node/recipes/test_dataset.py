import json

import pytest

from scheduler.node.recipes.bad_input import BadInput
from scheduler.node.recipes.lora_finetune.dataset import Example, Message, facts, parse

GOOD = b'{"prompt": "Who?", "completion": "Wen."}\n'


def lines(*rows: bytes) -> list[bytes]:
    return list(rows)


def test_prompts_and_completions_become_conversations() -> None:
    assert parse([GOOD]) == [Example(1, (Message("user", "Who?"), Message("assistant", "Wen.")))]


def test_messages_are_taken_as_they_are() -> None:
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    (example,) = parse([json.dumps({"messages": talk}).encode()])
    assert [(m.role, m.content) for m in example.messages] == [("system", "s"), ("user", "u"), ("assistant", "a")]


def test_blank_lines_are_passed_over_and_still_counted() -> None:
    assert [example.line for example in parse([b"\n", GOOD, b"  \n", GOOD])] == [2, 4]


def test_a_byte_order_mark_is_no_error() -> None:
    assert len(parse([b"\xef\xbb\xbf" + GOOD])) == 1


def test_facts_count_the_examples() -> None:
    assert facts([GOOD, GOOD], 80).items == 2


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        ([], "empty_input", "empty"),
        ([b"\n", b" \n"], "empty_input", "empty"),
        ([GOOD, b"not json\n"], "not_jsonl", "line 2 is not JSON"),
        ([GOOD, b'["a"]\n'], "not_jsonl", "line 2 is not a JSON object"),
        ([b"[" * 100_000], "not_jsonl", "line 1"),
        ([b"\xff\xfe\n"], "not_jsonl", "line 1 is not UTF-8"),
        ([GOOD, b'{"prompt": "x"}'], "missing_field", 'line 2 has no "completion"'),
        ([b'{"completion": "x"}'], "missing_field", 'line 1 has no "prompt"'),
        ([b'{"prompt": "x", "completion": " "}'], "bad_field", "line 1"),
        ([b'{"prompt": 5, "completion": "x"}'], "bad_field", "line 1"),
        ([b'{"messages": []}'], "bad_messages", "line 1"),
        ([b'{"messages": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]}'], "bad_messages", "1"),
        ([b'{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}'], "bad_messages",
         "last message"),
        ([b'{"messages": ["a", "b"]}'], "bad_messages", "line 1"),
        ([GOOD, b"x" * (1 << 20) + b"\n"], "line_too_long", "line 2"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_the_line_and_a_code(rows: list[bytes], code: str, words: str) -> None:
    with pytest.raises(BadInput) as refusal:
        parse(rows)
    assert refusal.value.code == code
    assert words in refusal.value.message


def test_a_refusal_never_quotes_the_data() -> None:
    with pytest.raises(BadInput) as refusal:
        parse([b'{"prompt": "the secret plot", "completion": 5}'])
    assert "secret" not in refusal.value.message
