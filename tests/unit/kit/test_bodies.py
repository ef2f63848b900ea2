"""Request bodies are read strictly, as JSON."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from kit.web import Body


class Colour(StrEnum):
    RED = "red"


class Inner(Body):
    colour: Colour


class Outer(Body):
    inner: Inner
    names: tuple[str, ...] = ()
    at: datetime | None = None
    count: int = 1


as_fastapi_does = TypeAdapter(Outer).validate_python


def test_text_becomes_an_enum_an_instant_and_a_tuple() -> None:
    body = as_fastapi_does({"inner": {"colour": "red"}, "names": ["a"], "at": "2026-11-02T02:00:00Z"})
    assert body == Outer(inner=Inner(colour=Colour.RED), names=("a",), at=datetime(2026, 11, 2, 2, tzinfo=UTC))


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"inner": {"colour": "blue"}}, ("inner", "colour")),
        ({"inner": {"colour": "red", "shade": 1}}, ("inner", "shade")),
        ({"inner": {"colour": "red"}, "count": "1"}, ("count",)),
        ({"inner": {"colour": "red"}, "count": 1.5}, ("count",)),
        ({"inner": {"colour": "red"}, "count": True}, ("count",)),
        ({"inner": {"colour": "red"}, "names": ["a\x00b"]}, ()),
        ({"inner": {"colour": "red"}, "names": ["\ud800"]}, ()),
    ],
)
def test_what_is_wrong_is_refused_and_its_place_is_named(wrong: dict[str, Any], where: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refusal:
        as_fastapi_does(wrong)
    assert [fault["loc"] for fault in refusal.value.errors()] == [where]


def test_an_error_that_ends_in_a_log_does_not_repeat_what_was_sent() -> None:
    for read in (Outer.model_validate, as_fastapi_does):
        with pytest.raises(ValidationError) as refused:
            read({"inner": {"colour": "a secret"}, "count": "a secret"})
        assert "a secret" not in str(refused.value)
