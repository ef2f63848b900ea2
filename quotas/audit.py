"""The audit log: who did what to whom, when, from where, and what it changed. Nothing in it is ever changed."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic_core import to_jsonable_python
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from kit.auth import Principal
from quotas.adapters.tables import AuditRow


async def record(
    tx: AsyncSession,
    action: str,
    subject: str,
    *,
    by: Principal,
    now: datetime,
    firm_id: str | None = None,
    origin: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    reason: str | None = None,
) -> None:
    """Write one entry in the caller's transaction. `action` is `noun.verb`; `before`/`after` never hold secrets."""
    tx.add(
        AuditRow(
            at=now,
            actor_kind=by.kind.value,
            actor_id=by.id,
            actor_firm_id=by.firm_id,
            origin=origin,
            action=action,
            subject=subject,
            firm_id=firm_id,
            before=to_jsonable_python(before),
            after=to_jsonable_python(after),
            reason=reason,
        )
    )


async def entries(
    tx: AsyncSession,
    *,
    firm_id: str | None = None,
    subject: str | None = None,
    action: str | None = None,
    before_seq: int | None = None,
    limit: int = 100,
) -> Sequence[AuditRow]:
    """Entries, newest first; `before_seq` continues an earlier page."""
    query = select(AuditRow).order_by(col(AuditRow.seq).desc()).limit(limit)
    if firm_id is not None:
        query = query.where(AuditRow.firm_id == firm_id)
    if subject is not None:
        query = query.where(AuditRow.subject == subject)
    if action is not None:
        query = query.where(AuditRow.action == action)
    if before_seq is not None:
        query = query.where(col(AuditRow.seq) < before_seq)
    return (await tx.execute(query)).scalars().all()
