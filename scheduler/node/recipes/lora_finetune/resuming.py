"""A fine-tune half done: its weights, the optimizer's memory and the order of what is left, written without pickle."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from safetensors.torch import load_file, save_file

_TENSORS, _COURSE = "course.safetensors", "course.json"
_MEMORY = ("exp_avg", "exp_avg_sq")  # what AdamW remembers of each weight (Loshchilov and Hutter, 2019)
STOPPED_EXIT_CODE = 143
"""What a program told to stop exits with: 128 + SIGTERM."""


@dataclass(slots=True)
class Course:
    """All that the next step depends on. `waiting` are the examples left in this pass."""

    weights: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    order: torch.Generator
    waiting: list[int]
    step: int = 0

    def write(self, folder: Path) -> None:
        """Lay it down, in place of an earlier one."""
        tensors = {"order": self.order.get_state()}
        for name, weight in self.weights.items():
            tensors[f"weight/{name}"] = weight.detach().to("cpu").contiguous()
            for part in _MEMORY:
                tensors[f"{part}/{name}"] = self.optimizer.state[weight][part].to("cpu").contiguous()
        save_file(tensors, folder / _TENSORS)
        said = json.dumps({"step": self.step, "waiting": self.waiting})
        (folder / _COURSE).write_text(said, encoding="utf-8")

    def take_up(self, folder: Path) -> None:
        """Go on from what lies there; an empty folder changes nothing."""
        if not (folder / _COURSE).is_file():
            return
        said = json.loads((folder / _COURSE).read_bytes())
        tensors = load_file(folder / _TENSORS)
        self.step, self.waiting = int(said["step"]), [int(index) for index in said["waiting"]]
        self.order.set_state(tensors["order"])
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[f"weight/{name}"])
                self.optimizer.state[weight] = {
                    "step": torch.tensor(float(self.step)),
                    **{part: tensors[f"{part}/{name}"].to(weight.device) for part in _MEMORY},
                }


class StopWish:
    """Whether the runner has asked the program to end, with its grace running."""

    def __init__(self) -> None:
        self.is_made = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.is_made = True
