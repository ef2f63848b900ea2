"""API keys and projects."""

from datetime import timedelta

from fastapi import APIRouter

from kit.auth import Principal
from quotas import keys, projects
from quotas.access import Action, home_firm, require
from quotas.adapters.tables import ApiKeyRow
from quotas.applications import firm_row
from quotas.vocabulary import FirmId, KeyId, ProjectId
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin
from quotas.web.schemas import (
    FirmQuery,
    IssuedKeyOut,
    KeyIn,
    KeyOut,
    ProjectIn,
    ProjectOut,
    RevokeIn,
    RotateIn,
)

router = APIRouter(prefix="/api", tags=["keys"])


@router.post("/keys", status_code=201)
async def issue_key(body: KeyIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> IssuedKeyOut:
    """Make a key. Its token is shown once."""
    firm = FirmId(body.firm_id or home_firm(principal))
    require(principal, Action.KEY_MANAGE, firm_id=firm)
    fields = body.model_dump(exclude={"firm_id", "project_id"})
    spec = keys.KeySpec(**fields, project_id=ProjectId(body.project_id) if body.project_id else None)
    async with db.transaction() as tx:
        made = await keys.issue_key(tx, firm, spec, by=principal, now=now, origin=origin)
        return IssuedKeyOut.model_validate(made)


@router.get("/keys")
async def list_keys(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[KeyOut]:
    """A firm's keys, newest first, never their secrets."""
    firm = FirmId(firm_id or home_firm(principal))
    require(principal, Action.KEY_READ, firm_id=firm)
    async with db.transaction() as tx:
        await firm_row(tx, firm)
        return [KeyOut.model_validate(row) for row in await keys.list_keys(tx, firm)]


@router.get("/keys/{key_id}")
async def view_key(key_id: str, principal: CurrentPrincipal, db: Db) -> KeyOut:
    """One key, never its secret."""
    async with db.transaction() as tx:
        row = await keys.key_row(tx, KeyId(key_id))
        _may(principal, Action.KEY_READ, row)
        return KeyOut.model_validate(row)


@router.post("/keys/{key_id}/revoke")
async def revoke_key(
    key_id: str, body: RevokeIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> KeyOut:
    """Stop a key everywhere within two seconds."""
    async with db.transaction() as tx:
        row = await keys.key_row(tx, KeyId(key_id))
        _may(principal, Action.KEY_REVOKE, row)
        stopped = await keys.revoke_key(tx, row, by=principal, now=now, why=body.reason, origin=origin)
        return KeyOut.model_validate(stopped)


@router.post("/keys/{key_id}/rotate", status_code=201)
async def rotate_key(
    key_id: str, body: RotateIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> IssuedKeyOut:
    """A new key like this one; this one goes on for the overlap."""
    overlap = timedelta(seconds=body.overlap_seconds)
    async with db.transaction() as tx:
        row = await keys.key_row(tx, KeyId(key_id))
        _may(principal, Action.KEY_MANAGE, row)
        made = await keys.rotate_key(tx, row, overlap=overlap, by=principal, now=now, origin=origin)
        return IssuedKeyOut.model_validate(made)


@router.post("/projects", status_code=201)
async def create_project(body: ProjectIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> ProjectOut:
    """A new production inside a firm."""
    firm = FirmId(body.firm_id or home_firm(principal))
    require(principal, Action.PROJECT_MANAGE, firm_id=firm)
    async with db.transaction() as tx:
        made = await projects.create_project(tx, firm, body.name, by=principal, now=now, origin=origin)
        return ProjectOut.model_validate(made)


@router.get("/projects")
async def list_projects(principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None) -> list[ProjectOut]:
    """A firm's projects, the default one among them."""
    firm = FirmId(firm_id or home_firm(principal))
    require(principal, Action.PROJECT_READ, firm_id=firm)
    async with db.transaction() as tx:
        await firm_row(tx, firm)
        return [ProjectOut.model_validate(one) for one in await projects.list_projects(tx, firm)]


def _may(principal: Principal, action: Action, row: ApiKeyRow) -> None:
    require(principal, action, firm_id=FirmId(row.firm_id), missing=keys.key_not_found(row.id))
