"""Uploads and artifacts."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute

from kit.blobs import check_signed, signed_query
from kit.errors import NotFound, TooLarge
from kit.web import chunks_of
from quotas.api import Action, CurrentPrincipal, Db, Now, project_of
from scheduler import artifacts, uploads
from scheduler.vocabulary import ArtifactView
from scheduler.web.edge import EdgeOf, acting_firm, acting_project
from scheduler.web.internal import range_start, stream
from scheduler.web.schemas import ArtifactOut, Before, FirmQuery, Limit, LinkOut, UploadIn, UploadOut
from scheduler.web.views import artifact_out

JSON_BYTES_MAX = 1 << 16


class BoundedRoute(APIRoute):
    """The app does not limit bodies under /api/uploads, because parts are large: the JSON ones are limited here."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse a JSON body that is too long, or does not say how long it is, before reading it."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            declared = request.headers.get("content-length", "0")
            chunked = "transfer-encoding" in request.headers
            if request.method == "POST" and (chunked or not declared.isdigit() or int(declared) > JSON_BYTES_MAX):
                raise TooLarge(f"this takes a JSON body of at most {JSON_BYTES_MAX} bytes, with its Content-Length")
            return await handle(request)

        return bounded


router = APIRouter(prefix="/api", route_class=BoundedRoute, tags=["files"])


@router.post("/uploads", status_code=201)
async def create_upload(body: UploadIn, principal: CurrentPrincipal, db: Db, now: Now, edge: EdgeOf) -> UploadOut:
    """Announce a file with its size and SHA-256. Too large is refused here, before a byte is sent."""
    firm = acting_firm(principal, body.firm_id, Action.ARTIFACT_WRITE)
    async with db.transaction() as tx:
        project = await project_of(tx, acting_project(principal, body.project_id), firm)
        row = await uploads.create_upload(
            tx,
            firm_id=firm,
            project_id=project.id,
            name=body.name,
            size_bytes=body.size_bytes,
            sha256=body.sha256,
            by=principal.id,
            terms=edge.terms,
            now=now,
        )
        return UploadOut.model_validate(row)


@router.get("/uploads")
async def list_uploads(
    principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None, limit: Limit = 50
) -> list[UploadOut]:
    """A firm's uploads, newest first."""
    firm = acting_firm(principal, firm_id, Action.ARTIFACT_READ)
    async with db.transaction() as tx:
        return [UploadOut.model_validate(row) for row in await uploads.list_uploads(tx, firm, limit=limit)]


@router.get("/uploads/{upload_id}")
async def view_upload(upload_id: str, principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> UploadOut:
    """How far an upload is: `received_bytes` is the offset to continue from."""
    firm = acting_firm(principal, firm_id, Action.ARTIFACT_WRITE)
    async with db.transaction() as tx:
        return UploadOut.model_validate(await uploads.upload_of(tx, upload_id, firm_id=firm))


@router.patch("/uploads/{upload_id}")
async def add_part(
    upload_id: str,
    request: Request,
    principal: CurrentPrincipal,
    db: Db,
    edge: EdgeOf,
    upload_offset: Annotated[int, Header(ge=0, description="the number of the first byte of this part")],
    firm_id: FirmQuery = None,
) -> UploadOut:
    """Send bytes from an offset on; the body is the bytes themselves. A part counts once it has arrived whole."""
    firm = acting_firm(principal, firm_id, Action.ARTIFACT_WRITE)
    row = await uploads.add_part(db, edge.blobs, upload_id, upload_offset, chunks_of(request), firm_id=firm)
    return UploadOut.model_validate(row)


@router.post("/uploads/{upload_id}/complete")
async def complete_upload(
    upload_id: str, principal: CurrentPrincipal, db: Db, edge: EdgeOf, firm_id: FirmQuery = None
) -> UploadOut:
    """Check the whole file against its SHA-256; from then on jobs can read it."""
    firm = acting_firm(principal, firm_id, Action.ARTIFACT_WRITE)
    return UploadOut.model_validate(await uploads.complete_upload(db, edge.blobs, upload_id, firm_id=firm))


@router.delete("/uploads/{upload_id}", status_code=204)
async def delete_upload(
    upload_id: str, principal: CurrentPrincipal, db: Db, edge: EdgeOf, firm_id: FirmQuery = None
) -> None:
    """Forget a file."""
    firm = acting_firm(principal, firm_id, Action.ARTIFACT_WRITE)
    await uploads.delete_upload(db, edge.blobs, upload_id, firm_id=firm)


@router.get("/artifacts")
async def list_artifacts(
    principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None, before: Before = None, limit: Limit = 50
) -> list[ArtifactOut]:
    """A firm's artifacts, newest first."""
    firm = acting_firm(principal, firm_id, Action.ARTIFACT_READ)
    async with db.transaction() as tx:
        return [artifact_out(a) for a in await artifacts.list_artifacts(tx, firm, before=before, limit=limit)]


@router.get("/artifacts/{artifact_id}")
async def view_artifact(
    artifact_id: str, principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None
) -> ArtifactOut:
    """An artifact's name, size and hash."""
    firm = acting_firm(principal, firm_id, Action.ARTIFACT_READ)
    async with db.transaction() as tx:
        return artifact_out(await artifacts.artifact_view(tx, artifact_id, firm_id=firm))


@router.get("/artifacts/{artifact_id}/content")
async def read_artifact(
    artifact_id: str, request: Request, principal: CurrentPrincipal, db: Db, edge: EdgeOf, firm_id: FirmQuery = None
) -> StreamingResponse:
    """Its bytes; `Range: bytes=N-` continues."""
    firm = acting_firm(principal, firm_id, Action.ARTIFACT_READ)
    async with db.transaction() as tx:
        seen = await artifacts.artifact_view(tx, artifact_id, firm_id=firm)
    start = range_start(request, seen.size_bytes)
    _, chunks = await artifacts.open_artifact(db, edge.blobs, artifact_id, firm_id=firm, start=start)
    return stream(chunks, seen.size_bytes, start, _attachment(seen))


@router.post("/artifacts/{artifact_id}/link")
async def link_artifact(
    artifact_id: str, principal: CurrentPrincipal, db: Db, now: Now, edge: EdgeOf, firm_id: FirmQuery = None
) -> LinkOut:
    """A link to this one object for a few minutes, for a program without our keys."""
    firm = acting_firm(principal, firm_id, Action.ARTIFACT_READ)
    async with db.transaction() as tx:
        await artifacts.artifact_view(tx, artifact_id, firm_id=firm)
    until = now + timedelta(seconds=edge.terms.link_seconds)
    query = signed_query(edge.signing_key, _subject(firm, artifact_id), until=until)
    return LinkOut(url=f"/api/downloads/{firm}/{artifact_id}?{query}", expires_at=until)


@router.get("/downloads/{firm_id}/{artifact_id}", include_in_schema=False)
async def download(
    firm_id: str,
    artifact_id: str,
    expires: int,
    signature: Annotated[str, Query(max_length=128)],
    request: Request,
    db: Db,
    now: Now,
    edge: EdgeOf,
) -> StreamingResponse:
    """What a signed link leads to."""
    check_signed(edge.signing_key, _subject(firm_id, artifact_id), expires=expires, signature=signature, now=now)
    async with db.transaction() as tx:
        try:
            seen = await artifacts.artifact_view(tx, artifact_id, firm_id=firm_id)
        except NotFound:
            raise NotFound(
                "There is no such artifact any more.", code="artifact_not_found", hint="see: heliu artifact list"
            ) from None
    start = range_start(request, seen.size_bytes)
    _, chunks = await artifacts.open_artifact(db, edge.blobs, artifact_id, firm_id=firm_id, start=start)
    return stream(chunks, seen.size_bytes, start, _attachment(seen))


def _subject(firm_id: str, artifact_id: str) -> str:
    return f"artifact:{firm_id}:{artifact_id}"


def _attachment(seen: ArtifactView) -> dict[str, str]:
    name = quote(seen.name.rpartition("/")[2])
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{name}", "ETag": f'"{seen.sha256}"'}
