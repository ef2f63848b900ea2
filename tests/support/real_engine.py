"""A real vLLM on this machine's cores, started for some tests and ended with them."""

import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.databases import ROOT
from tests.support.machine_lock import ENGINE_LOCK, machine_locks
from tests.support.needs import need
from tests.support.running_platform import free_ports
from tests.support.until import until

PYTHON = ROOT / ".venv-node" / "bin" / "python"
SECRET = "engine-key-0123456789-0123456789-0123456789"
PLAIN = "vllm.entrypoints.openai.api_server"


@dataclass(frozen=True)
class Engine:
    url: str

    def counted(self) -> tuple[int, int]:
        """(prompt tokens, generated tokens) since it started."""
        prompt, generated = (sum(self._shown(f"{name}_tokens_total")) for name in ("prompt", "generation"))
        return int(prompt), int(generated)

    def idle(self) -> bool:
        return not any(self._shown("num_requests_running"))

    def _shown(self, metric: str) -> list[float]:
        asked = urllib.request.Request(f"{self.url}/metrics", headers={"authorization": f"Bearer {SECRET}"})
        page = urllib.request.urlopen(asked, timeout=10).read().decode()
        return [float(value) for value in re.findall(rf"^vllm:{metric}{{[^\n]*}} (\S+)$", page, re.MULTILINE)]


@contextmanager
def real_engine(
    folder: Path, names: Sequence[str], log: Path, *arguments: str, module: str = PLAIN, path: str = ""
) -> Iterator[Engine]:
    """vLLM with the model in `folder`, by these names. `path`: folders its Python looks for modules in, first."""
    need((folder / "config.json").is_file() and PYTHON.exists(), "the prepared model", "run `make setup`")
    port = free_ports(1)[0]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "VLLM_API_KEY": SECRET, "PYTHONPATH": path,
    }  # fmt: skip
    command = [
        str(PYTHON), "-m", module, "--model", str(folder), "--served-model-name", *names,
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--dtype", "bfloat16",
        "--enforce-eager", "--enable-prompt-tokens-details", "--max-num-seqs", "8", *arguments,
    ]  # fmt: skip
    with machine_locks(ENGINE_LOCK), log.open("wb") as sink:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: _healthy(url, process, log), seconds=400, what="vLLM to be ready")
            yield Engine(url)
        finally:
            process.terminate()
            process.wait(60)


def _healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-3000:]
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=2).status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
