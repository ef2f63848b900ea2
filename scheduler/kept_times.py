"""Maintenance windows and advance reservations: set and lifted by those who run the centres."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from kit import events
from kit.auth import Principal
from kit.db import notify
from kit.errors import Conflict, InvalidInput, NotFound
from kit.ids import new_id
from quotas import api as quotas
from quotas.vocabulary import FirmId
from scheduler.adapters import store
from scheduler.adapters.tables import WindowRow
from scheduler.vocabulary import JOBS_CHANNEL
from scheduler.windows import Window, WindowScope

SPAN_MAX = timedelta(days=366)


async def keep_time(
    tx: AsyncSession,
    *,
    scope: WindowScope,
    target: str,
    starts_at: datetime,
    ends_at: datetime,
    reason: str,
    firm_id: str | None,
    by: Principal,
    now: datetime,
    for_drain: bool = False,
) -> WindowRow:
    """Keep a node, pool or centre for maintenance, or for one firm. Raises NotFound, InvalidInput, Conflict.

    Two firms cannot have the same node at the same time (`window_taken`); maintenance goes before everything.
    """
    if not now < ends_at or not starts_at < ends_at <= starts_at + SPAN_MAX:
        span = f"from {starts_at:%Y-%m-%d %H:%M %Z} until {ends_at:%Y-%m-%d %H:%M %Z}"
        raise InvalidInput(
            f"{span} is no window: it ends after its start and after now, and lasts {SPAN_MAX.days} days at most",
            code="bad_window",
            hint="name an end to come",
        )
    pools = await _pools_under(tx, scope, target)
    if firm_id is not None:
        await quotas.require_active(tx, FirmId(firm_id))
        await _require_untaken(tx, scope, target, pools, starts_at, ends_at, firm_id, now=now)
    row = WindowRow(
        id=new_id("win"), scope=scope, target=target, firm_id=firm_id, reason=reason.strip(), starts_at=starts_at,
        ends_at=ends_at, for_drain=for_drain, created_by=by.id, created_at=now,
    )  # fmt: skip
    await store.insert(tx, row)
    body = {"scope": scope, "target": target, "firm_id": firm_id, "starts_at": starts_at, "ends_at": ends_at}
    await events.append(tx, "window.set", row.id, body | {"reason": row.reason}, now=now)
    await notify(tx, JOBS_CHANNEL, "*")
    return row


async def lift(tx: AsyncSession, window_id: str, *, now: datetime) -> WindowRow:
    """The nodes are free for everybody again. Lifting twice is fine. Raises NotFound."""
    row = await tx.get(WindowRow, window_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound(f"There is no window {window_id}.", code="window_not_found", hint="see: heliu window list")
    if row.cancelled_at is None:
        row.cancelled_at = now
        await events.append(tx, "window.lifted", row.id, {"target": row.target}, now=now)
        await notify(tx, JOBS_CHANNEL, "*")
    return row


async def drain_from(
    tx: AsyncSession, node_id: str, at: datetime, reason: str, *, by: Principal, now: datetime
) -> WindowRow:
    """What runs on a closed node may end until then; what is left is stopped, keeps a checkpoint, and is moved."""
    return await keep_time(
        tx,
        scope=WindowScope.NODE,
        target=node_id,
        starts_at=max(at, now),
        ends_at=max(at, now) + SPAN_MAX,
        reason=reason,
        firm_id=None,
        by=by,
        now=now,
        for_drain=True,
    )


async def lift_drain(tx: AsyncSession, node_id: str, *, now: datetime) -> None:
    """A node that is opened again is not drained later."""
    for row in await open_windows(tx, now=now):
        if row.for_drain and row.target == node_id:
            await lift(tx, row.id, now=now)


async def open_windows(tx: AsyncSession, *, now: datetime) -> Sequence[WindowRow]:
    """Windows that are not over and were not lifted, in the order of their starts."""
    query = select(WindowRow).where(col(WindowRow.cancelled_at).is_(None), col(WindowRow.ends_at) > now)
    return (await tx.execute(query.order_by(col(WindowRow.starts_at), col(WindowRow.id)))).scalars().all()


def as_window(row: WindowRow) -> Window:
    """A window as decisions see it."""
    firm = FirmId(row.firm_id) if row.firm_id else None
    return Window(row.id, WindowScope(row.scope), row.target, firm, row.starts_at, row.ends_at, row.reason)


async def _require_untaken(
    tx: AsyncSession,
    scope: WindowScope,
    target: str,
    pools: set[str],
    starts_at: datetime,
    ends_at: datetime,
    firm_id: str,
    *,
    now: datetime,
) -> None:
    for other in await open_windows(tx, now=now):
        if other.firm_id in (None, firm_id) or not as_window(other).meets(starts_at, ends_at):
            continue
        if scope is WindowScope.NODE and other.scope == WindowScope.NODE and other.target != target:
            continue
        if pools & await _pools_under(tx, other.scope, other.target):
            raise Conflict(
                f"{other.scope} {other.target} is kept for another firm from {other.starts_at:%m-%d %H:%M} UTC on",
                code="window_taken",
                hint="see: heliu window list",
            )


async def _pools_under(tx: AsyncSession, scope: str, target: str) -> set[str]:
    """The pools that have a part in it. Raises NotFound for what is not there."""
    match WindowScope(scope):
        case WindowScope.NODE:
            node = await store.node(tx, target)
            pools = {node.pool} if node else set[str]()
        case WindowScope.POOL:
            pools = {pool.name for pool in await store.pools(tx) if pool.name == target}
        case WindowScope.CENTRE:
            pools = {pool.name for pool in await store.pools(tx) if pool.centre == target}
    if not pools:
        hint = "see: heliu node list" if scope == WindowScope.NODE else "see: heliu pool list"
        raise NotFound(f"There is no {scope} {target}.", code=f"{scope}_not_found", hint=hint)
    return pools
