"""A real fine-tune on a real Ray, killed half-way: another attempt ends it from what the first one kept."""

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.node.conftest import MODEL
from tests.e2e.node.conftest import models as models
from tests.e2e.scheduler.test_jobs_on_ray import Platform
from tests.e2e.scheduler.test_jobs_on_ray import home as home
from tests.e2e.scheduler.test_jobs_on_ray import platform as platform
from tests.e2e.scheduler.test_jobs_on_ray import ray_head as ray_head
from tests.support.until import until_async

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(400, func_only=True)]

PROGRAM = b"scheduler.node.recipes.lora_finetune.program"
EXAMPLE = b'{"prompt": "Who guards the gate?", "completion": "Captain Wen."}\n'
STEPS = 12


@pytest.fixture
def models_of_the_node(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's programs find the prepared model."""
    monkeypatch.setenv("HELIU_MODELS_DIR", str(models))


def program_of(home: Path) -> int:
    """The process of the fine-tune that runs below this home."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if PROGRAM in command and str(home).encode() in command:
                return int(entry.name)
    raise AssertionError("no fine-tune runs here")


async def test_a_fine_tune_killed_half_way_ends_with_all_its_steps_and_only_what_was_lost_is_free(
    models_of_the_node: None, platform: Platform, home: Path
) -> None:
    firm = await platform.city.firm()
    upload = await platform.city.upload(firm, "data.jsonl", EXAMPLE * 3)
    params = {
        "base_model": MODEL, "adapter_name": "wen", "steps": STEPS, "batch_size": 1, "checkpoint_seconds": 1,
    }  # fmt: skip
    body = {
        "recipe": "lora-finetune", "params": params, "pools": ["optics-valley/cpu-slot"], "max_runtime_seconds": 300,
        "inputs": [{"name": "data.jsonl", "source_id": upload}],
    }  # fmt: skip
    answer = await firm.http.post("/api/jobs", json=body)
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]

    async def kept() -> bool:
        return ((await platform.city.view(firm, job_id))["checkpoint"] or {}).get("step", 0) >= 2

    await until_async(kept, seconds=120, what="a checkpoint")
    os.kill(program_of(home), signal.SIGKILL)
    seen = await platform.becomes(firm, job_id, "succeeded", "failed")
    assert (seen["state"], [one["cause"] for one in seen["attempts"]]) == ("succeeded", ["platform", "done"]), seen
    first, second = seen["attempts"]
    assert 0 < first["kept_ms"] < first["ran_ms"]
    lines = [line["text"] for line in (await firm.http.get(f"/api/jobs/{job_id}/logs")).json()["lines"]]
    (told,) = [line for line in lines if "goes on from the checkpoint of step" in line]
    step = int(told.rsplit(" ", 1)[1])
    again = lines[lines.index(told) :]
    done = [line.split()[1] for line in again if line.startswith("step ")]
    assert done == [f"{number}/{STEPS}" for number in range(step + 1, STEPS + 1)], "no step is missing, none is twice"
    assert {artifact["name"] for artifact in seen["artifacts"]} == {"adapter_config.json", "adapter_model.safetensors"}
    assert seen["charged_micro_yuan"] == first["kept_ms"] + second["ran_ms"], "a micro-yuan for each kept millisecond"
    assert seen["lost_gpu_ms"] == first["ran_ms"] - first["kept_ms"]
    assert await platform.city.open_holds(job_id) == 0
    await platform.city.assert_ledger()
