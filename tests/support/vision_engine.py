"""vLLM for a model with images on a machine without a GPU: `python -m tests.support.vision_engine <vLLM's arguments>`.

vLLM wants torchvision to be importable. pip only has its CUDA build, whose compiled part does not load beside a CPU
torch and so leaves two operators undeclared that its Python part then misses; no image model here uses them.
"""

import torch

_library = torch.library.Library("torchvision", "DEF")
for _operator in ("nms", "qnms"):
    _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

if __name__ == "__main__":
    from serving.node.engine import main

    main()
