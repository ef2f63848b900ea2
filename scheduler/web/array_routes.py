"""Job arrays: many tasks of one shape."""

from typing import Annotated

from fastapi import APIRouter, Header, Query

from kit.auth import Principal
from kit.ids import new_id
from quotas.api import Action, CurrentPrincipal, Db, Now, allowed_actions, is_staff, require
from quotas.vocabulary import FirmId
from scheduler import arrays
from scheduler.adapters.tables import ArrayRow
from scheduler.vocabulary import JobState
from scheduler.web.array_schemas import ArrayIn, ArrayOut, RerunOut
from scheduler.web.edge import EdgeOf, acting_firm, acting_project
from scheduler.web.routes import spec_of
from scheduler.web.schemas import FirmQuery, JobOut, Limit
from scheduler.web.views import array_out, job_out

router = APIRouter(prefix="/api", tags=["arrays"])

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]


@router.post("/arrays", status_code=201)
async def submit(
    body: ArrayIn, principal: CurrentPrincipal, db: Db, now: Now, edge: EdgeOf, key: Key = None
) -> ArrayOut:
    """Submit `size` tasks of one shape; `{index}` in a string parameter is the task's number."""
    firm = acting_firm(principal, body.firm_id, Action.JOB_SUBMIT)
    row = await arrays.submit_array(
        db,
        edge.blobs,
        spec_of(body),
        size=body.size,
        at_most=body.at_most,
        firm_id=firm,
        project_id=acting_project(principal, body.project_id),
        idempotency_key=key or new_id("once"),
        by=principal,
        terms=edge.terms,
        now=now,
    )
    async with db.transaction() as tx:
        return array_out(await arrays.view(tx, row))


@router.get("/arrays")
async def list_arrays(
    principal: CurrentPrincipal, db: Db, firm_id: FirmQuery = None, limit: Limit = 50
) -> list[ArrayOut]:
    """A firm's arrays, newest first."""
    firm = acting_firm(principal, firm_id, Action.JOB_READ)
    async with db.transaction() as tx:
        return [array_out(one) for one in await arrays.arrays_of(tx, firm, limit=limit)]


@router.get("/arrays/{array_id}")
async def view_array(array_id: str, principal: CurrentPrincipal, db: Db) -> ArrayOut:
    """Where its tasks stand and what they cost."""
    async with db.transaction() as tx:
        row = await arrays.array_of(tx, array_id)
        _may(principal, Action.JOB_READ, row)
        return array_out(await arrays.view(tx, row))


@router.get("/arrays/{array_id}/tasks")
async def list_tasks(
    array_id: str,
    principal: CurrentPrincipal,
    db: Db,
    now: Now,
    state: Annotated[list[JobState] | None, Query()] = None,
    index: Annotated[int | None, Query(ge=0, description="only this task")] = None,
    after: Annotated[int, Query(ge=-1, description="continue an earlier page: its last index")] = -1,
    limit: Limit = 50,
) -> list[JobOut]:
    """The last run of each task that became a job, by index."""
    async with db.transaction() as tx:
        _may(principal, Action.JOB_READ, await arrays.array_of(tx, array_id))
        rows = await arrays.tasks_of(tx, array_id, states=state or [], index=index, after=after, limit=limit)
    return [job_out(row, now=now) for row in rows]


@router.post("/arrays/{array_id}/cancel")
async def cancel(array_id: str, principal: CurrentPrincipal, db: Db, now: Now, edge: EdgeOf) -> ArrayOut:
    """No further task gets its turn; those under way are stopped."""
    async with db.transaction() as tx:
        _may(principal, Action.JOB_CANCEL, await arrays.array_of(tx, array_id))
        reason = f"its array was cancelled by {principal.id}"
        row = await arrays.cancel_array(tx, array_id, reason=reason, terms=edge.terms, now=now)
        return array_out(await arrays.view(tx, row))


@router.post("/arrays/{array_id}/rerun")
async def rerun(array_id: str, principal: CurrentPrincipal, db: Db, now: Now) -> RerunOut:
    """Give each task whose last run failed another turn."""
    async with db.transaction() as tx:
        _may(principal, Action.JOB_SUBMIT, await arrays.array_of(tx, array_id))
        return RerunOut(tasks=await arrays.rerun_failed(tx, array_id, by=principal, now=now))


def _may(principal: Principal, action: Action, row: ArrayRow) -> None:
    """Another firm's array is NotFound like one that is not there."""
    firm = FirmId(row.firm_id)
    if action in allowed_actions(principal, firm_id=firm):
        return
    if principal.firm_id == row.firm_id or is_staff(principal):
        require(principal, action, firm_id=firm)
    raise arrays.array_not_found(row.id)
