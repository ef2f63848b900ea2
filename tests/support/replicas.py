"""Serving's side of a replica, over real HTTP: it orders adapters, gives commands and remembers what it was told."""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.attempts import ATTEMPT, ControlPlaneStandIn, plan, sha256

_PREFIX = f"/internal/v1/replicas/{ATTEMPT}"


@dataclass
class ReplicaStandIn:
    """`control` speaks the node protocol for the attempt; the fields here are serving's."""

    control: ControlPlaneStandIn
    command: str = "run"
    poll_seconds: float = 0.2
    orders: list[dict[str, Any]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.control.extra_routes[f"POST {_PREFIX}/sync"] = self._sync

    def _sync(self, body: bytes) -> tuple[int, Any]:
        with self._lock:
            self.reports.append(json.loads(body))
        return 200, {"command": self.command, "adapters": self.orders, "poll_seconds": self.poll_seconds}

    @property
    def last(self) -> dict[str, Any]:
        """The newest report."""
        return self.reports[-1] if self.reports else {}

    @property
    def states(self) -> list[str]:
        """The states reported, each once in a row."""
        states: list[str] = []
        for report in list(self.reports):
            if not states or states[-1] != report["state"]:
                states.append(report["state"])
        return states

    def offer(self, adapter_id: str, config: bytes, weights: bytes, *, claimed_sha256: str | None = None) -> None:
        """Order this adapter from the next sync on."""
        base = f"{_PREFIX}/adapters/{adapter_id}"
        self.control.extra_routes[f"GET {base}/adapter_config.json"] = lambda _: (200, config)
        self.control.extra_routes[f"GET {base}/adapter_model.safetensors"] = lambda _: (200, weights)
        order = {
            "id": adapter_id,
            "lora_name": adapter_id,
            "url": base,
            "sha256": claimed_sha256 or sha256(weights),
            "bytes": len(weights),
        }
        self.orders = [*self.orders, order]


def replica(model: str, *, max_loras: int = 2, **arguments: Any) -> ReplicaStandIn:
    """A stand-in whose plan is a replica of `model`, with small engine arguments."""
    params = {
        "replica_id": "rep_01test00000000000000000000",
        "deployment_id": "dep_01test00000000000000000000",
        "model": model,
        "source": model,
        "revision": "main",
        "engine_arguments": {"max_model_len": 2048, "max_num_seqs": 8, **arguments},
        "context_tokens": 2048,
        "capabilities": ["chat", "completions"],
        "max_loras": max_loras,
        "max_lora_rank": 16,
        "generation": 1,
    }
    return ReplicaStandIn(
        plan("serving.node.replica_host", kind="replica", params=params, lease_seconds=30, grace_seconds=15)
    )


def adapter_files(folder: Path) -> tuple[bytes, bytes]:
    """(config, weights) that a fine-tune left in `folder`."""
    return (folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes()
