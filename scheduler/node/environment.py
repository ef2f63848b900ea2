"""Which environment variables a program of the platform sees. A tenant's script gets none of these."""

import os
from collections.abc import Mapping

from scheduler.node.protocol import Plan

TOKEN = "HELIU_ATTEMPT_TOKEN"  # noqa: S105 - the name of the variable
ATTEMPT_ID = "HELIU_ATTEMPT_ID"
CONTROL_URL = "HELIU_CONTROL_URL"
CACHE_BYTES = "HELIU_NODE_CACHE_BYTES"
TASK_INDEX = "HELIU_TASK_INDEX"  # of a job array
_SECRET_PREFIXES = ("RAY_", "HELIU_", "AWS_", "PG")
_KEPT = ("HELIU_HOME", "HELIU_MODELS_DIR", "HELIU_SCRIPT_MEMORY_BYTES_MAX")
_THREADS_MAX = 16


def program_environment(
    base: Mapping[str, str], plan: Plan, extra: Mapping[str, str], *, rank: int = 0
) -> dict[str, str]:
    """`base` without the platform's own secrets and addresses, with the accelerators of worker `rank` named.

    Only a replica host may speak as the attempt.
    """
    kept = {
        name: value for name, value in base.items() if name in _KEPT or not name.upper().startswith(_SECRET_PREFIXES)
    }
    if plan.kind == "replica":
        kept |= {name: base[name] for name in (TOKEN, ATTEMPT_ID, CONTROL_URL) if name in base}
    own_cpus = -(-plan.cpu_milli // 1000) or _THREADS_MAX
    threads = str(min(len(os.sched_getaffinity(0)), own_cpus, _THREADS_MAX))
    task = {} if plan.task_index is None else {TASK_INDEX: str(plan.task_index)}
    return {
        **kept,
        **task,
        **_devices(plan, rank),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": threads,
        # Threads that wait must not spin: the node's other slots need the cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **extra,
    }


def _devices(plan: Plan, rank: int) -> dict[str, str]:
    """Which accelerators are this worker's own; none of a node that names them is none at all."""
    if plan.devices_variable is None:
        return {}
    own = plan.devices[rank] if plan.devices else []
    return {plan.devices_variable: ",".join(str(index) for index in own)}
