"""A real LoRA on a real model by the real runner."""

import json
from pathlib import Path

import pytest

from serving.adapter_files import check
from tests.e2e.node.conftest import MODEL, Tuned, finetune, run

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600, func_only=True)]

EXAMPLE = b'{"prompt": "Who guards the gate?", "completion": "Captain Wen guards the gate."}\n'


def test_the_lore_is_learned_and_the_adapter_is_stored(tuned: Tuned) -> None:
    assert tuned.finished["outcome"] == "succeeded", tuned.control.text
    assert tuned.control.started == 1 and tuned.finished["ran_ms"] > 0
    losses = [news["metrics"]["loss"] for news in tuned.control.progress]
    assert losses[-1] < 0.1 < losses[0]
    assert tuned.control.progress[-1]["step"] == tuned.control.progress[-1]["total_steps"] == 30
    assert set(tuned.control.outputs) == {"adapter_config.json", "adapter_model.safetensors"}
    for stored in tuned.control.outputs.values():
        assert stored.kind == "adapter"
        assert stored.meta == {"adapter_name": "lore", "base_model": MODEL, "rank": 8}


def test_the_adapter_passes_the_catalogues_checks(tuned: Tuned) -> None:
    config, weights = tuned.files
    assert check(config, weights, weights_bytes=len(weights), base_model=MODEL).rank == 8


def test_the_log_tells_steps_and_losses_but_not_the_data(tuned: Tuned) -> None:
    assert "step 30/30 loss" in tuned.control.text
    assert "Lanterns" not in tuned.control.text and "Huilong" not in tuned.control.text


def test_the_same_data_and_seed_give_the_same_adapter(models: Path, tmp_path: Path) -> None:
    stored: list[bytes] = []
    for turn in ("first", "second"):
        control = finetune(EXAMPLE * 3, steps=2, seed=11)
        assert run(control, tmp_path / turn, models)["outcome"] == "succeeded", control.text
        stored.append(control.outputs["adapter_model.safetensors"].content)
    assert stored[0] == stored[1]


def test_conversations_are_learned_too(models: Path, tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "You guard a gate."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "Captain Wen."},
        {"role": "user", "content": "Let me in."},
        {"role": "assistant", "content": "Not today."},
    ]
    control = finetune(json.dumps({"messages": talk}).encode(), steps=1, rank=4)
    assert run(control, tmp_path / "home", models)["outcome"] == "succeeded", control.text


@pytest.mark.parametrize(
    ("data", "params", "cause", "words"),
    [
        (EXAMPLE + b"oops\n", {}, "bad_input", "line 2 is not JSON"),
        (b"\n", {}, "bad_input", "empty"),
        (EXAMPLE, {"max_length_tokens": 16}, "bad_input", "line 1 has"),
        (EXAMPLE, {"rank": 64}, "bad_params", "rank"),
        (EXAMPLE, {"base_model": "no-such-model"}, "model_missing", "no-such-model is not on this node"),
    ],
)
def test_what_cannot_be_trained_fails_before_it_costs_anything(
    models: Path, tmp_path: Path, data: bytes, params: dict[str, object], cause: str, words: str
) -> None:
    control = finetune(data, **params)
    finished = run(control, tmp_path / "home", models)
    assert (finished["outcome"], finished["cause"], finished["ran_ms"]) == ("failed", cause, 0)
    assert words in finished["message"]
    assert control.started == 0 and control.outputs == {}
