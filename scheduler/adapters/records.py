"""Work that is placed, started or over, many at once: read and locked by one statement, written back by one.

A record has the columns that the life of attempts reads or changes, and remembers how it was read: only what differs
is written. Whoever locks several locks workloads in id order, each before its attempt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import update_many
from scheduler.adapters.gangs import Gang
from scheduler.adapters.tables import AttemptRow, WorkloadRow


@dataclass(slots=True)
class Workload(Gang):
    """A job or a replica; see `tables.WorkloadRow`."""

    id: str
    kind: str
    firm_id: str
    project_id: str
    submitted_by: str
    recipe: str | None
    workers: int
    workers_max: int | None
    gpu_milli: int
    cpu_milli: int
    memory_mib: int
    qos: str
    max_runtime_seconds: int | None
    cap_micro_yuan: int | None
    hard_cap_micro_yuan: int | None
    charged_micro_yuan: int
    state: str
    fence: int
    failures: int
    retries: int
    program_errors: int
    wait_reason: str | None
    wait_detail: str | None
    eta: datetime | None
    eta_estimated: bool
    held_until: datetime | None
    stop_requested_at: datetime | None
    pause_requested_at: datetime | None
    pause_reason: str | None
    progress: dict[str, Any] | None
    last_cause: str | None
    last_message: str | None
    started_at: datetime | None
    ended_at: datetime | None
    kept_ms: int
    lost_gpu_ms: int
    was: Mapping[str, Any] = field(default_factory=dict[str, Any])  # as it was read


@dataclass(slots=True)
class Attempt:
    """A try that is not over; see `tables.AttemptRow`."""

    id: str
    pool: str
    hold_id: str
    held_seconds: int
    fence: int
    state: str
    claimed_at: datetime | None
    lease_until: datetime | None
    started_at: datetime | None
    stop_cause: str | None
    stop_message: str | None
    ended_at: datetime | None
    cause: str | None
    message: str | None
    exit_code: int | None
    ran_ms: int | None
    metered_ms: int
    kept_ms: int
    was: Mapping[str, Any] = field(default_factory=dict[str, Any])  # as it was read


AnyWorkload: TypeAlias = Workload | WorkloadRow
AnyAttempt: TypeAlias = Attempt | AttemptRow

_WORKLOAD = [one.name for one in fields(Workload) if one.name != "was"]
_ATTEMPT = [one.name for one in fields(Attempt) if one.name != "was"]
_WORKLOAD_COLUMNS = ", ".join(f"w.{name}" for name in _WORKLOAD)
_ATTEMPT_COLUMNS = ", ".join(f"a.{name}" for name in _ATTEMPT)

_WAITING = text(f"""
    SELECT {_WORKLOAD_COLUMNS} FROM scheduler.workload AS w
    WHERE w.id = ANY(CAST(:ids AS text[])) AND w.state = 'queued' AND w.ended_at IS NULL
      AND w.stop_requested_at IS NULL
    ORDER BY w.id FOR UPDATE""")  # noqa: S608
_LIVE = text(f"""
    SELECT {_WORKLOAD_COLUMNS}, {_ATTEMPT_COLUMNS} FROM scheduler.workload AS w
    JOIN scheduler.attempt AS a ON a.workload_id = w.id
    WHERE a.id = ANY(CAST(:ids AS text[])) AND a.ended_at IS NULL ORDER BY w.id FOR UPDATE OF w, a""")  # noqa: S608


async def waiting_locked(tx: AsyncSession, ids: Sequence[str]) -> dict[str, Workload]:
    """Those of the workloads that wait and were not told to stop, by id."""
    return {row.id: _workload(row) for row in await tx.execute(_WAITING, {"ids": list(ids)})}


async def live_locked(tx: AsyncSession, attempt_ids: Sequence[str]) -> dict[str, tuple[Workload, Attempt]]:
    """Those of the attempts that are not over, each with its workload, by the attempt's id."""
    found: dict[str, tuple[Workload, Attempt]] = {}
    for row in await tx.execute(_LIVE, {"ids": list(attempt_ids)}):
        own = row[len(_WORKLOAD) :]
        attempt = Attempt(*own, was=dict(zip(_ATTEMPT, own, strict=True)))
        found[attempt.id] = _workload(row[: len(_WORKLOAD)]), attempt
    return found


async def write(tx: AsyncSession, workloads: Sequence[Workload], attempts: Sequence[Attempt] = ()) -> None:
    """Write what has changed of these since they were read."""
    await _write(tx, "scheduler.attempt", _ATTEMPT, attempts)
    await _write(tx, "scheduler.workload", _WORKLOAD, workloads)


async def _write(tx: AsyncSession, table: str, columns: list[str], rows: Sequence[Workload | Attempt]) -> None:
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}  # rows of which the same columns have changed
    for row in rows:
        now = {name: getattr(row, name) for name in columns}
        changed = [name for name in columns if now[name] != row.was[name]]
        if changed:
            alike.setdefault(tuple(changed), []).append({name: now[name] for name in ("id", *changed)})
            row.was = now
    for changes in alike.values():
        await update_many(tx, table, changes)


def _workload(row: Sequence[Any]) -> Workload:
    return Workload(*row, was=dict(zip(_WORKLOAD, row, strict=True)))
