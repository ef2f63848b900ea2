"""Parameters of `script`, their limits, and what they cost in time."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, field_validator

from scheduler.node.recipes.estimate import Estimate, InputFact, RecipeParams

OWN_FOLDERS = ("outputs", "checkpoint")
"""Mounted in a script's folder: what it makes, and what its next attempt finds."""
Argument = Annotated[str, Field(max_length=4096)]


class ScriptParams(RecipeParams):
    """A command over the firm's own files. What it leaves in `outputs/` is kept."""

    command: Annotated[list[Argument], Field(min_length=1, max_length=256)]
    runtime_seconds_max: Annotated[int, Field(ge=1, le=7 * 86_400)] = 3600

    @field_validator("command")
    @classmethod
    def _plain(cls, command: list[str]) -> list[str]:
        if not command[0].strip() or any("\0" in argument for argument in command):
            raise ValueError("the first word of a command is a program, and no word holds a zero byte")
        return command

    def estimate(self, facts: Mapping[str, InputFact]) -> Estimate:
        """Nobody knows how long a script takes: up to what it asks for. Its submitter sets workers and their size."""
        return Estimate(
            gpu_milli=1000,
            workers=1,
            setup_seconds=10,
            seconds_min=1,
            seconds_max=self.runtime_seconds_max,
        )
