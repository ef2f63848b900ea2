"""The audit log: read it, take it away, prove it."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from quotas import audit, audit_chain
from quotas.access import Action, home_firm, is_staff, require
from quotas.vocabulary import ExportFormat, FirmId
from quotas.web.audit_schemas import AuditBlockOut, AuditReportOut
from quotas.web.deps import CurrentPrincipal, Db
from quotas.web.schemas import AuditOut, FirmQuery, Limit

INT64_MAX = 2**63 - 1
MEDIA = {ExportFormat.JSONL: "application/jsonl", ExportFormat.CSV: "text/csv; charset=utf-8"}


def router(heads: Path) -> APIRouter:
    """Routes that compare the log's blocks with the heads written to `heads`."""
    routes = APIRouter(prefix="/api/audit", tags=["audit"])

    @routes.get("")
    async def audit_log(
        principal: CurrentPrincipal,
        db: Db,
        firm_id: FirmQuery = None,
        subject: Annotated[str | None, Query(max_length=200)] = None,
        action: Annotated[str | None, Query(max_length=100)] = None,
        before_seq: Annotated[int | None, Query(ge=1, le=INT64_MAX)] = None,
        limit: Limit = 100,
    ) -> list[AuditOut]:
        """Who did what, newest first: of one firm, or everything for the platform's staff who name none."""
        firm = FirmId(firm_id) if firm_id else None if is_staff(principal) else home_firm(principal)
        require(principal, Action.AUDIT_READ, firm_id=firm)
        async with db.transaction() as tx:
            rows = await audit.entries(
                tx, firm_id=firm, subject=subject, action=action, before_seq=before_seq, limit=limit
            )
            return [AuditOut.model_validate(row) for row in rows]

    @routes.get("/export", response_class=StreamingResponse)
    async def export(
        principal: CurrentPrincipal,
        db: Db,
        firm_id: FirmQuery = None,
        format: Annotated[ExportFormat, Query()] = ExportFormat.JSONL,
    ) -> StreamingResponse:
        """The whole log as a file, oldest first: JSON lines (the text that is hashed) or CSV."""
        firm = FirmId(firm_id) if firm_id else None if is_staff(principal) else home_firm(principal)
        require(principal, Action.AUDIT_READ, firm_id=firm)
        name = {"Content-Disposition": f'attachment; filename="audit.{format.value}"'}
        return StreamingResponse(audit_chain.export_audit(db, firm, format), media_type=MEDIA[format], headers=name)

    @routes.get("/verify")
    async def verify(principal: CurrentPrincipal, db: Db) -> AuditReportOut:
        """Prove that nothing that was sealed has been changed since."""
        require(principal, Action.AUDIT_READ, firm_id=None)
        async with db.transaction() as tx:
            return AuditReportOut.model_validate(await audit_chain.verify_audit(tx, heads))

    @routes.get("/blocks")
    async def blocks(principal: CurrentPrincipal, db: Db) -> list[AuditBlockOut]:
        """The sealed blocks, to check an export against."""
        require(principal, Action.AUDIT_READ, firm_id=None)
        async with db.transaction() as tx:
            return [AuditBlockOut.of(one) for one in await audit_chain.audit_blocks(tx)]

    return routes
