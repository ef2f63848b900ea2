"""The documents a firm sends with its application: the file in blobs, its SHA-256 in the database."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from sqlalchemy import func, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from kit.auth import Principal
from kit.blobs import Blobs
from kit.db import Database
from kit.errors import NotFound, TooLarge
from kit.ids import new_id
from quotas import audit
from quotas.adapters.document_tables import DocumentRow
from quotas.applications import firm_row
from quotas.documents import BYTES_MAX, HEAD_BYTES, DocumentKind, file_name_of, media_type_of, refuse_one_too_many
from quotas.vocabulary import FirmId


async def add_document(
    db: Database,
    blobs: Blobs,
    firm_id: FirmId,
    kind: DocumentKind,
    name: str,
    chunks: AsyncIterator[bytes],
    *,
    by: Principal,
    now: datetime,
    origin: str | None = None,
) -> DocumentRow:
    """Keep a document. The same file again is the same document.

    Raises NotFound, InvalidInput (`document_type`, `document_empty`, `document_name`), TooLarge, Refused
    (`too_many_documents`); then nothing is kept.
    """
    name = file_name_of(name)
    async with db.transaction() as tx:
        refuse_one_too_many(await _count(tx, firm_id))
    head, whole = await _peek(chunks)
    media_type = media_type_of(head)
    document_id = new_id("doc")
    try:
        stored = await blobs.put(f"documents/{firm_id}/{document_id}", whole, limit_bytes=BYTES_MAX)
    except TooLarge:
        raise TooLarge(
            f"a document has at most {BYTES_MAX >> 20} MiB", code="document_too_large", hint="send a smaller scan"
        ) from None
    row = DocumentRow(
        id=document_id,
        firm_id=firm_id,
        kind=kind.value,
        name=name,
        media_type=media_type,
        size_bytes=stored.size,
        sha256=stored.sha256,
        blob=stored.path,
        uploaded_by=by.id,
        uploaded_at=now,
    )
    try:
        async with db.transaction() as tx:
            kept = await _keep(tx, row, by=by, now=now, origin=origin)
    except BaseException:
        await blobs.delete(stored.path)
        raise
    if kept.id != document_id:
        await blobs.delete(stored.path)
    return kept


async def _keep(tx: AsyncSession, row: DocumentRow, *, by: Principal, now: datetime, origin: str | None) -> DocumentRow:
    await firm_row(tx, FirmId(row.firm_id))
    await tx.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:n, 0))"), {"n": f"documents:{row.firm_id}"})
    query = select(DocumentRow).where(DocumentRow.firm_id == row.firm_id, DocumentRow.sha256 == row.sha256)
    known = (await tx.execute(query)).scalar_one_or_none()
    if known is not None:
        return known
    refuse_one_too_many(await _count(tx, row.firm_id))
    tx.add(row)
    await tx.flush()
    after = {"kind": row.kind, "name": row.name, "sha256": row.sha256, "size_bytes": row.size_bytes}
    await audit.record(tx, "document.add", row.id, by=by, now=now, firm_id=row.firm_id, origin=origin, after=after)
    return row


async def _count(tx: AsyncSession, firm_id: str) -> int:
    return (
        await tx.execute(select(func.count()).select_from(DocumentRow).where(DocumentRow.firm_id == firm_id))
    ).scalar_one()


async def _peek(chunks: AsyncIterator[bytes]) -> tuple[bytes, AsyncIterator[bytes]]:
    """The first bytes of a stream, and the whole of it again."""
    head = b""
    async for chunk in chunks:
        head += chunk
        if len(head) >= HEAD_BYTES:
            break

    async def whole() -> AsyncIterator[bytes]:
        yield head
        async for chunk in chunks:
            yield chunk

    return head, whole()


async def documents_of(tx: AsyncSession, firm_id: FirmId) -> Sequence[DocumentRow]:
    """A firm's documents, oldest first."""
    query = select(DocumentRow).where(DocumentRow.firm_id == firm_id).order_by(col(DocumentRow.id))
    return (await tx.execute(query)).scalars().all()


async def document_of(tx: AsyncSession, document_id: str) -> DocumentRow:
    """One document. Raises NotFound."""
    row = await tx.get(DocumentRow, document_id)
    if row is None:
        raise document_not_found(document_id)
    return row


def document_not_found(document_id: str) -> NotFound:
    """The one answer for a document that does not exist and for one of another firm."""
    return NotFound(f"There is no document {document_id}.", code="document_not_found", hint="see: heliu document list")
