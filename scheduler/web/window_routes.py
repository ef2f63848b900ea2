"""Maintenance windows and advance reservations."""

from fastapi import APIRouter

from quotas.api import Action, CurrentPrincipal, Db, Now, audit, is_staff, require
from scheduler import kept_times
from scheduler.adapters.tables import WindowRow
from scheduler.web.window_schemas import WindowIn, WindowOut

router = APIRouter(prefix="/api", tags=["fleet"])


@router.get("/windows")
async def list_windows(principal: CurrentPrincipal, db: Db, now: Now) -> list[WindowOut]:
    """Times for which nodes are kept, by their starts. For whom, the staff sees, and the firm itself."""
    require(principal, Action.FLEET_READ, firm_id=None)
    async with db.transaction() as tx:
        rows = await kept_times.open_windows(tx, now=now)
    sees_all = is_staff(principal)
    shown = [WindowOut.model_validate(row) for row in rows]
    return [
        one if sees_all or one.firm_id in (None, principal.firm_id) else one.model_copy(update=_ELSEWHERE)
        for one in shown
    ]


@router.post("/windows", status_code=201)
async def keep_time(body: WindowIn, principal: CurrentPrincipal, db: Db, now: Now) -> WindowOut:
    """Keep a node, a pool or a centre for maintenance or for one firm; work that would run into it starts elsewhere."""
    require(principal, Action.FLEET_MANAGE, firm_id=None)
    async with db.transaction() as tx:
        row = await kept_times.keep_time(
            tx,
            scope=body.scope,
            target=body.target,
            starts_at=body.starts_at,
            ends_at=body.ends_at,
            reason=body.reason,
            firm_id=body.firm_id,
            by=principal,
            now=now,
        )
        await audit.record(tx, "window.set", row.id, by=principal, now=now, reason=row.reason, after=_state(row))
        return WindowOut.model_validate(row)


@router.post("/windows/{window_id}/lift")
async def lift(window_id: str, principal: CurrentPrincipal, db: Db, now: Now) -> WindowOut:
    """Free its nodes for everybody again."""
    require(principal, Action.FLEET_MANAGE, firm_id=None)
    async with db.transaction() as tx:
        row = await kept_times.lift(tx, window_id, now=now)
        await audit.record(tx, "window.lift", row.id, by=principal, now=now, after=_state(row))
        return WindowOut.model_validate(row)


_ELSEWHERE = {"firm_id": "another firm", "reason": "kept for another firm"}


def _state(row: WindowRow) -> dict[str, object]:
    lifted = row.cancelled_at.isoformat() if row.cancelled_at else None
    span = {"starts_at": row.starts_at.isoformat(), "ends_at": row.ends_at.isoformat(), "lifted_at": lifted}
    return {"scope": row.scope, "target": row.target, "firm_id": row.firm_id, **span}
