"""What the real model's tests share: the prepared model, one real fine-tune, one real engine at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempts import REPOSITORY, ControlPlaneStandIn, plan, running, serving
from tests.support.machine_lock import ENGINE_LOCK, machine_locks
from tests.support.needs import need
from tests.support.running_platform import prepared_models

MODEL = "smollm2-135m-instruct"
FINETUNE = "scheduler.node.recipes.lora_finetune.program"


@dataclass(frozen=True)
class Tuned:
    """A finished fine-tune on the example lore."""

    control: ControlPlaneStandIn
    finished: dict[str, Any]

    @property
    def files(self) -> tuple[bytes, bytes]:
        """(config, weights)."""
        stored = self.control.outputs
        return stored["adapter_config.json"].content, stored["adapter_model.safetensors"].content


@pytest.fixture(scope="session")
def models() -> Path:
    folder = prepared_models()
    need((folder / MODEL / "config.json").is_file(), "the prepared model", "run `make setup`")
    return folder


@pytest.fixture(scope="module")
def only_engine() -> Iterator[None]:
    """Wait until nobody else on this machine runs a real engine; for one module, as others need the lock too."""
    with machine_locks(ENGINE_LOCK):
        yield


def run(control: ControlPlaneStandIn, home: Path, models: Path, *, seconds: float = 400) -> dict[str, Any]:
    """Run an attempt to its end with the real runner; what it reported."""
    environment = {"HELIU_MODELS_DIR": str(models)}
    with serving(control), running(control, home, environment=environment) as attempt:
        code = attempt.wait(seconds)
        assert control.finished is not None, attempt.said()
        assert code == 0, attempt.said()
        return control.finished


def finetune(data: bytes, **params: Any) -> ControlPlaneStandIn:
    """An attempt of `lora-finetune` on these examples."""
    return plan(
        FINETUNE, inputs={"data.jsonl": data}, params={"base_model": MODEL, "adapter_name": "lore", **params},
        lease_seconds=60,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tuned(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """The example lore, learned with the recipe's own defaults. Once per session."""
    control = finetune((REPOSITORY / "examples" / "lore.jsonl").read_bytes())
    return Tuned(control, run(control, tmp_path_factory.mktemp("finetune") / "home", models))
