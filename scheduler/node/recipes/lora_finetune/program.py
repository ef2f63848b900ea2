"""`lora-finetune`: a LoRA adapter on a base model, by peft. Same data, parameters and hardware: same adapter."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from scheduler.node.outputs import ManifestEntry, write_manifest
from scheduler.node.protocol import Cause, OutputKind
from scheduler.node.recipes.entry import CannotRun, Task, model_folder, run
from scheduler.node.recipes.loading import load
from scheduler.node.recipes.lora_finetune.dataset import parse
from scheduler.node.recipes.lora_finetune.examples import Tokens, collate, tokenize
from scheduler.node.recipes.lora_finetune.params import DATA, LoraFinetuneParams
from scheduler.node.recipes.lora_finetune.resuming import STOPPED_EXIT_CODE, Course, StopWish

# Attention's query and value, where LoRA began (Hu et al., 2021, §4.2), and the two large layers of the feed-forward
# block, where facts sit: with them the lore is known after half as many steps.
_TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")
_WARMUP_STEPS = 3
_GRADIENT_NORM_MAX = 1.0


def main(task: Task) -> int:
    """Train, from where an earlier attempt was, and leave the adapter's two files; the exit code."""
    params = LoraFinetuneParams.model_validate(task.params)
    with (task.inputs / DATA).open("rb") as file:
        examples = parse(file)
    torch.manual_seed(params.seed)
    base, tokenizer = load(model_folder(params.base_model))
    rows = tokenize(examples, tokenizer, params.max_length_tokens)
    targets = _targets(base)
    config = LoraConfig(
        r=params.rank, lora_alpha=2 * params.rank, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    task.report.started()
    if not _train(model, rows, params, tokenizer.pad_token_id or tokenizer.eos_token_id, task):
        return STOPPED_EXIT_CODE
    _save(model, params, targets, task.outputs)
    return 0


def _targets(base: Any) -> list[str]:
    """The modules to adapt, by their last name."""
    linear = {name.rsplit(".", 1)[-1] for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    chosen = [name for name in _TARGETS if name in linear] or sorted(linear - {"lm_head"})
    if not chosen:
        raise CannotRun(Cause.BAD_PARAMS, "the base model has no linear layers that a LoRA could adapt")
    return chosen


def _train(model: Any, rows: list[Tokens], params: LoraFinetuneParams, pad: int, task: Task) -> bool:
    """All steps, or those before the wish to stop; whether it was all. What is done is kept as it goes."""
    model.train()
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=params.learning_rate, weight_decay=0.0)
    steps = params.steps_for(len(rows))
    course = Course(weights, optimizer, torch.Generator().manual_seed(params.seed), [])
    course.take_up(task.checkpoint)
    wish, kept_at = StopWish(), time.monotonic()
    while course.step < steps:
        if not course.waiting:
            course.waiting = torch.randperm(len(rows), generator=course.order).tolist()
        chosen, course.waiting = course.waiting[: params.batch_size], course.waiting[params.batch_size :]
        loss = model(**collate([rows[index] for index in chosen], pad, model.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), _GRADIENT_NORM_MAX)
        for group in optimizer.param_groups:
            group["lr"] = params.learning_rate * _rate(course.step, steps)
        optimizer.step()
        optimizer.zero_grad()
        course.step += 1
        value = loss.item()
        if not math.isfinite(value):
            raise CannotRun(
                Cause.PROGRAM_FAILED, f"the loss is not a number at step {course.step}; lower learning_rate"
            )
        task.report.progress(course.step, steps, loss=round(value, 4))
        print(f"step {course.step}/{steps} loss {value:.4f}", flush=True)  # noqa: T201 - the job's log
        if course.step < steps and (wish.is_made or time.monotonic() - kept_at >= params.checkpoint_seconds):
            course.write(task.checkpoint)
            task.save(course.step)
            kept_at = time.monotonic()
            if wish.is_made:
                return False
    return True


def _rate(done: int, steps: int) -> float:
    """The part of the learning rate for the next step: a short warm-up, then falling in a line."""
    return min(1.0, (done + 1) / _WARMUP_STEPS) * max(0.05, 1 - done / steps)


def _save(model: Any, params: LoraFinetuneParams, targets: list[str], outputs: Path) -> None:
    """Weights without pickle, and a config that says only what is known to be understood."""
    state = {
        name: weight.detach().to("cpu", torch.float32).contiguous()
        for name, weight in sorted(get_peft_model_state_dict(model).items())
    }
    save_file(state, outputs / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": params.base_model,
        "r": params.rank,
        "lora_alpha": 2 * params.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    (outputs / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    meta = {"adapter_name": params.adapter_name, "base_model": params.base_model, "rank": params.rank}
    names = ("adapter_config.json", "adapter_model.safetensors")
    write_manifest(outputs, [ManifestEntry(name=name, kind=OutputKind.ADAPTER, meta=meta) for name in names])


if __name__ == "__main__":
    run(main)
