"""What this package's routes share: the object store, the terms, and who may touch which job."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from kit.auth import Principal
from kit.blobs import Blobs
from quotas.api import Action, allowed_actions, home_firm, is_staff, require
from quotas.vocabulary import FirmId, ProjectId
from scheduler.adapters.tables import WorkloadRow
from scheduler.jobs import job_not_found
from scheduler.terms import Terms


@dataclass(frozen=True, slots=True)
class Edge:
    """What the composition gives to the routes."""

    blobs: Blobs
    terms: Terms
    signing_key: bytes = field(repr=False)


def edge_of(request: Request) -> Edge:
    """The edge that `main.routers` put on the request."""
    edge: Edge = request.state.scheduler
    return edge


EdgeOf = Annotated[Edge, Depends(edge_of)]


def acting_firm(principal: Principal, firm_id: str | None, action: Action) -> FirmId:
    """The firm a request is about: the one it names, or the caller's own. Raises NotFound, Forbidden."""
    firm = FirmId(firm_id) if firm_id else home_firm(principal)
    require(principal, action, firm_id=firm)
    return firm


def acting_project(principal: Principal, project_id: str | None) -> ProjectId | None:
    """The project a request is about: the one it names, or the one its key belongs to."""
    chosen = project_id or principal.project_id
    return ProjectId(chosen) if chosen else None


def may_touch(principal: Principal, action: Action, job: WorkloadRow) -> None:
    """Return if the caller may do `action` to the job; another firm's job is NotFound like one that is not there."""
    if action in allowed_actions(principal, firm_id=FirmId(job.firm_id)):
        return
    if principal.firm_id == job.firm_id or is_staff(principal):
        require(principal, action, firm_id=FirmId(job.firm_id))
    raise job_not_found(job.id)
