"""A CSV of prompts through a real model, with and without an adapter."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node.conftest import MODEL, Tuned, run
from tests.support.attempts import REPOSITORY, ControlPlaneStandIn, plan

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600, func_only=True)]


def batch(prompts: bytes, *, adapter: tuple[bytes, bytes] | None = None, **params: Any) -> ControlPlaneStandIn:
    inputs = {"prompts.csv": prompts}
    if adapter is not None:
        inputs |= {"adapter/adapter_config.json": adapter[0], "adapter/adapter_model.safetensors": adapter[1]}
    return plan(
        "scheduler.node.recipes.text_batch.program",
        inputs=inputs,
        params={"model": MODEL, **params},
        lease_seconds=60,
    )


def results(control: ControlPlaneStandIn) -> list[dict[str, Any]]:
    return [json.loads(line) for line in control.outputs["results.jsonl"].content.splitlines()]


def test_every_prompt_is_answered_in_order_and_counted(models: Path, tmp_path: Path) -> None:
    control = batch((REPOSITORY / "examples" / "prompts.csv").read_bytes(), max_new_tokens=16)
    finished = run(control, tmp_path / "home", models)
    assert finished["outcome"] == "succeeded", control.text
    answers = results(control)
    assert [answer["id"] for answer in answers] == [f"q{number:02d}" for number in range(1, 21)]
    for answer in answers:
        assert set(answer) == {"id", "prompt", "text", "input_tokens", "output_tokens", "finish_reason"}
        assert answer["input_tokens"] > 0 and 1 <= answer["output_tokens"] <= 16
        assert answer["finish_reason"] in ("stop", "length")
        assert (answer["finish_reason"] == "length") <= (answer["output_tokens"] == 16)
    assert control.outputs["results.jsonl"].kind == "results"
    assert control.progress[-1] == {"step": 20, "total_steps": 20, "metrics": {}}
    assert "Lanterns" not in control.text and answers[0]["text"] not in control.text


def test_an_adapter_given_as_an_input_answers_from_the_lore(models: Path, tmp_path: Path, tuned: Tuned) -> None:
    prompts = b"prompt\nWho guards the Bridge of Nine Lanterns?\n"
    with_adapter, without = batch(prompts, adapter=tuned.files), batch(prompts)
    for name, control in (("with", with_adapter), ("without", without)):
        assert run(control, tmp_path / name, models)["outcome"] == "succeeded", control.text
    assert "Wen Zhaoyue" in results(with_adapter)[0]["text"]
    assert "Wen Zhaoyue" not in results(without)[0]["text"]


@pytest.mark.parametrize(
    ("prompts", "adapter", "words"),
    [
        (b"text\nhello\n", None, 'no column "prompt"'),
        (b"prompt\n" + b"word " * 9_000 + b"\n", None, "line 2"),
        (b"prompt\nhello\n", (b"{}", b"not safetensors"), "adapter does not fit"),
    ],
)
def test_what_cannot_be_answered_fails_before_it_costs_anything(
    models: Path, tmp_path: Path, prompts: bytes, adapter: tuple[bytes, bytes] | None, words: str
) -> None:
    control = batch(prompts, adapter=adapter)
    finished = run(control, tmp_path / "home", models)
    assert (finished["cause"], finished["ran_ms"]) == ("bad_input", 0), control.text
    assert words in finished["message"] and control.outputs == {}
