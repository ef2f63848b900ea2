"""Reads what finished fine-tune jobs stored and registers their adapters, each once."""

import logging
from datetime import datetime

from kit import events
from kit.blobs import Blobs
from kit.db import Database
from kit.errors import HeliuError
from serving import adapter_catalogue

log = logging.getLogger(__name__)

READER = "serving.registrar"
TOPIC = "artifact.stored"
BATCH = 100


async def register_new(db: Database, blobs: Blobs, *, now: datetime) -> int:
    """Register the adapters of every `artifact.stored` since the last call; returns how many events were read.

    The position moves after the effect, so a crash between the two registers again, which changes nothing.
    """
    async with db.transaction() as tx:
        cursor = await events.position(tx, READER)
        found = await events.read(tx, after=cursor, topics=[TOPIC], limit=BATCH)
    done: set[str] = set()
    for event in found:
        job_id = str(event.body.get("workload_id", ""))
        made_by_recipe = event.body.get("recipe") == adapter_catalogue.RECIPE
        if event.body.get("kind") == "adapter" and made_by_recipe and job_id not in done:
            await _register(db, blobs, job_id, now=now)
            done.add(job_id)
        async with db.transaction() as tx:
            await events.position(tx, READER)
            await events.advance(tx, READER, event.cursor)
    return len(found)


async def _register(db: Database, blobs: Blobs, job_id: str, *, now: datetime) -> None:
    """One that cannot be registered, for whatever lasting reason, does not stand in the way of the next."""
    try:
        adapter = await adapter_catalogue.register_from_job(db, blobs, job_id, now=now)
    except HeliuError as error:
        if error.retryable:
            raise
        log.warning("an adapter could not be registered", extra={"job": job_id, "why": error.message})
        return
    log.info("adapter registered", extra={"job": job_id, "state": adapter.state.value if adapter else "none"})
