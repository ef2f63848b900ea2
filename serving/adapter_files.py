"""Whether an adapter's two files may be handed to an engine: a config rebuilt from an allow-list, a safetensors header.

Nothing of what a firm's job wrote is trusted: of the config only understood values survive, of the weights
file the header must account for every byte, and every tensor must be one half of a LoRA of the stated rank.
The format: https://huggingface.co/docs/safetensors/index#format; the config: peft's LoraConfig.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from kit.errors import InvalidInput
from serving.vocabulary import ADAPTER_RANK_MAX

CONFIG_BYTES_MAX = 64 << 10
HEADER_BYTES_MAX = 4 << 20
WEIGHTS_BYTES_MAX = 1 << 30
TENSORS_MAX = 20_000
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_MODULE = re.compile(r"[A-Za-z0-9_]{1,64}(\.[A-Za-z0-9_]{1,64}){0,7}")
_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>[A-Za-z0-9_.]{1,300})\.lora_(?P<half>[AB])(?:\.[A-Za-z0-9_]{1,64})?\.weight"
)
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

# Keys with a meaning at serving time; their values are checked one by one in `rebuilt_config`.
_UNDERSTOOD = frozenset({"peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "base_model_name_or_path"})
# Keys that only matter while training, or that would make a loader import something: dropped whatever they say.
_DROPPED = frozenset(
    {
        "auto_mapping",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "loftq_config",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)


class BadAdapter(InvalidInput):
    """An adapter's files cannot be served; `code` says which rule."""

    default_code = "bad_adapter"


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What was understood: the config to serve with, and the LoRA's rank."""

    config: Mapping[str, Any]
    rank: int


def check(config_file: bytes, weights_head: bytes, *, weights_bytes: int, base_model: str) -> AdapterFiles:
    """The config rebuilt and the header verified against it. `weights_head` holds at least 8 bytes and the header.

    Raises BadAdapter, with a code that names the rule.
    """
    config = rebuilt_config(config_file, base_model=base_model)
    rank = int(config["r"])
    check_weights(weights_head, total_bytes=weights_bytes, rank=rank, modules=config["target_modules"])
    return AdapterFiles(config=config, rank=rank)


def rebuilt_config(raw: bytes, *, base_model: str) -> dict[str, Any]:
    """The values the engine needs, in a new object. Raises BadAdapter for anything not understood."""
    given = _json_object(raw, "the adapter's config", limit=CONFIG_BYTES_MAX)
    if given.get("peft_type") != "LORA":
        raise BadAdapter("the adapter is not a LoRA: peft_type must be LORA", code="adapter_not_lora")
    _refuse_unknown(given)
    named = given.get("base_model_name_or_path")
    if not isinstance(named, str) or named.rstrip("/").rsplit("/", 1)[-1] != base_model.rsplit("/", 1)[-1]:
        raise BadAdapter(f"the adapter's config names another base model than {base_model}", code="adapter_wrong_base")
    rank, alpha, modules = given.get("r"), given.get("lora_alpha"), given.get("target_modules")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= ADAPTER_RANK_MAX:
        raise BadAdapter(f"the adapter's rank must be from 1 to {ADAPTER_RANK_MAX}", code="adapter_rank")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= 4096:
        raise BadAdapter("lora_alpha must be a number above 0 and at most 4096", code="adapter_config")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _module_names(modules),
        "use_rslora": given.get("use_rslora") is True,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    """A key neither understood nor droppable may be there only if it says nothing: null, false, "none", {} or []."""
    for key, value in given.items():
        if key not in _UNDERSTOOD and key not in _DROPPED and value not in (None, False, {}, [], "none"):
            raise BadAdapter(
                f"the adapter's config sets {key[:60]!r}, which cannot be served",
                code="adapter_config",
                hint="train with plain LoRA: no bias, no DoRA, no saved modules, one rank for all layers",
            )


def _module_names(modules: object) -> list[str]:
    if not isinstance(modules, list) or not 1 <= len(cast(list[object], modules)) <= 64:
        raise BadAdapter("target_modules must be a list of 1 to 64 module names", code="adapter_config")
    names = cast(list[object], modules)
    for name in names:
        if not isinstance(name, str) or not _MODULE.fullmatch(name):
            raise BadAdapter("target_modules may hold plain module names only, no patterns", code="adapter_config")
    return sorted({str(name) for name in names})


def header_bytes(first8: bytes, *, total_bytes: int) -> int:
    """Length of the JSON header that follows the first 8 bytes. Raises BadAdapter when it cannot be safetensors."""
    if total_bytes > WEIGHTS_BYTES_MAX:
        raise BadAdapter(f"the adapter's weights exceed {WEIGHTS_BYTES_MAX >> 20} MiB", code="adapter_too_large")
    length = int.from_bytes(first8[:8], "little")
    if len(first8) < 8 or not 2 <= length <= min(HEADER_BYTES_MAX, total_bytes - 8):
        raise BadAdapter("the weights are not a safetensors file", code="adapter_not_safetensors")
    return length


def check_weights(head: bytes, *, total_bytes: int, rank: int, modules: list[str]) -> None:
    """Raises BadAdapter unless the header describes exactly the file's bytes and only LoRA halves of this rank."""
    length = header_bytes(head, total_bytes=total_bytes)
    raw = head[8 : 8 + length]
    if len(raw) < length or not raw.startswith(b"{"):
        raise BadAdapter("the weights are not a safetensors file", code="adapter_not_safetensors")
    header = _json_object(raw, "the safetensors header", limit=HEADER_BYTES_MAX)
    header.pop("__metadata__", None)
    if not 2 <= len(header) <= TENSORS_MAX:
        raise BadAdapter(f"an adapter holds 2 to {TENSORS_MAX} tensors", code="adapter_tensors")
    spans: list[tuple[int, int]] = []
    halves: dict[str, set[str]] = {}
    for name, tensor in header.items():
        shape, span = _tensor(name, tensor)
        module, half = _lora_half(name, shape, rank, modules)
        halves.setdefault(module, set()).add(half)
        spans.append(span)
    if any(both != {"A", "B"} for both in halves.values()) or 2 * len(halves) != len(header):
        raise BadAdapter("every adapted module needs exactly one lora_A and one lora_B", code="adapter_tensors")
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise BadAdapter("the tensors overlap or leave a gap", code="adapter_not_safetensors")
        position = end
    if position != total_bytes - 8 - length:
        raise BadAdapter("the file is longer or shorter than its tensors", code="adapter_not_safetensors")


def _tensor(name: str, tensor: object) -> tuple[list[int], tuple[int, int]]:
    """Shape and byte span of one header entry, checked against each other."""
    bad = BadAdapter(f"tensor {name[:80]!r} is not described as safetensors demands", code="adapter_not_safetensors")
    if not isinstance(tensor, dict):
        raise bad
    entry = cast(dict[str, object], tensor)
    if set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad
    item = _ITEM_BYTES.get(str(entry["dtype"]))
    if item is None:
        raise BadAdapter(f"tensor {name[:80]!r} must be F32, F16 or BF16", code="adapter_tensors")
    shape, span = _whole_numbers(entry["shape"]), _whole_numbers(entry["data_offsets"])
    if shape is None or span is None or len(shape) != 2 or len(span) != 2:
        raise bad
    if 0 in shape or span[1] - span[0] != item * math.prod(shape):
        raise bad
    return shape, (span[0], span[1])


def _whole_numbers(value: object) -> list[int] | None:
    if not isinstance(value, list):
        return None
    numbers: list[int] = []
    for item in cast(list[object], value):
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < 1 << 48:
            return None
        numbers.append(item)
    return numbers


def _lora_half(name: str, shape: list[int], rank: int, modules: list[str]) -> tuple[str, str]:
    """(module, "A" or "B") of a tensor of a LoRA. Raises BadAdapter for any other tensor."""
    match = _TENSOR.fullmatch(name)
    if match is None:
        raise BadAdapter(f"tensor {name[:80]!r} is not part of a LoRA", code="adapter_tensors")
    module, half = match["module"], match["half"]
    if not any(module == target or module.endswith("." + target) for target in modules):
        raise BadAdapter(f"tensor {name[:80]!r} is of a module the config does not name", code="adapter_tensors")
    if shape[0 if half == "A" else 1] != rank:
        raise BadAdapter(f"tensor {name[:80]!r} has another rank than the config's {rank}", code="adapter_rank")
    return module, half


def _json_object(raw: bytes, what: str, *, limit: int) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            raise ValueError("a key twice")
        return seen

    if len(raw) > limit:
        raise BadAdapter(f"{what} exceeds {limit >> 10} KiB", code="adapter_too_large")
    try:
        value: object = json.loads(raw.decode(), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError):
        raise BadAdapter(f"{what} is not a JSON object", code="adapter_not_json") from None
    if not isinstance(value, dict):
        raise BadAdapter(f"{what} is not a JSON object", code="adapter_not_json")
    return cast(dict[str, Any], value)
