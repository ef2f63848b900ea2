"""Text of a certain form is refused in words."""

from typing import Annotated

import pytest
from pydantic import BaseModel, StringConstraints, TypeAdapter, ValidationError

from kit.patterns import Pattern
from kit.web import Body

Name = Annotated[str, StringConstraints(max_length=8), Pattern(r"^[a-z]+/[a-z]+$", "two words and a slash", "a/b")]


class Named(Body):
    name: Name


def fault(value: object) -> str:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Named).validate_python({"name": value})
    (only,) = refused.value.errors()
    assert only["loc"] == ("name",)
    return only["msg"]


def test_what_does_not_match_is_told_the_rule_and_an_example_but_neither_the_pattern_nor_itself() -> None:
    assert fault("S3cret") == "two words and a slash, such as a/b"


@pytest.mark.parametrize(("value", "said"), [("abcd/efgh", "at most 8 characters"), (5, "valid string")])
def test_another_fault_of_it_is_told_as_it_is(value: object, said: str) -> None:
    assert said in fault(value)


def test_what_matches_is_taken_as_the_model_takes_text() -> None:
    assert Named(name=" a/b ").name == "a/b", "a body strips spaces"


def test_the_schema_keeps_the_pattern_and_the_length_and_has_the_example() -> None:
    class Plain(BaseModel):
        name: Name

    told = Plain.model_json_schema()["properties"]["name"]
    assert (told["pattern"], told["maxLength"], told["examples"]) == (r"^[a-z]+/[a-z]+$", 8, ["a/b"])
