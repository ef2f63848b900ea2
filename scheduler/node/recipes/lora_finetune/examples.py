"""Examples as token ids: the chat template the model was tuned with, and labels on the assistant's words only."""

from dataclasses import dataclass
from typing import Any

import torch

from scheduler.node.recipes.bad_input import BadInput
from scheduler.node.recipes.lora_finetune.dataset import Example

IGNORED = -100  # a label the loss does not look at


@dataclass(frozen=True, slots=True)
class Tokens:
    ids: list[int]
    labels: list[int]


def tokenize(examples: list[Example], tokenizer: Any, max_length_tokens: int) -> list[Tokens]:
    """One entry per example. Raises BadInput naming the line that is too long or cannot be laid out."""
    rows: list[Tokens] = []
    for example in examples:
        row = _conversation(example, tokenizer) if tokenizer.chat_template else _plain(example, tokenizer)
        if len(row.ids) > max_length_tokens:
            raise BadInput(
                f"line {example.line} has {len(row.ids)} tokens; max_length_tokens is {max_length_tokens}",
                code="line_too_long",
            )
        rows.append(row)
    return rows


def collate(rows: list[Tokens], pad: int, where: torch.device) -> dict[str, torch.Tensor]:
    """A padded batch."""
    width = max(len(row.ids) for row in rows)

    def padded(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (width - len(values))

    return {
        "input_ids": torch.tensor([padded(row.ids, pad) for row in rows], device=where),
        "attention_mask": torch.tensor([padded([1] * len(row.ids), 0) for row in rows], device=where),
        "labels": torch.tensor([padded(row.labels, IGNORED) for row in rows], device=where),
    }


def _conversation(example: Example, tokenizer: Any) -> Tokens:
    messages = [{"role": message.role, "content": message.content} for message in example.messages]
    ids: list[int] = []
    labels: list[int] = []
    for position, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _laid_out(tokenizer, messages[:position], prompt=True)
        after = _laid_out(tokenizer, messages[: position + 1], prompt=False)
        if after[: len(before)] != before or before[: len(ids)] != ids:
            raise BadInput(f"line {example.line}: the model's chat template has no place for it", code="bad_messages")
        labels += [IGNORED] * (len(before) - len(ids)) + after[len(before) :]
        ids = after
    return Tokens(ids, labels)


def _laid_out(tokenizer: Any, messages: list[dict[str, str]], *, prompt: bool) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=True, return_dict=False))


def _plain(example: Example, tokenizer: Any) -> Tokens:
    """A model without a chat template continues text: everything before the last message is the prompt."""
    *context, answer = (message.content for message in example.messages)
    before = list(tokenizer("\n".join(context) + "\n")["input_ids"])
    after = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return Tokens(before + after, [IGNORED] * len(before) + after)
