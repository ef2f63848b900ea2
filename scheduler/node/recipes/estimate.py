"""What a recipe says of itself before it runs: how much it needs, how long it takes. Pure: no torch, no files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict

from kit.patterns import Pattern

ModelSlug = Annotated[
    str,
    Pattern(
        r"^[a-z0-9][a-z0-9.\-]{0,62}[a-z0-9]$",
        "it is named by 2 to 64 of a-z, 0-9, '.' and '-', with a letter or digit at both ends",
        "smollm2-135m-instruct",
    ),
]

_MODEL_SIZE = re.compile(r"(?:^|-)(\d+(?:\.\d+)?)([mb])(?:-|$)")
_REFERENCE_PARAMETERS = 135_000_000


@dataclass(frozen=True, slots=True)
class InputFact:
    """What is known of an input: its size, and how many examples or prompts it holds when that was counted."""

    bytes: int
    items: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """The least it needs; paid time lies in `[seconds_min, seconds_max]`, and `setup_seconds` before it are free."""

    gpu_milli: int  # per worker
    workers: int
    setup_seconds: int
    seconds_min: int
    seconds_max: int

    def __post_init__(self) -> None:
        assert 0 < self.seconds_min <= self.seconds_max, "an estimate is a range of positive seconds"


class RecipeParams(BaseModel):
    """Closed and strict: an unknown name, a wrong type or a number out of range is refused before anything is held."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @property
    def model_read(self) -> str | None:
        """The base model that the program loads."""
        return None

    def estimate(self, facts: Mapping[str, InputFact]) -> Estimate:
        """Need and duration with these inputs."""
        raise NotImplementedError


def size_factor(model: str) -> float:
    """How many times larger the model is than the one that was measured, by its name; 1 when it says nothing."""
    found = _MODEL_SIZE.search(model)
    if found is None:
        return 1.0
    parameters = float(found[1]) * (1e9 if found[2] == "b" else 1e6)
    return max(parameters / _REFERENCE_PARAMETERS, 0.1)
