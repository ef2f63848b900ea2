"""`heliu bench-target`: a gateway that an outside load generator can drive, in front of any engine."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.databases import ROOT
from tests.support.mock_engines import mock_engine

ENGINE_KEY = "engine-key-0123456789-0123456789-0123456789"


@contextmanager
def bench_target(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The command and what it printed once it served; its own files lie in `folder`."""
    command = [sys.executable, "-c", "from heliu.cli import main; main()", "bench-target", *arguments]
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": str(folder), "HOME": str(folder)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """PostgreSQL's socket has a path of 107 characters at most, and its server is another user."""
    with tempfile.TemporaryDirectory(prefix="hbt-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.timeout(120)
def test_it_prints_where_it_serves_and_a_key_that_works_and_leaves_nothing_behind(short_folder: Path) -> None:
    with mock_engine("--key", ENGINE_KEY, "--model", "any-model") as engine:
        arguments = (engine.url, "--model", "any-model", "--engine-key", ENGINE_KEY)
        with bench_target(short_folder, *arguments) as (process, told):
            assert told.keys() == {"url", "api_key", "model"}
            headers = {"Authorization": f"Bearer {told['api_key']}"}
            with httpx.Client(base_url=told["url"], headers=headers, timeout=10, trust_env=False) as client:
                body = {"model": told["model"], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 7}
                answers = [client.post("/v1/chat/completions", json=body) for _ in range(20)]
                assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [7] * 20
                streamed = client.post("/v1/chat/completions", json=body | {"stream": True}).text
                assert streamed.endswith("data: [DONE]\n\n")
                image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}}
                seeing = body | {"messages": [{"role": "user", "content": [image]}]}
                assert client.post("/v1/chat/completions", json=seeing).status_code == 200
                assert client.get("/v1/models").json()["data"][0]["id"] == "any-model"
                without = client.post("/v1/chat/completions", json=body, headers={"Authorization": "Bearer hl_x_y"})
                assert without.status_code == 401
            assert engine.counted("generation_tokens_total") == 22 * 7
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        assert list(short_folder.glob("heliu-bench-*")) == []
