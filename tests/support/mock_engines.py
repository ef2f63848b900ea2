"""Starts mock engines as processes of their own."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.databases import ROOT


@dataclass(frozen=True, slots=True)
class MockEngine:
    """A running mock engine."""

    url: str
    process: subprocess.Popen[str]

    def get(self, path: str) -> str:
        """The body of a GET."""
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return answer.read().decode()

    def counted(self, name: str) -> int:
        """One of its counters: prompt_tokens_total, generation_tokens_total, num_requests_running."""
        row = next(line for line in self.get("/metrics").splitlines() if line.startswith(f"vllm:{name}"))
        return int(row.rsplit(" ", 1)[1])

    def requests(self) -> list[dict[str, Any]]:
        """What it was sent (with --keep-bodies)."""
        return json.loads(self.get("/requests"))


@contextmanager
def mock_engine(*arguments: str) -> Iterator[MockEngine]:
    """A mock engine with these options, ended afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.mock_engine", *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield MockEngine(f"http://127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
