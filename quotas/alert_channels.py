"""Where a firm's alerts go, and what became of them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from kit.addresses import check_url
from kit.auth import Principal
from kit.errors import NotFound
from kit.fetch import FetchPolicy
from kit.ids import new_id
from quotas import audit
from quotas.adapters import budget_store as store
from quotas.applications import require_active
from quotas.vocabulary import ChannelKind, FirmId


async def add_channel(
    tx: AsyncSession,
    firm_id: FirmId,
    kind: ChannelKind,
    target: str,
    *,
    policy: FetchPolicy,
    by: Principal,
    now: datetime,
    origin: str | None = None,
) -> Mapping[str, Any]:
    """Send the firm's alerts to an address from now on. Raises InvalidInput for one that may not be called."""
    await require_active(tx, firm_id)
    if kind is ChannelKind.WEBHOOK:
        check_url(target, allowed=policy.allowed, schemes=policy.schemes)
    row = {"id": new_id("chn"), "firm_id": firm_id, "kind": kind.value, "target": target, "created_by": by.id}
    await store.insert(tx, "alert_channel", {**row, "created_at": now})
    await audit.record(tx, "alert_channel.add", row["id"], by=by, now=now, firm_id=firm_id, origin=origin, after=row)
    return {**row, "created_at": now}


async def channels_of(tx: AsyncSession, firm_id: FirmId) -> Sequence[Mapping[str, Any]]:
    """Where the firm's alerts go."""
    return await store.channels(tx, firm_id)


async def thing(tx: AsyncSession, table: str, thing_id: str) -> Mapping[str, Any]:
    """A channel or a delivery, locked. Raises NotFound."""
    row = await store.one(tx, table, thing_id)
    if row is None:
        raise thing_not_found(table, thing_id)
    return row


async def end_channel(
    tx: AsyncSession, row: Mapping[str, Any], *, by: Principal, now: datetime, origin: str | None = None
) -> None:
    """Send nothing there any more."""
    await store.end(tx, "alert_channel", row["id"], now=now)
    await audit.record(tx, "alert_channel.end", row["id"], by=by, now=now, firm_id=row["firm_id"], origin=origin)


async def alerts_of(tx: AsyncSession, firm_id: FirmId) -> Sequence[Mapping[str, Any]]:
    """A firm's alerts, newest first, with what became of each message."""
    return await store.alerts(tx, firm_id)


async def replay(
    tx: AsyncSession, row: Mapping[str, Any], *, by: Principal, now: datetime, origin: str | None = None
) -> None:
    """Send a message again, dead or delivered; it keeps its id, so its reader can tell."""
    await store.replay(tx, row["id"], now=now)
    await audit.record(tx, "delivery.replay", row["id"], by=by, now=now, firm_id=row["firm_id"], origin=origin)


def thing_not_found(table: str, thing_id: str) -> NotFound:
    """The one answer for what does not exist and for what is another firm's."""
    seen_by = "heliu alert channels" if table == "alert_channel" else "heliu alert list"
    return NotFound(
        f"There is no {table.replace('_', ' ')} {thing_id}.", code=f"{table}_not_found", hint=f"see: {seen_by}"
    )
