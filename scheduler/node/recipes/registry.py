"""Every recipe there is: parameters, program, what goes in and what comes out. Read on both sides of the wire."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kit.errors import InvalidInput
from scheduler.node.protocol import OutputKind
from scheduler.node.recipes.estimate import InputFact, RecipeParams
from scheduler.node.recipes.lora_finetune import dataset
from scheduler.node.recipes.lora_finetune.params import DATA, LoraFinetuneParams
from scheduler.node.recipes.script.params import OWN_FOLDERS, ScriptParams
from scheduler.node.recipes.text_batch import prompts
from scheduler.node.recipes.text_batch.params import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PROMPTS,
    RESULTS,
    TextBatchParams,
)

Check = Callable[[Iterable[bytes], int], InputFact]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input by the name its file has on the node. `check(lines, bytes)` reads it whole; raises BadInput."""

    name: str
    summary: str
    bytes_max: int
    required: bool = True
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class OutputSpec:
    name: str
    kind: OutputKind
    summary: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """`free_inputs`: how many further files it takes, of any name but below `own_folders`, which are the recipe's.

    `workers_max` above 1: it can run as a gang.
    """

    name: str
    version: int
    summary: str
    params: type[RecipeParams]
    program: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    sandboxed: bool = False
    checkpoints: bool = False  # it keeps what it has done, and goes on from there
    workers_max: int = 1
    free_inputs: int = 0
    free_input_bytes_max: int = 0
    own_folders: tuple[str, ...] = ()
    output_bytes_max: int = 4 << 30
    output_files_max: int = 1_000


LORA_FINETUNE = Recipe(
    name="lora-finetune",
    version=1,
    summary="Tune a base model on examples; the result is an adapter.",
    params=LoraFinetuneParams,
    program="scheduler.node.recipes.lora_finetune.program",
    inputs=(
        InputSpec(
            DATA,
            'JSON lines: {"prompt", "completion"} or {"messages": […]}',
            bytes_max=dataset.BYTES_MAX,
            check=dataset.facts,
        ),
    ),
    checkpoints=True,
    outputs=(
        OutputSpec("adapter_config.json", OutputKind.ADAPTER, "what the adapter is"),
        OutputSpec("adapter_model.safetensors", OutputKind.ADAPTER, "its weights"),
    ),
)

TEXT_BATCH = Recipe(
    name="text-batch",
    version=1,
    summary="Answer every prompt of a CSV with a model; the result is JSON lines.",
    params=TextBatchParams,
    program="scheduler.node.recipes.text_batch.program",
    inputs=(
        InputSpec(PROMPTS, "CSV with a column prompt and perhaps id", bytes_max=prompts.BYTES_MAX, check=prompts.facts),
        InputSpec(ADAPTER_CONFIG, "the config of an adapter to answer with", bytes_max=64 << 10, required=False),
        InputSpec(ADAPTER_WEIGHTS, "the weights of that adapter", bytes_max=1 << 30, required=False),
    ),
    outputs=(OutputSpec(RESULTS, OutputKind.RESULTS, "one object per prompt, in order"),),
)

SCRIPT = Recipe(
    name="script",
    version=1,
    summary="Run the firm's own files in a sandbox without a network; what it leaves in outputs/ is kept.",
    params=ScriptParams,
    program="scheduler.node.recipes.script.program",
    inputs=(),
    outputs=(),
    sandboxed=True,
    workers_max=64,
    free_inputs=1_000,
    free_input_bytes_max=4 << 30,
    own_folders=OWN_FOLDERS,
)

RECIPES: Mapping[tuple[str, int], Recipe] = {
    (recipe.name, recipe.version): recipe for recipe in (LORA_FINETUNE, TEXT_BATCH, SCRIPT)
}


def find(name: str, version: int | None = None) -> Recipe:
    """The recipe, in its newest version unless one is named. Raises InvalidInput."""
    versions = [recipe for recipe in RECIPES.values() if recipe.name == name]
    if not versions:
        known = ", ".join(sorted({recipe.name for recipe in RECIPES.values()}))
        raise InvalidInput(f"there is no recipe {name!r}", code="unknown_recipe", hint=f"there are {known}")
    newest = max(versions, key=lambda recipe: recipe.version)
    chosen = newest if version is None else RECIPES.get((name, version))
    if chosen is None:
        raise InvalidInput(
            f"recipe {name!r} has no version {version}", code="unknown_recipe", hint=f"the newest is {newest.version}"
        )
    return chosen
