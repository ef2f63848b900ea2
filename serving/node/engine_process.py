"""The engine's command line and environment, and its process."""

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from kit.ids import new_id
from serving.engine_arguments import checked
from serving.node import cache_relay, engine_guard, traces
from serving.node.params import Params
from serving.node.parent_death import die_with_parent

ENGINE = "serving.node.engine"
THREADS = "HELIU_ENGINE_THREADS"
"""How many cores a CPU engine computes on; all it may use unless set."""

_SOURCE_ROOT = Path(__file__).resolve().parents[2]
_HOST = "127.0.0.1"
_STATS_SECONDS = 600

# What the small machines that stand for a centre need, unless the catalogue or the environment says otherwise.
_CPU_ARGUMENTS: Mapping[str, Any] = {"dtype": "bfloat16", "enforce_eager": True}
_CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1"}


def command_line(params: Params, *, model: Path, port: int, on_cpu: bool, cache_events: str) -> list[str]:
    """Argv of the engine; it publishes its cache's events at `cache_events`.

    Raises InvalidInput for an engine argument that is not allowed.
    """
    given = checked({**(_CPU_ARGUMENTS if on_cpu else {}), **params.engine_arguments})
    words = [sys.executable, "-m", ENGINE]
    words += ["--model", str(model), "--served-model-name", params.model]
    words += ["--host", _HOST, "--port", str(port)]
    words += ["--middleware", f"{engine_guard.__name__}.{engine_guard.OnlyWithKey.__name__}"]
    words += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    if given.get("enable_prefix_caching", True):
        # No copies are kept to be asked for again: they hold the tokens of prompts.
        events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": cache_events, "buffer_steps": 1}
        words += ["--kv-events-config", json.dumps(events)]
    if params.max_loras:
        count, rank = str(params.max_loras), str(params.max_lora_rank)
        words += ["--enable-lora", "--max-loras", count, "--max-cpu-loras", count, "--max-lora-rank", rank]
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def socket_of(tag: str) -> str:
    """The socket, in the engine's private folder, on which it tells what its cache holds."""
    return f"ipc://{traces.folder_of(tag)}/cache-events"


def environment(base: Mapping[str, str], *, key: str, cache: Path, tag: str, on_cpu: bool) -> dict[str, str]:
    """`base` without what speaks for the platform; the key goes this way and not on the command line."""
    kept = {name: value for name, value in base.items() if not name.startswith("HELIU_") or name == THREADS}
    return {
        **(_CPU_ENVIRONMENT if on_cpu else {}),
        **kept,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(_SOURCE_ROOT), *filter(None, [base.get("PYTHONPATH")])])),
        engine_guard.KEY: key,
        cache_relay.ENDPOINT: socket_of(tag),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CACHE_ROOT": str(cache),
        traces.SHM_PREFIX: tag,
        "TMPDIR": str(traces.folder_of(tag)),
        "VLLM_LOG_STATS_INTERVAL": str(_STATS_SECONDS),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def on_cpu() -> bool:
    """Whether the installed vLLM is the build for CPUs. A device beside it is of no use to the replica."""
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def free_port() -> int:
    """A port of loopback nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


class Engine:
    """One engine process. Its key exists in two places: here and in its environment."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, key: str) -> None:
        self.start_id = new_id("eng")
        self.url = f"http://{_HOST}:{port}"
        self.key = key
        self._process = process

    @classmethod
    async def start(cls, params: Params, *, model: Path, cache: Path) -> "Engine":
        """Start it in a group of its own: the signal that asks the replica host to stop must not reach it."""
        traces.sweep()
        port, key, cpu = free_port(), secrets.token_urlsafe(32), on_cpu()
        tag = traces.own_tag()
        traces.folder_of(tag).mkdir(mode=0o700, exist_ok=True)
        parent = os.getpid()
        process = await asyncio.create_subprocess_exec(
            *command_line(params, model=model, port=port, on_cpu=cpu, cache_events=socket_of(tag)),
            env=environment(os.environ, key=key, cache=cache, tag=tag, on_cpu=cpu),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),
        )
        return cls(process, port, key)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def exited(self) -> int:
        """Its exit code, once it has ended."""
        return await self._process.wait()

    async def end(self) -> None:
        """End all its processes now. There is nothing in them to save, and what they leave has a name."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        traces.remove(traces.own_tag())
