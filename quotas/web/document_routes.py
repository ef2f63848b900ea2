"""Documents of applications: send, list, read. Only the firm and the platform's administrators see them."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from kit.blobs import Blobs
from kit.web import View, chunks_of
from quotas import application_documents as documents
from quotas.access import Action, home_firm, require
from quotas.documents import DocumentKind
from quotas.vocabulary import FirmId
from quotas.web.deps import Db, Now, Origin, SignedInPrincipal
from quotas.web.schemas import FirmQuery


class DocumentOut(View):
    id: str
    firm_id: str
    kind: DocumentKind
    name: str
    media_type: str
    size_bytes: int
    sha256: str
    uploaded_by: str
    uploaded_at: datetime


def router(blobs: Callable[[], Blobs]) -> APIRouter:
    """The routes, over an object store that is opened when first needed."""
    routes = APIRouter(prefix="/api/documents", tags=["firms"])

    @routes.post("", status_code=201)
    async def add(
        request: Request,
        principal: SignedInPrincipal,
        db: Db,
        now: Now,
        origin: Origin,
        name: Annotated[str, Query(max_length=500)],
        kind: DocumentKind = DocumentKind.OTHER,
        firm_id: FirmQuery = None,
    ) -> DocumentOut:
        """Send a document of the firm as the body: a PDF, PNG or JPEG of at most 10 MiB."""
        firm = FirmId(firm_id) if firm_id else home_firm(principal)
        require(principal, Action.DOCUMENT_ADD, firm_id=firm)
        body = chunks_of(request)
        row = await documents.add_document(db, blobs(), firm, kind, name, body, by=principal, now=now, origin=origin)
        return DocumentOut.model_validate(row)

    @routes.get("")
    async def list_documents(principal: SignedInPrincipal, db: Db, firm_id: FirmQuery = None) -> list[DocumentOut]:
        """A firm's documents, oldest first, each with its SHA-256."""
        firm = FirmId(firm_id) if firm_id else home_firm(principal)
        require(principal, Action.DOCUMENT_READ, firm_id=firm)
        async with db.transaction() as tx:
            return [DocumentOut.model_validate(row) for row in await documents.documents_of(tx, firm)]

    @routes.get("/{document_id}/content", response_class=StreamingResponse)
    async def content(document_id: str, principal: SignedInPrincipal, db: Db) -> StreamingResponse:
        """The file, to be saved: it is never shown inside the platform's own pages."""
        async with db.transaction() as tx:
            row = await documents.document_of(tx, document_id)
        missing = documents.document_not_found(document_id)
        require(principal, Action.DOCUMENT_READ, firm_id=FirmId(row.firm_id), missing=missing)
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(row.name)}",
            "Content-Length": str(row.size_bytes),
            "X-Content-Type-Options": "nosniff",
        }
        return StreamingResponse(blobs().read(row.blob), headers=headers, media_type=row.media_type)

    return routes
