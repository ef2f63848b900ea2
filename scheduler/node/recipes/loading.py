"""Load a prepared base model for a recipe: safetensors only, no code of its own, quietly."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def device() -> torch.device:
    """The accelerator this worker was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def working_dtype(where: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it; emulated it would be many times slower than float32."""
    if where.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags or " bf16 " in flags else torch.float32


def load(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer), on the device, for inference."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    where = device()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=working_dtype(where), trust_remote_code=False, local_files_only=True, use_safetensors=True
    )
    return model.to(where).eval(), tokenizer


def context_tokens(model: Any) -> int:
    """Longest sequence the model was made for."""
    return int(getattr(model.config, "max_position_embeddings", 0) or 2048)
