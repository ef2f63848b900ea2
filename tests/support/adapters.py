"""LoRA files as peft writes them, made by hand."""

import json
import math
import struct
from typing import Any

BASE = "smollm2-135m-instruct"
_ITEM = {"F32": 4, "BF16": 2, "F64": 8}

# peft 0.21.2, LoraConfig(task_type="CAUSAL_LM", …).to_dict()
_PEFT: dict[str, Any] = {
    "task_type": "CAUSAL_LM", "peft_type": "LORA", "auto_mapping": None, "peft_version": "0.21.2", "revision": None,
    "inference_mode": True, "exclude_modules": None, "lora_dropout": 0.05, "fan_in_fan_out": False, "bias": "none",
    "use_rslora": False, "modules_to_save": None, "init_lora_weights": True, "layers_to_transform": None,
    "layers_pattern": None, "rank_pattern": {}, "alpha_pattern": {}, "megatron_config": None,
    "megatron_core": "megatron.core", "trainable_token_indices": None, "loftq_config": {}, "eva_config": None,
    "corda_config": None, "lora_ga_config": None, "use_dora": False, "velora_config": None,
    "alora_invocation_tokens": None, "use_qalora": False, "qalora_group_size": 16, "monteclora_config": None,
    "layer_replication": None, "lora_bias": False, "target_parameters": None, "use_bdlora": None,
    "arrow_config": None, "kasa_config": None, "ensure_weight_tying": False,
}  # fmt: skip


def config_file(*, rank: int = 8, **changes: Any) -> bytes:
    """adapter_config.json of a LoRA on q_proj and v_proj."""
    config = {
        **_PEFT,
        "r": rank,
        "lora_alpha": 16,
        "target_modules": ["v_proj", "q_proj"],
        "base_model_name_or_path": f"/var/heliu/models/{BASE}",
    }
    return json.dumps(config | changes).encode()


def weights_file(
    *, rank: int = 8, modules: tuple[str, ...] = ("q_proj", "v_proj"), dtype: str = "F32", layers: int = 1
) -> bytes:
    """adapter_model.safetensors with hidden size 16, all weights zero."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for layer in range(layers):
        for module in modules:
            for half, shape in (("A", [rank, 16]), ("B", [16, rank])):
                size = _ITEM[dtype] * math.prod(shape)
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{half}.weight"
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
                position += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + bytes(position)
