"""The platform's own past, for its staff: a recording to simulate, and the decisions as they were made."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from kit import events
from kit.auth import Principal
from kit.errors import Forbidden, InvalidInput
from quotas.api import Action, CurrentPrincipal, Db, Now, is_staff, require
from scheduler import history
from scheduler.recording import Recording
from scheduler.web.edge import EdgeOf
from scheduler.web.why_schemas import DecisionOut, DecisionsOut

router = APIRouter(prefix="/api", tags=["fleet"])
SPAN_MAX = timedelta(days=92)


@router.get("/recording")
async def recording(
    principal: CurrentPrincipal,
    db: Db,
    now: Now,
    edge: EdgeOf,
    since: Annotated[AwareDatetime | None, Query(description="default: a week ago")] = None,
    until: Annotated[AwareDatetime | None, Query(description="default: now")] = None,
) -> Recording:
    """What was submitted in a period, with the nodes and quotas of now: what `heliu simulate` plays again."""
    _require_staff(principal)
    end = until or now
    start = since or end - timedelta(days=7)
    if not timedelta(0) < end - start <= SPAN_MAX:
        raise InvalidInput(f"a recording covers up to {SPAN_MAX.days} days", hint="give since before until")
    async with db.transaction() as tx:
        return await history.record(tx, edge.terms, since=start, until=end, now=now)


@router.get("/decisions")
async def decisions(
    principal: CurrentPrincipal,
    db: Db,
    after: Annotated[str, Query(max_length=60, description="the cursor of an earlier page")] = events.START,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> DecisionsOut:
    """Every decision that became a fact, in order: who started where, who waits for what, who was stopped and why."""
    _require_staff(principal)
    async with db.transaction() as tx:
        page = await events.read(tx, after=events.Cursor(after), topics=history.DECISIONS, limit=limit)
    told = [
        DecisionOut(cursor=e.cursor, at=e.at, topic=e.topic, subject=e.subject, firm_id=e.firm_id, body=dict(e.body))
        for e in page
    ]
    return DecisionsOut(decisions=told, cursor=told[-1].cursor if told else after)


def _require_staff(principal: Principal) -> None:
    require(principal, Action.QUEUE_READ, firm_id=None)
    if not is_staff(principal):
        raise Forbidden(
            "only the platform's staff sees what all firms submitted", hint="a firm has its jobs: heliu job list"
        )
