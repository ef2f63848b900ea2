"""Runners claim attempts and begin: many in one statement; it locks workloads in id order, each before its attempt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_CLAIM = text("""
    WITH live AS (
        SELECT a.id, a.state, a.runner, u.runner AS by FROM scheduler.workload AS w
        JOIN scheduler.attempt AS a ON a.workload_id = w.id
        JOIN unnest(CAST(:ids AS text[]), CAST(:runners AS text[])) AS u (id, runner) ON u.id = a.id
        WHERE a.ended_at IS NULL ORDER BY w.id FOR UPDATE OF w, a)
    UPDATE scheduler.attempt AS a SET lease_until = :until, runner = live.by, claimed_at = coalesce(a.claimed_at, :now),
        state = CASE live.state WHEN 'placed' THEN 'claimed' ELSE live.state END
    FROM live WHERE a.id = live.id AND (live.state = 'placed' OR live.runner = live.by) RETURNING a.id""")
_BEGIN = text("""
    WITH live AS (
        SELECT w.id AS workload_id, w.kind, w.firm_id, a.id, a.state = 'claimed' AS is_first
        FROM scheduler.workload AS w JOIN scheduler.attempt AS a ON a.workload_id = w.id
        WHERE a.id = ANY(CAST(:ids AS text[])) AND a.ended_at IS NULL AND a.state <> 'placed'
        ORDER BY w.id FOR UPDATE OF w, a
    ), attempts AS (
        UPDATE scheduler.attempt AS a
        SET state = 'running', lease_until = :until, started_at = coalesce(a.started_at, :now)
        FROM live WHERE a.id = live.id
    ), workloads AS (
        UPDATE scheduler.workload AS w
        SET state = 'running', started_at = coalesce(w.started_at, :now), running_since = :now
        FROM live WHERE w.id = live.workload_id AND live.is_first
    )
    SELECT id, workload_id, kind, firm_id, is_first FROM live""")


@dataclass(frozen=True, slots=True)
class Begun:
    """An attempt that may run. `is_first`: it has begun just now."""

    id: str
    workload_id: str
    kind: str
    firm_id: str
    is_first: bool


async def claim(tx: AsyncSession, runners: Mapping[str, str], *, until: datetime, now: datetime) -> set[str]:
    """Give attempts to these runners until their leases end; the ids of those that nobody else has, nor are over."""
    rows = await tx.execute(
        _CLAIM, {"ids": list(runners), "runners": list(runners.values()), "until": until, "now": now}
    )
    return {row.id for row in rows}


async def begin(tx: AsyncSession, attempt_ids: Sequence[str], *, until: datetime, now: datetime) -> list[Begun]:
    """Those that were claimed and are not over run from now on, or have been running since they began."""
    rows = await tx.execute(_BEGIN, {"ids": list(attempt_ids), "until": until, "now": now})
    return [Begun(*row) for row in rows]
