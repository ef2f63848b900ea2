"""`text-batch`: every prompt of a CSV answered by a model, optionally with an adapter. Neither side is ever logged."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from scheduler.node.outputs import ManifestEntry, write_manifest
from scheduler.node.protocol import OutputKind
from scheduler.node.recipes.bad_input import BadInput
from scheduler.node.recipes.entry import Task, model_folder, run
from scheduler.node.recipes.loading import context_tokens, load
from scheduler.node.recipes.text_batch.params import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PROMPTS,
    RESULTS,
    TextBatchParams,
)
from scheduler.node.recipes.text_batch.prompts import Prompt, parse

Row = tuple[Prompt, list[int]]


def main(task: Task) -> None:
    """Answer all prompts and leave one JSON object for each, in the file's order."""
    params = TextBatchParams.model_validate(task.params)
    with (task.inputs / PROMPTS).open("rb") as file:
        prompts = parse(file)
    model, tokenizer = load(model_folder(params.model))
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if (task.inputs / ADAPTER_WEIGHTS).exists():
        model = _with_adapter(model, task.inputs)
    rows = _tokenized(prompts, tokenizer, params, context_tokens(model))
    task.report.started()
    answers: dict[int, dict[str, Any]] = {}
    for batch in _batches(rows, params.batch_size):
        for (prompt, _), answer in zip(batch, _answered(batch, model, tokenizer, params), strict=True):
            answers[prompt.line] = answer
        task.report.progress(len(answers), len(rows))
        print(f"answered {len(answers)} of {len(rows)} prompts", flush=True)  # noqa: T201 - the job's log
    _save([answers[prompt.line] for prompt in prompts], task.outputs)


def _with_adapter(model: Any, inputs: Path) -> Any:
    """The model with a LoRA rebuilt from the values it needs; of the config nothing else is read."""
    try:
        config = json.loads((inputs / ADAPTER_CONFIG).read_bytes())
        lora = LoraConfig(
            r=int(config["r"]),
            lora_alpha=float(config["lora_alpha"]),
            target_modules=[str(name) for name in config["target_modules"]],
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(model, lora)
        left = set_peft_model_state_dict(adapted, load_file(inputs / ADAPTER_WEIGHTS))
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise BadInput(f"the adapter does not fit the model ({type(error).__name__})", code="bad_adapter") from None
    if left.unexpected_keys:
        raise BadInput("the adapter holds weights the model has no place for", code="bad_adapter")
    return adapted.eval()


def _tokenized(prompts: list[Prompt], tokenizer: Any, params: TextBatchParams, context: int) -> list[Row]:
    rows: list[Row] = []
    for prompt in prompts:
        ids = _ids(prompt.text, tokenizer, params.system_prompt)
        if len(ids) + params.max_new_tokens > context:
            raise BadInput(
                f"line {prompt.line}: {len(ids)} tokens and {params.max_new_tokens} new ones exceed {context}",
                code="prompt_too_long",
            )
        rows.append((prompt, ids))
    return rows


def _ids(text: str, tokenizer: Any, system_prompt: str | None) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer(f"{system_prompt}\n{text}" if system_prompt else text)["input_ids"])
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages.append({"role": "user", "content": text})
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))


def _batches(rows: list[Row], size: int) -> Iterator[list[Row]]:
    """Prompts of similar length together: less padding to compute."""
    by_length = sorted(rows, key=lambda row: (len(row[1]), row[0].line))
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]


def _answered(batch: list[Row], model: Any, tokenizer: Any, params: TextBatchParams) -> Iterator[dict[str, Any]]:
    padded = tokenizer.pad({"input_ids": [ids for _, ids in batch]}, return_tensors="pt").to(model.device)
    sampling = (
        {"do_sample": True, "temperature": params.temperature, "top_p": params.top_p, "top_k": 0}
        if params.temperature > 0
        else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    )
    torch.manual_seed(params.seed)
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends if ends is not None else tokenizer.eos_token_id}
    with torch.inference_mode():
        output = model.generate(
            **padded, max_new_tokens=params.max_new_tokens, pad_token_id=tokenizer.pad_token_id, **sampling
        )
    width = padded["input_ids"].shape[1]
    for (prompt, ids), generated in zip(batch, output[:, width:].tolist(), strict=True):
        end = next((place for place, token in enumerate(generated) if token in ends), None)
        tokens = generated if end is None else generated[:end]
        yield {
            "id": prompt.id,
            "prompt": prompt.text,
            "text": tokenizer.decode(tokens, skip_special_tokens=True),
            "input_tokens": len(ids),
            "output_tokens": len(tokens) if end is None else end + 1,
            "finish_reason": "length" if end is None else "stop",
        }


def _save(answers: list[dict[str, Any]], outputs: Path) -> None:
    with (outputs / RESULTS).open("w", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")
    write_manifest(outputs, [ManifestEntry(name=RESULTS, kind=OutputKind.RESULTS, meta={"prompts": len(answers)})])


if __name__ == "__main__":
    run(main)
