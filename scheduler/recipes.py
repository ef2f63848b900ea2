"""Recipes as the control plane uses them: their own code checks parameters and data before submission."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from kit.errors import InvalidInput, TooLarge
from scheduler.node.recipes import registry
from scheduler.node.recipes.estimate import InputFact, RecipeParams
from scheduler.node.recipes.registry import Check, Recipe

LIMIT_FACTOR = 2
"""A job that names no maximum may run for this many times the upper end of its recipe's estimate."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job's program and how long it takes, in seconds; `basis` says where that comes from."""

    recipe: Recipe
    params: dict[str, Any]
    seconds_min: int
    expected_seconds: int
    max_runtime_seconds: int
    basis: str
    estimated_seconds: int = 1  # by the recipe alone
    model: str | None = None  # the base model that its program reads


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file a job brings: its size, and its bytes when they are asked for."""

    size_bytes: int
    chunks: AsyncIterator[bytes]


async def prepare(
    name: str, params: Mapping[str, Any], files: Mapping[str, DataFile], max_runtime_seconds: int | None
) -> Prepared:
    """Check a job with its recipe and learn how long it takes.

    Raises InvalidInput for an unknown recipe, a parameter out of range, a file that is missing, not asked for, empty
    or malformed (naming the line), TooLarge for a file over its limit.
    """
    recipe = registry.find(name)
    checked = _params(recipe, params)
    _names(recipe, files)
    facts: dict[str, InputFact] = {}
    checks = {spec.name: spec.check for spec in recipe.inputs}
    for file_name, file in files.items():
        check = checks.get(file_name)
        facts[file_name] = await _fact(file_name, file, check) if check else InputFact(file.size_bytes)
    estimate = checked.estimate(facts)
    limit = max_runtime_seconds or LIMIT_FACTOR * estimate.seconds_max
    expected = (estimate.seconds_min + estimate.seconds_max) // 2
    return Prepared(
        recipe,
        checked.model_dump(mode="json"),
        seconds_min=min(estimate.seconds_min, limit),
        expected_seconds=max(1, min(expected, limit)),
        max_runtime_seconds=limit,
        basis=f"the estimate of {recipe.name}, between {estimate.seconds_min} and {estimate.seconds_max} s",
        estimated_seconds=max(1, min(expected, limit)),
        model=checked.model_read,
    )


def _params(recipe: Recipe, params: Mapping[str, Any]) -> RecipeParams:
    try:
        return recipe.params.model_validate_json(json.dumps(params))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(("params", *(str(part) for part in fault["loc"])))
        raise InvalidInput(f"{where}: {fault['msg']}", code="bad_params", hint=recipe.summary) from None


def _names(recipe: Recipe, files: Mapping[str, DataFile]) -> None:
    limits = {spec.name: spec.bytes_max for spec in recipe.inputs}
    for spec in recipe.inputs:
        if spec.required and spec.name not in files:
            raise InvalidInput(f"it needs an input {spec.name}", code="missing_input", hint=spec.summary)
    free = [name for name in files if name not in limits]
    if len(free) > recipe.free_inputs:
        known = ", ".join(limits) or "no input"
        hint = f"{recipe.name} takes {known}" if not recipe.free_inputs else f"at most {recipe.free_inputs} files"
        raise InvalidInput(f"it does not take an input {free[-1]}", code="unknown_input", hint=hint)
    for name in free:
        if name.partition("/")[0] in recipe.own_folders:
            raise InvalidInput(
                f"an input cannot be named {name}: {recipe.name} has its own {' and '.join(recipe.own_folders)}",
                code="bad_input_name",
                hint="give it another name",
            )
    for name, file in files.items():
        most = limits.get(name, recipe.free_input_bytes_max)
        if file.size_bytes > most:
            raise TooLarge(
                f"{name} has {file.size_bytes:,} bytes; {recipe.name} takes {most:,}",
                code="file_too_large",
                hint="split it, and make several jobs of it",
            )


async def _fact(name: str, file: DataFile, check: Check) -> InputFact:
    content = b"".join([chunk async for chunk in file.chunks])  # its size was just bounded
    try:
        return await asyncio.to_thread(check, content.splitlines(keepends=True), len(content))
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error.message}", code=error.code, hint=error.hint) from None
