import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from kit.errors import InvalidInput
from scheduler.node.recipes.estimate import InputFact, size_factor
from scheduler.node.recipes.lora_finetune.params import DATA, LoraFinetuneParams
from scheduler.node.recipes.registry import RECIPES, find
from scheduler.node.recipes.script.params import ScriptParams
from scheduler.node.recipes.text_batch.params import PROMPTS, TextBatchParams
from tests.support.attempts import REPOSITORY

FINETUNE = {"base_model": "smollm2-135m-instruct", "adapter_name": "lore"}
BATCH = {"model": "smollm2-135m-instruct"}
SCRIPT = {"command": ["python3", "main.py"]}


def test_the_newest_version_is_found_by_name() -> None:
    assert find("lora-finetune").version == max(version for name, version in RECIPES if name == "lora-finetune")
    assert find("script", 1).sandboxed and not find("text-batch").sandboxed


@pytest.mark.parametrize(("name", "version"), [("no-such", None), ("script", 99)])
def test_an_unknown_recipe_is_refused_and_the_known_ones_are_named(name: str, version: int | None) -> None:
    with pytest.raises(InvalidInput) as refusal:
        find(name, version)
    assert refusal.value.code == "unknown_recipe" and refusal.value.hint


def test_the_registry_loads_without_the_nodes_libraries() -> None:
    code = "import sys, scheduler.node.recipes.registry; print({'torch', 'ray', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("recipe", "params"),
    [
        ("lora-finetune", {**FINETUNE, "surprise": 1}),
        ("lora-finetune", {"base_model": "x" * 65, "adapter_name": "lore"}),
        ("lora-finetune", {**FINETUNE, "adapter_name": "../etc"}),
        ("lora-finetune", {**FINETUNE, "rank": 17}),
        ("lora-finetune", {**FINETUNE, "rank": "8"}),
        ("lora-finetune", {**FINETUNE, "rank": True}),
        ("lora-finetune", {**FINETUNE, "epochs": 0}),
        ("lora-finetune", {**FINETUNE, "epochs": -1}),
        ("lora-finetune", {**FINETUNE, "steps": 10**9}),
        ("lora-finetune", {**FINETUNE, "learning_rate": 0}),
        ("lora-finetune", {**FINETUNE, "learning_rate": float("nan")}),
        ("lora-finetune", {**FINETUNE, "learning_rate": float("inf")}),
        ("lora-finetune", {"base_model": "smollm2-135m-instruct"}),
        ("text-batch", {**BATCH, "max_new_tokens": 0}),
        ("text-batch", {**BATCH, "temperature": -0.1}),
        ("text-batch", {**BATCH, "top_p": 0}),
        ("text-batch", {**BATCH, "model": "/etc/passwd"}),
        ("script", {"command": []}),
        ("script", {"command": [" "]}),
        ("script", {"command": "rm -rf"}),
        ("script", {"command": ["a\0b"]}),
        ("script", {**SCRIPT, "runtime_seconds_max": 0}),
        ("script", {**SCRIPT, "runtime_seconds_max": 10**7}),
    ],
)
def test_parameters_out_of_range_of_the_wrong_type_or_unknown_are_refused(recipe: str, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        find(recipe).params.model_validate(params)


def test_steps_follow_from_epochs_unless_given() -> None:
    assert LoraFinetuneParams.model_validate(FINETUNE).steps_for(20) == 30
    assert LoraFinetuneParams.model_validate({**FINETUNE, "epochs": 2, "batch_size": 3}).steps_for(10) == 8
    assert LoraFinetuneParams.model_validate({**FINETUNE, "steps": 5}).steps_for(1_000) == 5


def test_an_estimate_grows_with_the_work_and_covers_what_was_measured() -> None:
    params = LoraFinetuneParams.model_validate(FINETUNE)
    few, many = (params.estimate({DATA: InputFact(bytes=1, items=n)}) for n in (20, 200))
    assert few.seconds_min <= 40 <= few.seconds_max, "30 steps take about 40 s on two cores"
    assert many.seconds_max > few.seconds_max and many.seconds_min > few.seconds_min
    batch = TextBatchParams.model_validate(BATCH)
    assert batch.estimate({PROMPTS: InputFact(bytes=1, items=20)}).seconds_max >= 20
    assert batch.estimate({PROMPTS: InputFact(bytes=160_000)}).seconds_max > 500, "without a count, by size"


def test_a_script_is_estimated_at_what_it_asks_for() -> None:
    estimate = ScriptParams.model_validate({**SCRIPT, "runtime_seconds_max": 90}).estimate({})
    assert (estimate.seconds_min, estimate.seconds_max) == (1, 90)


@pytest.mark.parametrize(("model", "factor"), [("smollm2-135m-instruct", 1), ("qwen3-0.6b", 4.4), ("gpt", 1)])
def test_a_models_name_tells_its_size(model: str, factor: float) -> None:
    assert size_factor(model) == pytest.approx(factor, rel=0.02)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_every_recipes_program_and_inputs_are_there(recipe: Any) -> None:
    assert (REPOSITORY / (recipe.program.replace(".", "/") + ".py")).exists()
    assert len({spec.name for spec in recipe.inputs}) == len(recipe.inputs)


def test_the_examples_pass_the_checks_of_their_recipes() -> None:
    for recipe, name, file, count in (
        ("lora-finetune", DATA, "lore.jsonl", 20),
        ("text-batch", PROMPTS, "prompts.csv", 20),
    ):
        content = (REPOSITORY / "examples" / file).read_bytes()
        (spec,) = (spec for spec in find(recipe).inputs if spec.name == name)
        assert spec.check is not None
        assert spec.check(content.splitlines(keepends=True), len(content)) == InputFact(len(content), count)
