"""A finished job with outputs, as the scheduler leaves it: for tests of those who read them."""

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.blobs import Blobs
from kit.ids import new_id
from tests.support.adapters import BASE, config_file, weights_file
from tests.support.money import POOL

_WORKLOAD = """
    INSERT INTO scheduler.workload (id, kind, name, firm_id, project_id, submitted_by, idempotency_key, request_hash,
        recipe, program, params, sandboxed, pools, workers, gpu_milli, spread, qos, priority,
        expected_seconds, max_runtime_seconds, state, fence, failures, eta_estimated, charged_micro_yuan, submitted_at,
        started_at, ended_at)
    VALUES (:job, 'job', 'tune', :firm, :project, 'mem_x', :job, sha256('x'), :recipe, 'scheduler.node.recipes.x',
        '{}', false, ARRAY[:pool], 1, 1000, 'same_node', 'standard', 0, 60, 600, 'succeeded', 1, 0, false, 0, :now,
        :now, :now)"""
_ATTEMPT = """
    INSERT INTO scheduler.attempt (id, workload_id, firm_id, fence, state, pool, token_hash, hold_id, held_seconds,
        placed_at, claimed_at, lease_until, started_at, metered_ms, ended_at, cause, ran_ms)
    VALUES (:attempt, :job, :firm, 1, 'ended', :pool, sha256('x'), 'hold_x', 60, :now, :now, :now, :now, 0, :now,
        'done', 1000)"""


async def finished_training(
    tx: AsyncSession,
    blobs: Blobs,
    firm_id: str,
    project_id: str,
    *,
    now: datetime,
    config: bytes | None = None,
    weights: bytes | None = None,
    recipe: str = "lora-finetune",
    **meta: Any,
) -> str:
    """A `lora-finetune` job that succeeded and stored an adapter; returns the job's id."""
    job, attempt = new_id("job"), new_id("att")
    await tx.execute(
        text("""INSERT INTO scheduler.pool (name, centre, accelerator, created_at)
                VALUES (:pool, split_part(:pool, '/', 1), split_part(:pool, '/', 2), :now) ON CONFLICT DO NOTHING"""),
        {"pool": POOL, "now": now},
    )
    values = {"job": job, "attempt": attempt, "firm": firm_id, "project": project_id, "now": now, "pool": POOL}
    await tx.execute(text(_WORKLOAD), values | {"recipe": recipe})
    await tx.execute(text(_ATTEMPT), values)
    about = {"adapter_name": "lore", "base_model": BASE, "rank": 8} | meta
    files = {
        "adapter_config.json": config_file() if config is None else config,
        "adapter_model.safetensors": weights_file() if weights is None else weights,
    }
    for name, content in files.items():
        await _store(tx, blobs, values, name, content, about, recipe)
    return job


async def _store(
    tx: AsyncSession, blobs: Blobs, values: dict[str, Any], name: str, content: bytes, about: Any, recipe: str
) -> None:
    artifact = new_id("art")

    async def whole() -> AsyncIterator[bytes]:
        yield content

    path = f"firms/{values['firm']}/artifacts/{artifact}"
    stored = await blobs.put(path, whole(), limit_bytes=len(content))
    body = {
        "workload_id": values["job"], "recipe": recipe, "name": name, "kind": "adapter", "sha256": stored.sha256,
        "size_bytes": stored.size, "meta": about,
    }  # fmt: skip
    await tx.execute(
        text("""INSERT INTO scheduler.artifact (id, firm_id, project_id, workload_id, attempt_id, name, kind, sha256,
                    size_bytes, blob, meta, created_at, published_at)
                SELECT :id, :firm, :project, :job, :attempt, :name, 'adapter', :sha, :size, :blob,
                    CAST(:meta AS jsonb), :now, :now"""),
        values
        | {
            "id": artifact,
            "name": name,
            "sha": stored.sha256,
            "size": stored.size,
            "blob": stored.path,
            "meta": json.dumps(about),
        },
    )
    await events.append(tx, "artifact.stored", artifact, body, now=values["now"], firm_id=values["firm"])
