"""Files that attempts make: stored under their hash while the attempt lives, visible once it has succeeded."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from kit import events
from kit.blobs import Blobs
from kit.db import Database, sql
from kit.errors import Conflict, NotFound, TooLarge
from kit.ids import new_id
from quotas.vocabulary import FirmId, ProjectId
from scheduler.adapters import store
from scheduler.adapters.records import Attempt, Workload
from scheduler.adapters.tables import ArtifactRow, AttemptRow, CheckpointRow, UploadRow
from scheduler.terms import Terms
from scheduler.vocabulary import ArtifactId, ArtifactView, AttemptId, AttemptIdentity, AttemptState, WorkloadId


async def store_output(
    db: Database,
    blobs: Blobs,
    identity: AttemptIdentity,
    name: str,
    kind: str,
    meta: Mapping[str, Any],
    chunks: AsyncIterator[bytes],
    *,
    sha256: str,
    terms: Terms,
    now: datetime,
) -> ArtifactView:
    """Store one output. The same name and hash again gives the same artifact without reading the body.

    Raises TooLarge over the attempt's or the firm's limit, InvalidInput when the bytes do not hash to `sha256`,
    Conflict when the name is taken by other content or the attempt is over.
    """
    async with db.transaction() as tx:
        known = await _output(tx, identity.attempt_id, name)
        if known is not None:
            return _same(known, sha256)
        room = await _room(tx, identity, terms)
    artifact_id = new_id("art")
    stored = await blobs.put(_blob(identity.firm_id, artifact_id), chunks, limit_bytes=room, sha256=sha256)
    row = ArtifactRow(
        id=artifact_id,
        firm_id=identity.firm_id,
        project_id=identity.project_id,
        workload_id=identity.workload_id,
        attempt_id=identity.attempt_id,
        name=name,
        kind=kind,
        sha256=stored.sha256,
        size_bytes=stored.size,
        blob=stored.path,
        meta=dict(meta),
        created_at=now,
    )
    try:
        async with db.transaction() as tx:
            await _keep(tx, row, identity, terms)
    except BaseException:
        await blobs.delete(stored.path)
        raise
    return view(row)


async def stored_by(tx: AsyncSession, attempt_ids: Sequence[str]) -> set[str]:
    """Those of the attempts that stored anything."""
    query = sql("SELECT DISTINCT attempt_id FROM scheduler.artifact WHERE attempt_id = ANY(CAST(:ids AS text[]))")
    return set((await tx.execute(query, {"ids": list(attempt_ids)})).scalars()) if attempt_ids else set()


async def publish(tx: AsyncSession, workload: Workload, attempt: Attempt, *, now: datetime) -> None:
    """The attempt succeeded: what it stored can be seen from now on."""
    query = select(ArtifactRow).where(ArtifactRow.attempt_id == attempt.id).order_by(col(ArtifactRow.name))
    for row in (await tx.execute(query)).scalars().all():
        row.published_at = now
        body = {
            "workload_id": workload.id,
            "recipe": workload.recipe,
            "name": row.name,
            "kind": row.kind,
            "sha256": row.sha256,
            "size_bytes": row.size_bytes,
            "meta": row.meta,
        }
        await events.append(tx, "artifact.stored", row.id, body, now=now, firm_id=row.firm_id)
    await tx.flush()


async def artifact_view(tx: AsyncSession, artifact_id: str, *, firm_id: str) -> ArtifactView:
    """A firm's artifact. Raises NotFound, the same for one that is not there, not published or not the firm's."""
    row = await tx.get(ArtifactRow, artifact_id)
    if row is None or row.firm_id != firm_id or row.published_at is None:
        raise NotFound(
            f"There is no artifact {artifact_id}.",
            code="artifact_not_found",
            hint="see what a job made: heliu job show",
        )
    return view(row)


async def artifacts_of(tx: AsyncSession, workload_id: str) -> list[ArtifactView]:
    """What a workload published, by name."""
    query = select(ArtifactRow).where(
        ArtifactRow.workload_id == workload_id, col(ArtifactRow.published_at).is_not(None)
    )
    return [view(row) for row in (await tx.execute(query.order_by(col(ArtifactRow.name)))).scalars()]


async def list_artifacts(
    tx: AsyncSession, firm_id: str, *, before: str | None = None, limit: int = 50
) -> list[ArtifactView]:
    """A firm's artifacts, newest first."""
    query = select(ArtifactRow).where(ArtifactRow.firm_id == firm_id, col(ArtifactRow.published_at).is_not(None))
    if before is not None:
        query = query.where(col(ArtifactRow.id) < before)
    return [view(row) for row in (await tx.execute(query.order_by(col(ArtifactRow.id).desc()).limit(limit))).scalars()]


async def artifact_blob(tx: AsyncSession, artifact_id: str, *, firm_id: str) -> str:
    """Where its bytes are. Raises NotFound."""
    await artifact_view(tx, artifact_id, firm_id=firm_id)
    row = await tx.get(ArtifactRow, artifact_id)
    assert row is not None, "it was just seen"
    return row.blob


async def open_artifact(
    db: Database, blobs: Blobs, artifact_id: str, *, firm_id: str, start: int = 0
) -> tuple[ArtifactView, AsyncIterator[bytes]]:
    """An artifact and its bytes from `start` on. Raises NotFound."""
    async with db.transaction() as tx:
        seen = await artifact_view(tx, artifact_id, firm_id=firm_id)
        blob = await artifact_blob(tx, artifact_id, firm_id=firm_id)
    return seen, blobs.read(blob, start=start)


async def remove_unpublished(db: Database, blobs: Blobs, *, limit: int = 100) -> int:
    """Forget what attempts stored that ended without success; returns how many files went."""
    async with db.transaction() as tx:
        query = (
            select(ArtifactRow)
            .join(AttemptRow, col(AttemptRow.id) == col(ArtifactRow.attempt_id))
            .where(AttemptRow.state == AttemptState.ENDED, col(ArtifactRow.published_at).is_(None))
            .limit(limit)
        )
        rows: Sequence[ArtifactRow] = (await tx.execute(query)).scalars().all()
    for row in rows:
        await blobs.delete(row.blob)
        async with db.transaction() as tx:
            await tx.execute(text("DELETE FROM scheduler.artifact WHERE id = :id"), {"id": row.id})
    return len(rows)


async def stored_bytes(tx: AsyncSession, firm_id: str) -> int:
    """What a firm's uploads (their declared size), artifacts and checkpoints take. Locks the firm's storage."""
    await tx.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"storage:{firm_id}"})
    kept = select(func.coalesce(func.sum(ArtifactRow.size_bytes), 0)).where(ArtifactRow.firm_id == firm_id)
    sent = select(func.coalesce(func.sum(UploadRow.size_bytes), 0)).where(UploadRow.firm_id == firm_id)
    saved = select(func.coalesce(func.sum(CheckpointRow.size_bytes), 0)).where(CheckpointRow.firm_id == firm_id)
    return sum([int((await tx.execute(part)).scalar_one()) for part in (kept, sent, saved)])


def storage_full(terms: Terms) -> TooLarge:
    """The refusal of what would exceed a firm's storage."""
    return TooLarge(
        f"the firm's storage of {terms.firm_storage_bytes >> 20} MiB is full",
        code="storage_full",
        hint="delete uploads that are no longer needed",
    )


def view(row: ArtifactRow) -> ArtifactView:
    """The artifact as others see it."""
    return ArtifactView(
        ArtifactId(row.id),
        FirmId(row.firm_id),
        ProjectId(row.project_id),
        WorkloadId(row.workload_id),
        AttemptId(row.attempt_id),
        row.name,
        row.kind,
        row.sha256,
        row.size_bytes,
        row.meta,
        row.created_at,
    )


async def _output(tx: AsyncSession, attempt_id: str, name: str) -> ArtifactRow | None:
    query = select(ArtifactRow).where(ArtifactRow.attempt_id == attempt_id, ArtifactRow.name == name)
    return (await tx.execute(query)).scalar_one_or_none()


def _same(known: ArtifactRow, sha256: str) -> ArtifactView:
    if known.sha256 != sha256.lower():
        raise Conflict(f"output {known.name} is stored already with other content", code="output_exists")
    return view(known)


async def _room(tx: AsyncSession, identity: AttemptIdentity, terms: Terms) -> int:
    sums = select(func.count(), func.coalesce(func.sum(ArtifactRow.size_bytes), 0))
    files, size = (await tx.execute(sums.where(ArtifactRow.attempt_id == identity.attempt_id))).one()
    if files >= terms.output_files_max:
        raise TooLarge(f"an attempt may store {terms.output_files_max} files", code="too_many_outputs")
    firm_room = terms.firm_storage_bytes - await stored_bytes(tx, identity.firm_id)
    if firm_room <= 0:
        raise storage_full(terms)
    return min(terms.output_bytes_max - int(size), firm_room)


async def _keep(tx: AsyncSession, row: ArtifactRow, identity: AttemptIdentity, terms: Terms) -> None:
    await store.workload(tx, identity.workload_id, lock=True)  # the artifact refers to it: the order of locks
    attempt = await store.attempt(tx, identity.attempt_id, lock=True)
    if attempt is None or attempt.state == AttemptState.ENDED:
        raise Conflict("this attempt has no right to run any more", code="fence_lost")
    if await stored_bytes(tx, identity.firm_id) + row.size_bytes > terms.firm_storage_bytes:
        raise storage_full(terms)
    await store.insert(tx, row)


def _blob(firm_id: str, artifact_id: str) -> str:
    return f"firms/{firm_id}/artifacts/{artifact_id}"
