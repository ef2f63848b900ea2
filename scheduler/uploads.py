"""Files a firm brings: announced with size and hash, sent in parts that resume, whole when complete."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from kit.blobs import Blobs
from kit.db import Database
from kit.errors import Conflict, InvalidInput, NotFound, TooLarge
from kit.ids import new_id
from quotas.vocabulary import FirmId, ProjectId
from scheduler.adapters import store
from scheduler.adapters.tables import UploadPartRow, UploadRow
from scheduler.artifacts import storage_full, stored_bytes
from scheduler.node.protocol import plain_name
from scheduler.terms import Terms

OPEN, COMPLETE = "open", "complete"


async def create_upload(
    tx: AsyncSession,
    *,
    firm_id: FirmId,
    project_id: ProjectId,
    name: str,
    size_bytes: int,
    sha256: str,
    by: str,
    terms: Terms,
    now: datetime,
) -> UploadRow:
    """Announce a file; it is refused here, before a byte is sent.

    Raises TooLarge over the limit of one file or of the firm's storage, InvalidInput for an empty file or a name that
    is not a plain relative path.
    """
    if size_bytes > terms.upload_bytes_max:
        raise TooLarge(
            f"the file has {size_bytes:,} bytes; one file may have {terms.upload_bytes_max:,}",
            code="file_too_large",
            hint="split it into several files",
        )
    if size_bytes == 0:
        raise InvalidInput("the file is empty", code="empty_file", hint="send a file with content")
    try:
        name = plain_name(name)
    except ValueError as error:
        raise InvalidInput(str(error), code="bad_file_name", hint="name it like data/train.jsonl") from None
    if await stored_bytes(tx, firm_id) + size_bytes > terms.firm_storage_bytes:
        raise storage_full(terms)
    row = UploadRow(
        id=new_id("up"),
        firm_id=firm_id,
        project_id=project_id,
        name=name,
        sha256=sha256,
        size_bytes=size_bytes,
        received_bytes=0,
        state=OPEN,
        created_by=by,
        created_at=now,
        expires_at=now + timedelta(seconds=terms.upload_seconds),
    )
    await store.insert(tx, row)
    return row


async def upload_of(tx: AsyncSession, upload_id: str, *, firm_id: str) -> UploadRow:
    """A firm's upload. Raises NotFound, the same for one that is not there and for another firm's."""
    row = await tx.get(UploadRow, upload_id, populate_existing=True)
    if row is None or row.firm_id != firm_id:
        raise NotFound(f"There is no upload {upload_id}.", code="upload_not_found", hint="send the file: heliu upload")
    return row


async def list_uploads(tx: AsyncSession, firm_id: str, *, limit: int = 50) -> Sequence[UploadRow]:
    """A firm's uploads, newest first."""
    query = select(UploadRow).where(UploadRow.firm_id == firm_id).order_by(col(UploadRow.id).desc()).limit(limit)
    return (await tx.execute(query)).scalars().all()


async def add_part(
    db: Database, blobs: Blobs, upload_id: str, offset: int, chunks: AsyncIterator[bytes], *, firm_id: str
) -> UploadRow:
    """Take the bytes from `offset` on; they count once they have arrived whole.

    Raises Conflict (`offset_mismatch`, with the right offset) when they do not continue what is there, TooLarge past
    the announced size.
    """
    async with db.transaction() as tx:
        row = await upload_of(tx, upload_id, firm_id=firm_id)
    _expect(row, offset)
    part = f"uploads/{upload_id}/{new_id('part')}"
    stored = await blobs.put(part, chunks, limit_bytes=row.size_bytes - offset)
    if stored.size == 0:
        await blobs.delete(part)
        raise InvalidInput("the part is empty", code="empty_part", hint="send at least one byte, or complete it")
    try:
        async with db.transaction() as tx:
            await _append(tx, row, offset, part, stored.size)
            return await upload_of(tx, upload_id, firm_id=firm_id)
    except BaseException:
        await blobs.delete(part)
        raise


async def complete_upload(db: Database, blobs: Blobs, upload_id: str, *, firm_id: str) -> UploadRow:
    """Join the parts and check the hash; repeating it, also at the same time, changes nothing.

    Raises Conflict while bytes are missing, InvalidInput when the content has another SHA-256 than announced (then it
    has to be sent again from the start).
    """
    async with db.transaction() as tx:
        row = await upload_of(tx, upload_id, firm_id=firm_id)
        parts = await _parts(tx, upload_id)
    if row.state == COMPLETE:
        return row
    if row.received_bytes != row.size_bytes:
        raise Conflict(
            f"{row.received_bytes:,} of {row.size_bytes:,} bytes have arrived",
            code="upload_incomplete",
            hint=f"send the rest from offset {row.received_bytes}",
        )
    try:
        await blobs.put(blob_of(row), _joined(blobs, parts), limit_bytes=row.size_bytes, sha256=row.sha256)
    except InvalidInput:
        await _start_over(db, blobs, row, parts)
        raise
    except NotFound:  # its parts are gone: it was completed or deleted meanwhile
        async with db.transaction() as tx:
            row = await upload_of(tx, upload_id, firm_id=firm_id)
        if row.state == COMPLETE:
            return row
        raise
    blob = blob_of(row)
    try:
        async with db.transaction() as tx:
            await tx.execute(
                update(UploadRow)
                .where(col(UploadRow.id) == upload_id, col(UploadRow.state) == OPEN)
                .values(state=COMPLETE)
            )
            await _forget_parts(tx, upload_id)
            row = await upload_of(tx, upload_id, firm_id=firm_id)
    except NotFound:
        await blobs.delete(blob)  # it was deleted meanwhile: nobody counts these bytes any more
        raise
    for part in parts:
        await blobs.delete(part.blob)
    return row


async def delete_upload(db: Database, blobs: Blobs, upload_id: str, *, firm_id: str) -> None:
    """Forget an upload. Raises Conflict while a job that is not over reads it."""
    async with db.transaction() as tx:
        row = await upload_of(tx, upload_id, firm_id=firm_id)
        used = await tx.execute(
            text("""
                SELECT w.id FROM scheduler.workload_input i JOIN scheduler.workload w ON w.id = i.workload_id
                WHERE i.blob = :blob AND w.ended_at IS NULL LIMIT 1"""),
            {"blob": blob_of(row)},
        )
        if job := used.scalar_one_or_none():
            raise Conflict(f"job {job} still reads it", code="upload_in_use", hint="delete it when the job is over")
        parts = await _parts(tx, upload_id)
        await _forget_parts(tx, upload_id)
        await tx.execute(text("DELETE FROM scheduler.upload WHERE id = :id"), {"id": upload_id})
    for path in (*(part.blob for part in parts), blob_of(row)):
        await blobs.delete(path)


async def remove_expired(db: Database, blobs: Blobs, *, now: datetime, limit: int = 50) -> int:
    """Forget uploads that were not completed in time; returns how many."""
    async with db.transaction() as tx:
        query = select(UploadRow).where(UploadRow.state == OPEN, col(UploadRow.expires_at) <= now).limit(limit)
        rows = (await tx.execute(query)).scalars().all()
    for row in rows:
        await delete_upload(db, blobs, row.id, firm_id=row.firm_id)
    return len(rows)


def blob_of(row: UploadRow) -> str:
    """Where the whole file is once complete."""
    return f"firms/{row.firm_id}/uploads/{row.id}"


def _expect(row: UploadRow, offset: int) -> None:
    if row.state == COMPLETE:
        raise Conflict("the upload is complete", code="upload_complete", hint="begin another: heliu upload")
    if offset != row.received_bytes:
        raise Conflict(
            f"the next byte is number {row.received_bytes}, not {offset}",
            code="offset_mismatch",
            hint="continue from received_bytes",
            details={"received_bytes": row.received_bytes},
        )


async def _append(tx: AsyncSession, row: UploadRow, offset: int, part: str, size: int) -> None:
    done = await tx.execute(
        text("""
            UPDATE scheduler.upload SET received_bytes = received_bytes + :size
            WHERE id = :id AND state = 'open' AND received_bytes = :offset RETURNING received_bytes"""),
        {"id": row.id, "size": size, "offset": offset},
    )
    if done.scalar_one_or_none() is None:
        raise Conflict("another part arrived first", code="offset_mismatch", hint="ask how far the upload is")
    await store.insert(tx, UploadPartRow(upload_id=row.id, start=offset, size_bytes=size, blob=part))


async def _parts(tx: AsyncSession, upload_id: str) -> Sequence[UploadPartRow]:
    query = select(UploadPartRow).where(UploadPartRow.upload_id == upload_id).order_by(col(UploadPartRow.start))
    return (await tx.execute(query)).scalars().all()


async def _forget_parts(tx: AsyncSession, upload_id: str) -> None:
    await tx.execute(text("DELETE FROM scheduler.upload_part WHERE upload_id = :id"), {"id": upload_id})


async def _joined(blobs: Blobs, parts: Sequence[UploadPartRow]) -> AsyncIterator[bytes]:
    for part in parts:
        async for chunk in blobs.read(part.blob):
            yield chunk


async def _start_over(db: Database, blobs: Blobs, row: UploadRow, parts: Sequence[UploadPartRow]) -> None:
    async with db.transaction() as tx:
        await _forget_parts(tx, row.id)
        await tx.execute(text("UPDATE scheduler.upload SET received_bytes = 0 WHERE id = :id"), {"id": row.id})
    for part in parts:
        await blobs.delete(part.blob)
