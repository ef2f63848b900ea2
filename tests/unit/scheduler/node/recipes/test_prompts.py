import pytest

from scheduler.node.recipes.bad_input import BadInput
from scheduler.node.recipes.text_batch.prompts import Prompt, facts, parse


def test_prompts_are_read_with_their_ids_or_numbered() -> None:
    assert parse([b"id,prompt\n", b"a,Hello\n", b",There\n"]) == [Prompt(2, "a", "Hello"), Prompt(3, "2", "There")]


def test_a_prompt_may_hold_commas_quotes_and_line_breaks() -> None:
    (prompt,) = parse([b"prompt\n", b'"Say ""hi"",\n', b'then go."\n'])
    assert prompt.text == 'Say "hi",\nthen go.' and prompt.line == 3


def test_columns_may_stand_in_any_order_and_others_are_ignored() -> None:
    assert parse([b"\xef\xbb\xbfnote,Prompt,id\n", b"x,Hello,7\n"]) == [Prompt(2, "7", "Hello")]


def test_facts_count_the_prompts() -> None:
    assert facts([b"prompt\n", b"a\n", b"\n", b"b\n"], 14).items == 2


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        ([], "empty_input", "empty"),
        ([b"id,prompt\n"], "empty_input", "no prompts"),
        ([b"id,text\n", b"1,hello\n"], "missing_field", 'no column "prompt"'),
        ([b"prompt,prompt\n", b"a,b\n"], "duplicate_column", "two columns"),
        ([b"id,prompt\n", b"1,a\n", b"2,\n"], "bad_field", "line 3: the prompt is empty"),
        ([b"id,prompt\n", b"1,a\n", b"1,b\n"], "duplicate_id", "line 3"),
        ([b"prompt\n", b'"never closed\n'], "not_csv", "line 2"),
        ([b"prompt\n", b"a\n", b"\xff\n"], "not_csv", "line 3 is not UTF-8"),
    ],
)
def test_a_bad_file_is_refused_with_the_line_and_a_code(rows: list[bytes], code: str, words: str) -> None:
    with pytest.raises(BadInput) as refusal:
        parse(rows)
    assert refusal.value.code == code
    assert words in refusal.value.message
