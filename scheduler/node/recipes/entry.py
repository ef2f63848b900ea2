"""How every recipe's program begins and ends: plan in, report out, and never a prompt in a traceback."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kit.errors import HeliuError
from scheduler.node.checkpoints import NotPacked, pack
from scheduler.node.protocol import Cause, Plan
from scheduler.node.recipes.bad_input import BadInput
from scheduler.node.report import Report


class CannotRun(Exception):
    """The program gives up for this cause."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message


@dataclass(frozen=True, slots=True)
class Task:
    """What a program works on."""

    plan: Plan
    folder: Path
    report: Report

    @property
    def params(self) -> dict[str, Any]:
        return self.plan.params

    @property
    def inputs(self) -> Path:
        return self.folder / "inputs"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    @property
    def checkpoint(self) -> Path:
        """What an earlier attempt kept lies here at the start; the program writes here before it calls `save`."""
        return self.folder / "checkpoint"

    def save(self, step: int) -> bool:
        """Keep what is in the checkpoint folder now: the next attempt finds it there. False when it is too large."""
        try:
            pack(self.checkpoint, self.folder / "saved", step, bytes_max=self.plan.checkpoint_bytes_max)
        except NotPacked as problem:
            print(f"the checkpoint of step {step} is not kept: {problem}", flush=True)  # noqa: T201 - the job's log
            return False
        self.report.checkpointed(step)
        return True


def run(work: Callable[[Task], int | None]) -> None:
    """Run `work` on the folder named on the command line and leave with its exit code."""
    folder = Path(sys.argv[1])
    report = Report.from_environment()
    plan = Plan.model_validate_json((folder / "plan.json").read_bytes())
    try:
        code = work(Task(plan, folder, report)) or 0
    except Exception as error:  # every end must name its cause
        cause, message = _diagnosis(error)
        if cause is Cause.PROGRAM_FAILED:
            _print_frames(error)
        report.failed(cause, message)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of libraries may not keep the slot


def models_folder() -> Path:
    """Where the node keeps prepared base models."""
    return Path(os.environ["HELIU_MODELS_DIR"])


def model_folder(slug: str) -> Path:
    """The prepared base model. Raises CannotRun."""
    folder = models_folder() / slug
    if not (folder / "config.json").is_file():
        raise CannotRun(Cause.MODEL_MISSING, f"base model {slug} is not on this node")
    return folder


def _diagnosis(error: Exception) -> tuple[Cause, str]:
    match error:
        case CannotRun():
            return error.cause, error.message
        case BadInput():
            return Cause.BAD_INPUT, error.message
        case HeliuError():
            return Cause.PROGRAM_FAILED, error.message
        case ValidationError():
            first = error.errors(include_input=False, include_url=False)[0]
            return Cause.BAD_PARAMS, f"parameter {'.'.join(map(str, first['loc']))}: {first['msg']}"
        case MemoryError():
            return Cause.OUT_OF_MEMORY, "there was not enough memory; use a smaller batch or shorter texts"
        case _ if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            return Cause.OUT_OF_MEMORY, "there was not enough GPU memory; use a smaller batch or shorter texts"
        case OSError():
            return Cause.PROGRAM_FAILED, f"{type(error).__name__}: {error.strerror}"
        case _:
            return Cause.PROGRAM_FAILED, f"the recipe failed with {type(error).__name__}; its log says where"


def _print_frames(error: Exception) -> None:
    """Where it happened. The error's own words stay out: they may quote what a firm wrote."""
    for frame in traceback.extract_tb(error.__traceback__):
        sys.stderr.write(f"  {frame.filename}:{frame.lineno} in {frame.name}\n")
    sys.stderr.write(f"{type(error).__name__}\n")
