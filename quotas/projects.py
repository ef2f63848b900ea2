"""Projects: productions inside a firm; the finest unit that quota and cost attach to."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.auth import Principal
from kit.errors import NotFound
from kit.ids import new_id
from quotas import audit
from quotas.adapters import people_store as store
from quotas.adapters.tables import ProjectRow
from quotas.applications import require_active
from quotas.vocabulary import FirmId, ProjectId, ProjectView


async def create_project(
    tx: AsyncSession, firm_id: FirmId, name: str, *, by: Principal, now: datetime, origin: str | None = None
) -> ProjectView:
    """A new project. Raises NotFound, Forbidden (firm not active), Conflict (`project_taken`)."""
    await require_active(tx, firm_id)
    row = ProjectRow(id=new_id("prj"), firm_id=firm_id, name=name, created_at=now)
    await store.insert(tx, row)
    await audit.record(
        tx, "project.create", row.id, by=by, now=now, firm_id=firm_id, origin=origin, after={"name": name}
    )
    await events.append(tx, "project.created", row.id, {"name": name}, now=now, firm_id=firm_id)
    return _view(row)


async def list_projects(tx: AsyncSession, firm_id: FirmId) -> Sequence[ProjectView]:
    """A firm's projects, oldest first; the default one among them."""
    return [_view(row) for row in await store.projects(tx, firm_id)]


async def project_of(tx: AsyncSession, project_id: ProjectId | None, firm_id: FirmId) -> ProjectView:
    """The project if it is this firm's; without an id the firm's default one.

    Raises NotFound, the same for a project that does not exist and for another firm's.
    """
    row = await store.project(tx, firm_id, project_id=project_id)
    if row is None:
        raise NotFound(
            f"There is no project {project_id or 'default'}.", code="project_not_found", hint="see: heliu project list"
        )
    return _view(row)


def _view(row: ProjectRow) -> ProjectView:
    return ProjectView(ProjectId(row.id), FirmId(row.firm_id), row.name)
