"""vLLM's API server as a child that cannot be orphaned: `python -m serving.node.engine <vLLM's own arguments>`.

vLLM starts an engine process and that one its workers. When the API server is killed, they would go on by themselves:
here each of them dies with its parent.

On CPU vLLM insists on `spawn`, so that every process imports everything anew: three times 8 s of a 43 s start. Forking
instead, as vLLM does by default elsewhere, is safe as long as no OpenMP thread exists before the last fork, so the
processes above the worker keep to one thread.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import Any

from serving.node import cache_relay
from serving.node.engine_process import THREADS
from serving.node.parent_death import die_with_parent
from serving.node.traces import SHM_PREFIX

# Not only when run: a child made by `spawn` imports this file as its main module.
die_with_parent(os.getppid())
if prefix := os.environ.get(SHM_PREFIX):
    # Shared memory of a killed engine stays until somebody removes it by name.
    shared_memory.__dict__.update(_SHM_NAME_PREFIX=f"/{prefix}_", _SHM_SAFE_NAME_LENGTH=len(prefix) + 18)

_WORKER_DEPTH = 2  # API server → engine core → worker


class _Forks:
    """How many forks lie between the API server and this process."""

    def __init__(self) -> None:
        self._parent = os.getpid()
        self._depth = 0
        self._worker_begins: list[Callable[[], None]] = []
        os.register_at_fork(after_in_child=self._in_child)

    def when_worker_begins(self, act: Callable[[], None]) -> None:
        """Call `act` in a process two forks below."""
        self._worker_begins.append(act)

    def _in_child(self) -> None:
        die_with_parent(self._parent)
        self._parent = os.getpid()
        self._depth += 1
        if self._depth == _WORKER_DEPTH:
            for act in self._worker_begins:
                act()


def main() -> None:
    """Serve until told to stop."""
    forks = _Forks()
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _fork_on_cpu(forks)
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    if cache_relay.ENDPOINT in os.environ:
        cache_relay.tag_requests()
    serve()


def _fork_on_cpu(forks: _Forks) -> None:
    import torch
    from vllm.model_executor.models import registry

    threads = int(os.environ.get(THREADS, "0")) or len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    forks.when_worker_begins(lambda: torch.set_num_threads(threads))
    given = multiprocessing.get_context

    def get_context(method: str | None = None) -> Any:
        return given("fork" if method == "spawn" else method)

    multiprocessing.get_context = get_context
    # It looks at a model's class in a process of its own to keep CUDA out of this one; here that only costs 8 s.
    registry._run_in_subprocess = lambda look: look()  # noqa: SLF001


if __name__ == "__main__":
    main()
