"""Parameters of `text-batch`, their limits, and what they cost in time."""

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from scheduler.node.recipes.estimate import Estimate, InputFact, ModelSlug, RecipeParams, size_factor

PROMPTS = "prompts.csv"
ADAPTER_CONFIG = "adapter/adapter_config.json"
ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
RESULTS = "results.jsonl"
BYTES_PER_PROMPT = 80  # when the prompts were not counted

# One token for each of a batch of 8 on one CPU slot of two cores, SmolLM2-135M: 0.06 to 0.15 s.
_TOKEN_STEP_SECONDS_MIN, _TOKEN_STEP_SECONDS_MAX = 0.02, 0.4


class TextBatchParams(RecipeParams):
    """Each prompt of a CSV answered by `model`; `temperature` 0 always takes the likeliest token."""

    model: ModelSlug
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 48
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    system_prompt: Annotated[str, Field(min_length=1, max_length=8000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=64)] = 8
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 7

    @property
    def model_read(self) -> str:
        """What answers."""
        return self.model

    def estimate(self, facts: Mapping[str, InputFact]) -> Estimate:
        """One worker with one slot; answers may end early, so the range reaches low."""
        prompts_file = facts.get(PROMPTS, InputFact(bytes=0))
        prompts = prompts_file.items or max(1, prompts_file.bytes // BYTES_PER_PROMPT)
        token_steps = math.ceil(prompts / self.batch_size) * self.max_new_tokens * size_factor(self.model)
        token_steps *= max(1.0, self.batch_size / 8)
        return Estimate(
            gpu_milli=1000,
            workers=1,
            setup_seconds=20,
            seconds_min=max(3, math.floor(token_steps * _TOKEN_STEP_SECONDS_MIN)),
            seconds_max=60 + math.ceil(token_steps * _TOKEN_STEP_SECONDS_MAX),
        )
