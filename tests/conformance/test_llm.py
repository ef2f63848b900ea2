"""The command `llm` and its configuration of other OpenAI-compatible services."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.conftest import CHAT, Place
from tests.support.coverage import covers


class Llm:
    """The command with a home of its own that knows our model."""

    def __init__(self, place: Place, home: Path) -> None:
        self.environment = os.environ | {"LLM_USER_PATH": str(home), "LLM_LOAD_PLUGINS": ""}
        known = [
            {"model_id": "city", "model_name": CHAT, "api_base": place.base, "api_key_name": "city"},
            {"model_id": "nowhere", "model_name": "no-such-model", "api_base": place.base, "api_key_name": "city"},
        ]
        (home / "extra-openai-models.yaml").write_text(json.dumps(known))
        (home / "keys.json").write_text(json.dumps({"city": place.key}))

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("llm")), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def llm(place: Place, tmp_path: Path) -> Llm:
    return Llm(place, tmp_path)


@covers("llm", "/v1/chat/completions", "plain", "streamed")
def test_it_prompts_plain_and_streamed(llm: Llm) -> None:
    for how in (["--no-stream"], []):
        done = llm("prompt", "-m", "city", *how, "-o", "max_tokens", "4", "hello")
        assert (done.returncode, done.stdout.strip()) == (0, "tok tok tok tok"), done.stderr


@covers("llm", "/v1/chat/completions", "errors")
def test_it_shows_the_gateways_refusal(llm: Llm) -> None:
    done = llm("prompt", "-m", "nowhere", "hello")
    assert done.returncode == 1
    assert "does not exist or is not yours" in done.stderr
