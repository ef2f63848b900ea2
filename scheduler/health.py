"""Whether nodes do their work: one where attempt after attempt cannot be prepared is closed, with the reason."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.db import sql
from scheduler.terms import Terms
from scheduler.vocabulary import EndCause


class _Attempt(Protocol):
    id: str
    started_at: datetime | None


class Ended(Protocol):
    """An attempt that is over, and why."""

    @property
    def attempt(self) -> _Attempt: ...
    @property
    def cause(self) -> EndCause: ...
    @property
    def message(self) -> str: ...
    @property
    def node_is_fit(self) -> bool: ...


async def note(tx: AsyncSession, endings: Sequence[Ended], terms: Terms, *, now: datetime) -> None:
    """Count what could not be prepared on each node, from the last attempt on that began there; close what fails.

    The caller holds the locks of these nodes: they were just given back.
    """
    began = [ending.attempt.id for ending in endings if ending.attempt.started_at is not None]
    failed = {e.attempt.id: e.message for e in endings if e.cause is EndCause.SETUP and not e.node_is_fit}
    if began:
        await tx.execute(
            sql("""
                UPDATE scheduler.node SET failed_setups = 0 WHERE failed_setups > 0 AND id IN (
                    SELECT node_id FROM scheduler.placement WHERE attempt_id = ANY(CAST(:attempts AS text[])))"""),
            {"attempts": began},
        )
    for attempt_id, message in sorted(failed.items()):
        rows = await tx.execute(
            sql("""
                UPDATE scheduler.node SET failed_setups = failed_setups + 1 WHERE id IN (
                    SELECT node_id FROM scheduler.placement WHERE attempt_id = :attempt)
                RETURNING id, failed_setups, cordon_reason"""),
            {"attempt": attempt_id},
        )
        for node_id, failures, closed in rows.all():
            if failures >= terms.node_failures_max and closed is None:
                await _close(tx, node_id, f"{failures} attempts in a row could not be prepared: {message}", now=now)


async def _close(tx: AsyncSession, node_id: str, reason: str, *, now: datetime) -> None:
    await tx.execute(
        sql("UPDATE scheduler.node SET cordon_reason = :reason WHERE id = :node"),
        {"node": node_id, "reason": reason[:500]},
    )
    await events.append(tx, "node.cordoned", node_id, {"reason": reason, "by": "health"}, now=now)
