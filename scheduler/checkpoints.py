"""What programs keep of their work: stored under its hash while the attempt lives, given back to the next one.

A workload has one checkpoint, the last; it goes when the workload is over. What an attempt did up to its checkpoint is
kept and therefore paid for, whatever ends the attempt; what the platform loses after it is not (`attempts.end`).
"""

from collections.abc import AsyncIterator
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.blobs import Blobs
from kit.db import Database
from kit.errors import NotFound, TooLarge
from kit.units import gpu_ms
from scheduler import artifacts, attempts
from scheduler.adapters import store
from scheduler.adapters.tables import AttemptRow, CheckpointRow
from scheduler.admission import topic
from scheduler.inventories import with_checkpoint
from scheduler.lifetimes import run_ms
from scheduler.terms import Terms
from scheduler.vocabulary import AttemptIdentity, AttemptState


async def keep(
    db: Database,
    blobs: Blobs,
    identity: AttemptIdentity,
    chunks: AsyncIterator[bytes],
    *,
    sha256: str,
    step: int,
    ran_ms: int,
    terms: Terms,
    now: datetime,
) -> CheckpointRow:
    """Store a checkpoint in place of the one before. The same content again is stored once.

    Raises TooLarge over the limit of a checkpoint or of the firm's storage, InvalidInput when the bytes do not hash to
    `sha256`, Conflict (`fence_lost`) when the attempt is over or never began.
    """
    async with db.transaction() as tx:
        known = await tx.get(CheckpointRow, identity.workload_id)
        room = await _room(tx, identity, known, terms)
    blob = f"firms/{identity.firm_id}/checkpoints/{identity.workload_id}/{sha256}"
    if known is None or known.blob != blob:
        stored = await blobs.put(blob, chunks, limit_bytes=room, sha256=sha256)
        size = stored.size
    else:
        size = known.size_bytes
    try:
        async with db.transaction() as tx:
            row, before = await _record(tx, identity, blob, size, sha256, step, ran_ms, terms=terms, now=now)
    except BaseException:
        if known is None or known.blob != blob:
            await blobs.delete(blob)
        raise
    if before is not None and before != blob:
        await blobs.delete(before)
    return row


async def checkpoint_of(tx: AsyncSession, workload_id: str) -> CheckpointRow | None:
    """What the next attempt begins from."""
    return await tx.get(CheckpointRow, workload_id, populate_existing=True)


async def open_checkpoint(tx: AsyncSession, identity: AttemptIdentity) -> CheckpointRow:
    """The checkpoint an attempt may read. Raises NotFound."""
    row = await checkpoint_of(tx, identity.workload_id)
    if row is None:
        raise NotFound("There is no checkpoint.", code="checkpoint_not_found")
    return row


async def remove_finished(db: Database, blobs: Blobs, *, limit: int = 100) -> int:
    """Forget the checkpoints of work that is over; returns how many went."""
    async with db.transaction() as tx:
        rows = await tx.execute(
            text("""
                SELECT c.workload_id, c.blob FROM scheduler.checkpoint c
                JOIN scheduler.workload w ON w.id = c.workload_id WHERE w.ended_at IS NOT NULL LIMIT :limit"""),
            {"limit": limit},
        )
        found = [(row.workload_id, row.blob) for row in rows]
    for workload_id, blob in found:
        await blobs.delete(blob)
        async with db.transaction() as tx:
            await tx.execute(text("DELETE FROM scheduler.checkpoint WHERE workload_id = :id"), {"id": workload_id})
    return len(found)


async def _room(tx: AsyncSession, identity: AttemptIdentity, known: CheckpointRow | None, terms: Terms) -> int:
    """How large it may be; the one it replaces makes room."""
    free = terms.firm_storage_bytes - await artifacts.stored_bytes(tx, identity.firm_id)
    room = free + (known.size_bytes if known else 0)
    if room <= 0:
        raise artifacts.storage_full(terms)
    return min(room, terms.checkpoint_bytes_max)


async def _record(
    tx: AsyncSession,
    identity: AttemptIdentity,
    blob: str,
    size: int,
    sha256: str,
    step: int,
    ran_ms: int,
    *,
    terms: Terms,
    now: datetime,
) -> tuple[CheckpointRow, str | None]:
    """The row, and the object that nobody needs any more."""
    workload = await store.workload(tx, identity.workload_id, lock=True)
    attempt = await store.attempt(tx, identity.attempt_id, lock=True)
    assert workload is not None and attempt is not None, "an identity was made from both"
    if attempt.state != AttemptState.RUNNING:
        raise attempts.fence_lost()
    kept_ms = _kept_ms(attempt, ran_ms, now=now)
    row = await tx.get(CheckpointRow, workload.id, populate_existing=True)
    before, before_sha256 = (row.blob, row.sha256) if row else (None, None)
    others = await artifacts.stored_bytes(tx, identity.firm_id) - (row.size_bytes if row else 0)
    if others + size > terms.firm_storage_bytes:
        raise TooLarge(artifacts.storage_full(terms).message, code="storage_full")
    if row is None:
        row = CheckpointRow(workload_id=workload.id, gpu_ms=0, firm_id=workload.firm_id, project_id=workload.project_id)
        tx.add(row)
    row.attempt_id, row.step, row.sha256, row.size_bytes, row.blob = attempt.id, step, sha256, size, blob
    row.created_at = now
    attempt.kept_ms, attempt.kept_at = kept_ms, now
    workload.checkpoints = True
    workload.files = with_checkpoint(
        workload.files, workload.firm_id, before=before_sha256, sha256=sha256, size_bytes=size
    )
    await tx.flush()
    row.gpu_ms = gpu_ms(workload.need_milli // workload.workers, await _kept_worker_ms(tx, workload.id))
    await tx.flush()
    body = {"attempt_id": attempt.id, "step": step, "size_bytes": size, "sha256": sha256, "kept_ms": kept_ms}
    await events.append(tx, topic(workload, "checkpoint"), workload.id, body, now=now, firm_id=workload.firm_id)
    return row, before


async def _kept_worker_ms(tx: AsyncSession, workload_id: str) -> int:
    """What all its attempts kept, times the workers that each of them had."""
    found = await tx.execute(
        text("""
            SELECT coalesce(sum(a.kept_ms * (SELECT count(*) FROM scheduler.placement p WHERE p.attempt_id = a.id)), 0)
            FROM scheduler.attempt a WHERE a.workload_id = :workload"""),
        {"workload": workload_id},
    )
    return int(found.scalar_one())


def _kept_ms(attempt: AttemptRow, ran_ms: int, *, now: datetime) -> int:
    """The runner's count: never less than before, nor more than has passed or was held for."""
    assert attempt.started_at is not None, "only what runs keeps anything"
    passed = run_ms(attempt.started_at, now)
    return max(
        attempt.kept_ms, attempt.metered_ms, min(ran_ms, passed, attempt.metered_ms + attempt.held_seconds * 1000)
    )
