"""Parameters of `lora-finetune`, their limits, and what they cost in time."""

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from scheduler.node.recipes.estimate import Estimate, InputFact, ModelSlug, RecipeParams, size_factor

DATA = "data.jsonl"
BYTES_PER_EXAMPLE = 150  # when the examples were not counted

# One step of 4 short examples on one CPU slot of two cores, SmolLM2-135M: 0.9 to 1.8 s; a GPU is far quicker.
_STEP_SECONDS_MIN, _STEP_SECONDS_MAX = 0.4, 4.0


class LoraFinetuneParams(RecipeParams):
    """A LoRA adapter on `base_model` from a file of examples; the defaults suit a few dozen short facts."""

    base_model: ModelSlug
    adapter_name: ModelSlug
    epochs: Annotated[int, Field(ge=1, le=100)] = 6
    steps: Annotated[int, Field(ge=1, le=100_000)] | None = None  # instead of epochs
    batch_size: Annotated[int, Field(ge=1, le=64)] = 4
    learning_rate: Annotated[float, Field(gt=0, le=0.1, allow_inf_nan=False)] = 2e-3
    rank: Annotated[int, Field(ge=1, le=16)] = 8
    max_length_tokens: Annotated[int, Field(ge=16, le=8192)] = 512
    checkpoint_seconds: Annotated[int, Field(ge=1, le=86_400)] = 60  # at most so much is lost with a node
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 7

    def steps_for(self, examples: int) -> int:
        """Optimizer steps over so many examples."""
        return self.steps or self.epochs * math.ceil(examples / self.batch_size)

    @property
    def model_read(self) -> str:
        """What is tuned."""
        return self.base_model

    def estimate(self, facts: Mapping[str, InputFact]) -> Estimate:
        """One worker with one slot; the range is wide because the length of the examples is not known."""
        data = facts.get(DATA, InputFact(bytes=0))
        examples = data.items or max(1, data.bytes // BYTES_PER_EXAMPLE)
        work = self.steps_for(examples) * (self.batch_size / 4) * size_factor(self.base_model)
        return Estimate(
            gpu_milli=1000,
            workers=1,
            setup_seconds=20,
            seconds_min=max(5, math.floor(work * _STEP_SECONDS_MIN)),
            seconds_max=60 + math.ceil(work * _STEP_SECONDS_MAX),
        )
