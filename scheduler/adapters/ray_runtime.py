"""Runs attempts on a Ray cluster through its Jobs REST API, the one that `JobSubmissionClient` speaks.

Over HTTP and not through the client: the client takes the cluster's token from process-wide variables and blocks a
thread per call, and with it every control-plane process would load Ray. The submission id is the attempt's id, so a
start that is repeated finds itself.
"""

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from kit.errors import Unavailable
from scheduler.ports import NodeReport, Observation, RunnerState, StartOrder
from scheduler.vocabulary import AttemptId, NodeId

RUNNER_MODULE = "scheduler.node.runner"
_STATES = {
    "PENDING": RunnerState.PENDING,
    "RUNNING": RunnerState.RUNNING,
    "STOPPED": RunnerState.EXITED,
    "SUCCEEDED": RunnerState.EXITED,
    "FAILED": RunnerState.EXITED,
}
_ENTRYPOINT = {"GPU": "entrypoint_num_gpus", "CPU": "entrypoint_num_cpus", "memory": "entrypoint_memory"}
_TIMEOUT = httpx.Timeout(20, connect=3)
AT_ONCE = 8
NODES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Where a cluster answers and what its runners are told."""

    url: str  # of the dashboard
    token: str = field(repr=False)
    node_python: str  # interpreter of the node environment, on the nodes
    environment: Mapping[str, str]  # HELIU_CONTROL_URL, HELIU_HOME, HELIU_MODELS_DIR, PYTHONPATH …


class RayRuntime:
    """`ports.ClusterRuntime` and `ports.NodeDirectory` on one Ray cluster."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self._http = httpx.AsyncClient(
            base_url=cluster.url,
            headers={"Authorization": f"Bearer {cluster.token}"},
            timeout=_TIMEOUT,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def start(self, order: StartOrder) -> None:
        """Submit the runner, pinned to its node. A submission id that exists is left as it is."""
        answer = await self._call("POST", "/api/jobs/", json=self._submission(order))
        if answer.is_success or "already exists" in answer.text:
            return
        reason = answer.text.strip().splitlines()[-1:] or [f"HTTP {answer.status_code}"]
        raise Unavailable(f"Ray did not take {order.attempt_id}: {reason[0][:300]}")

    async def observe(self, attempts: Sequence[AttemptId]) -> list[Observation]:
        """What Ray knows of each attempt."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(attempt: AttemptId) -> Observation:
            async with gate:
                return await self._observe(attempt)

        return list(await asyncio.gather(*(one(attempt) for attempt in attempts)))

    async def stop(self, attempt: AttemptId) -> bool:
        """SIGTERM to the runner, SIGKILL after Ray's own grace. True once it has ended or was never known."""
        seen = await self._observe(attempt)
        if seen.state in (RunnerState.UNKNOWN, RunnerState.EXITED):
            return True
        answer = await self._call("POST", f"/api/jobs/{attempt}/stop")
        if not answer.is_success and answer.status_code != httpx.codes.NOT_FOUND:
            raise Unavailable(f"Ray did not stop {attempt}: HTTP {answer.status_code}")
        return False

    async def nodes(self) -> list[NodeReport]:
        """Nodes that Ray lists as alive, with their labels and all their resources."""
        answer = await self._call("GET", "/api/v0/nodes", params={"detail": "true", "limit": NODES_MAX})
        if not answer.is_success:
            raise Unavailable(f"Ray does not list its nodes: HTTP {answer.status_code}")
        rows: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
        return [
            NodeReport(NodeId(row["node_id"]), row["node_ip"], row["resources_total"] or {}, row["labels"] or {})
            for row in rows
            if row["state"] == "ALIVE"
        ]

    async def _observe(self, attempt: AttemptId) -> Observation:
        answer = await self._call("GET", f"/api/jobs/{attempt}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return Observation(attempt, RunnerState.UNKNOWN)
        if not answer.is_success:
            raise Unavailable(f"Ray does not say how {attempt} is: HTTP {answer.status_code}")
        job = answer.json()
        return Observation(attempt, _STATES[job["status"]], str(job.get("message") or "")[:1000])

    async def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise Unavailable(f"the Ray cluster at {self._cluster.url} does not answer", hint="is it up?") from error
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise Unavailable("the Ray cluster does not accept our token", hint="see RAY_AUTH_TOKEN of the cluster")
        return answer

    def _submission(self, order: StartOrder) -> dict[str, Any]:
        variables = {
            **self._cluster.environment,
            "HELIU_ATTEMPT_ID": order.attempt_id,
            "HELIU_ATTEMPT_TOKEN": order.token,
        }
        body: dict[str, Any] = {
            "entrypoint": f"{shlex.quote(self._cluster.node_python)} -m {RUNNER_MODULE}",
            "submission_id": order.attempt_id,
            "runtime_env": {"env_vars": variables},
            "metadata": {"workload": order.workload_id},
            "entrypoint_label_selector": {"ray.io/node-id": order.node_id},
        }
        if order.workers > 1:
            return body  # the runner takes its gang's resources in a placement group
        own = {_ENTRYPOINT[name]: amount for name, amount in order.resources.items() if name in _ENTRYPOINT}
        others = {name: amount for name, amount in order.resources.items() if name not in _ENTRYPOINT}
        return {**body, **own, **({"entrypoint_resources": others} if others else {})}
