"""A model that takes images, for tests: SmolLM2's own text behind a vision tower of random weights.

`.venv-node/bin/python -m tests.support.tiny_vision TEXT_MODEL_FOLDER TARGET`. It answers questions beside an image as
SmolLM2 would; of the image itself it understands nothing, and its name says so.
"""

import sys
from pathlib import Path
from typing import Any

NAME = "tiny-random-vision-smollm2"
IMAGE_SIDE, PATCH_SIDE = 56, 14
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build(text_folder: Path, target: Path) -> None:
    """Write the model into `target`, as vLLM wants it."""
    import torch
    from safetensors.torch import save_file
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(text_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text: Any = AutoModelForCausalLM.from_pretrained(text_folder, dtype=torch.float32)
    text.resize_token_embeddings(len(tokenizer))
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text.config, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default", vision_feature_layer=-2, tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    model = model.to(torch.bfloat16)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    )
    tokenizer.chat_template = TEMPLATE
    processor = LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH_SIDE, chat_template=TEMPLATE,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    model.save_pretrained(target)
    processor.save_pretrained(target)
    tokenizer.save_pretrained(target)
    weights = target / "model.safetensors"
    save_file(_named_as_vllm_expects(weights), weights, metadata={"format": "pt"})


def _named_as_vllm_expects(weights: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    renamed: dict[str, Any] = {}
    for name, tensor in load_file(weights).items():
        inside = "vision_tower." in name and "vision_tower.vision_model." not in name
        renamed[name.replace("vision_tower.", "vision_tower.vision_model.") if inside else name] = tensor
    return renamed


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
