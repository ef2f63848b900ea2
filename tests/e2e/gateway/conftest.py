"""One real vLLM for all tests of this folder, as a replica host starts it: guarded, telling what its cache holds."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.node import cache_relay, engine_guard
from tests.support import tiny_vision
from tests.support.databases import ROOT
from tests.support.gateways import MODEL as MOCKED
from tests.support.needs import need
from tests.support.real_engine import PYTHON, Engine, real_engine
from tests.support.running_platform import prepared_models

WORDS = "smollm2-135m-instruct"
TORCHVISION = "torchvision==0.28.0"
BLOCKS = 40
"""Of 32 tokens: the cache holds hardly more than one conversation of the context's 1,024."""


@pytest.fixture(scope="package")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """SmolLM2 behind a vision tower of random weights, by each name that a test calls it."""
    words = prepared_models() / WORDS
    need(words.is_dir() and PYTHON.exists(), "the prepared model", "run `make setup`")
    folder = tmp_path_factory.mktemp("vllm")
    libraries = _image_libraries()
    model = folder / tiny_vision.NAME
    build = [str(PYTHON), "-m", "tests.support.tiny_vision", str(words), str(model)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"ipc://{folder}/events"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache_relay.ENDPOINT, events["endpoint"])
        guard = f"{engine_guard.__name__}.{engine_guard.OnlyWithKey.__name__}"
        with real_engine(
            model, [tiny_vision.NAME, WORDS, MOCKED], folder / "log",
            "--middleware", guard, "--kv-events-config", json.dumps(events),
            "--num-gpu-blocks-override", str(BLOCKS), "--block-size", "32",
            module="tests.support.vision_engine", path=f"{ROOT}:{libraries}",
        ) as started:  # fmt: skip
            yield started


def _image_libraries() -> Path:
    """What vLLM imports for models with images, beside the node's environment and not in it: see vision_engine.py."""
    folder = PYTHON.parents[1] / "image-libraries"
    if not (folder / "torchvision").is_dir():
        command = [str(PYTHON), "-m", "pip", "install", "--no-deps", "--target", str(folder), TORCHVISION]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        need(done.returncode == 0, TORCHVISION, f"let pip reach its index ({done.stderr[-300:]})")
    return folder
