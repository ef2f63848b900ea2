"""Only named engine arguments, within their ranges, reach an engine."""

from typing import Any

import pytest

from kit.errors import InvalidInput
from serving.engine_arguments import ALLOWED, checked


def test_allowed_arguments_come_back_sorted() -> None:
    given = {"max_model_len": 2048, "dtype": "bfloat16", "enforce_eager": True, "gpu_memory_utilization": 0.9}
    assert list(checked(given).items()) == sorted(given.items())


@pytest.mark.parametrize(
    "name",
    ["trust_remote_code", "api_key", "host", "port", "enable_lora", "lora_modules", "chat_template", "download_dir",
     "served_model_name", "middleware", "load_format", "hf_overrides", "--dtype", "max-model-len", ""],
)  # fmt: skip
def test_an_argument_that_is_not_on_the_list_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        checked({name: True})
    assert refusal.value.code == "engine_argument_not_allowed"
    assert name not in ALLOWED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_model_len", 0),
        ("max_model_len", True),
        ("max_model_len", "2048"),
        ("max_model_len", 2048.0),
        ("max_model_len", 10**12),
        ("dtype", "int4; rm -rf"),
        ("dtype", ["auto"]),
        ("enforce_eager", 1),
        ("gpu_memory_utilization", 1.5),
        ("gpu_memory_utilization", float("nan")),
        ("seed", -1),
    ],
)
def test_a_value_outside_its_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as refusal:
        checked({name: value})
    assert refusal.value.code == "engine_argument_out_of_range"
