"""Job arrays: ten thousand tasks are a row and a cursor, and a task becomes a job when its turn comes.

A task is a job like any other: it has attempts, a log, a checkpoint and its own charge. At most `at_most` of an array's
tasks are jobs under way; when one ends, the next one takes its place. `{index}` in a string parameter is the task's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col, select

from kit import events
from kit.auth import Principal
from kit.blobs import Blobs
from kit.clock import Clock
from kit.db import Database, notify, violated_constraint
from kit.errors import Conflict, NotFound, Refused
from kit.ids import new_id
from quotas import api as quotas
from quotas.vocabulary import FirmId, ProjectId
from scheduler import durations, jobs
from scheduler.adapters import store
from scheduler.adapters.tables import ArrayRow, InputRow, WorkloadRow
from scheduler.facts import load_state
from scheduler.firm_limits import require_room
from scheduler.inputs import resolve_inputs
from scheduler.recipes import Prepared
from scheduler.specs import require_to_come
from scheduler.terms import Terms
from scheduler.vocabulary import JOB_OVER, JOBS_CHANNEL, JobState

SIZE_MAX, AT_MOST_MAX = 100_000, 1_000
INDEX = "{index}"
_OWN = (
    "name", "recipe", "program", "params", "sandboxed", "pools", "workers", "gpu_milli", "cpu_milli",
    "memory_mib", "spread", "topology", "qos", "priority",
    "expected_seconds", "max_runtime_seconds", "cap_micro_yuan", "hard_cap_micro_yuan", "retries", "estimated_seconds",
    "duration_basis", "checkpoints", "workers_min", "workers_max", "model", "files",
    "pool_ranks",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArrayView:
    """An array and where its tasks stand: `counts` by state of each task's last run, `waiting` not yet jobs."""

    row: ArrayRow
    counts: Mapping[str, int]
    charged_micro_yuan: int

    @property
    def waiting(self) -> int:
        """Tasks whose turn has not come."""
        return 0 if self.row.cancelled_at else self.row.size - self.row.next_index + len(self.row.again)

    @property
    def state(self) -> str:
        """`active`, `succeeded` when every task has, else how it is over."""
        if self.row.cancelled_at is not None:
            return "cancelled"
        if self.row.ended_at is None:
            return "active"
        return "succeeded" if self.counts.get(JobState.SUCCEEDED, 0) == self.row.size else "failed"


async def submit_array(
    db: Database,
    blobs: Blobs,
    spec: jobs.JobSpec,
    *,
    size: int,
    at_most: int,
    firm_id: FirmId,
    project_id: ProjectId | None,
    idempotency_key: str,
    by: Principal,
    terms: Terms,
    now: datetime,
) -> ArrayRow:
    """Take an array; it is checked as strictly as a job, by its first and its last task. Twice one key is one array.

    Raises what `jobs.submit_job` raises.
    """
    async with db.transaction() as tx:
        await quotas.require_active(tx, firm_id)
        project = await quotas.project_of(tx, project_id, firm_id)
        asked = jobs.content_hash([spec.request_hash(project.id, None).hex(), size, at_most])
        known = await _known(tx, firm_id, idempotency_key, asked)
        if known is not None:
            return known
        require_to_come(spec, now=now)
        files = await resolve_inputs(tx, spec.inputs, firm_id=firm_id)

    async def prepared_task(index: int) -> Prepared:
        task = replace(spec, params=with_index(spec.params, index))
        return await jobs.prepare_job(blobs, task, files, terms=terms)

    await prepared_task(size - 1)
    prepared = await prepared_task(0)
    template = replace(prepared, params=_as_given(prepared.params, spec.params))
    row = _row(spec, files, firm_id, project.id, idempotency_key, asked, size, at_most, by=by, now=now)
    try:
        async with db.transaction() as tx:
            expected = await durations.expect(
                tx, template, firm_id=firm_id, name=spec.name, declared_seconds=spec.expected_seconds
            )
            first = jobs.row_of(spec, expected, files, firm_id, ProjectId(project.id), by=by, now=now)
            state = await load_state(tx, terms, now=now)
            jobs.refuse_hopeless(jobs.as_candidate(spec, expected, firm_id, id=first.id, now=now), state)
            await require_room(tx, first, now=now)
            await jobs.require_payable(tx, first, spec, expected, now=now)
            deadline = spec.deadline.isoformat() if spec.deadline else None
            row.template = {name: getattr(first, name) for name in _OWN} | {"deadline": deadline}
            await store.insert(tx, row)
            body = {"name": row.name, "recipe": row.recipe, "size": size, "at_most": at_most}
            await events.append(tx, "array.submitted", row.id, body, now=now, firm_id=firm_id)
            await notify(tx, JOBS_CHANNEL, row.id)
    except IntegrityError as error:
        if violated_constraint(error) != "job_array_idempotency":
            raise
        async with db.transaction() as tx:  # somebody else was faster with the same key
            same = await _known(tx, firm_id, idempotency_key, asked)
            assert same is not None, "the constraint has seen it"
            return same
    return row


def with_index(params: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Parameters of one task: `{index}` in their strings, at any depth, is its number."""
    return {name: _filled(value, str(index)) for name, value in params.items()}


async def advance(db: Database, clock: Clock) -> int:
    """Let tasks whose turn has come become jobs, array by array; returns how many did."""
    async with db.transaction() as tx:
        query = select(ArrayRow.id).where(col(ArrayRow.ended_at).is_(None)).order_by(col(ArrayRow.id))
        ids = (await tx.execute(query)).scalars().all()
    made = 0
    for array_id in ids:
        async with db.transaction() as tx:
            made += await _advance(tx, array_id, now=clock.now())
    return made


async def array_of(tx: AsyncSession, array_id: str, *, lock: bool = False) -> ArrayRow:
    """The array. Raises NotFound."""
    row = await tx.get(ArrayRow, array_id, with_for_update=lock or None, populate_existing=True)
    if row is None:
        raise array_not_found(array_id)
    return row


def array_not_found(array_id: str) -> NotFound:
    """The one answer for an array that does not exist and for another firm's."""
    return NotFound(f"There is no array {array_id}.", code="array_not_found", hint="see: heliu array list")


async def view(tx: AsyncSession, row: ArrayRow) -> ArrayView:
    """Where its tasks stand, and what all their runs cost."""
    rows = await tx.execute(
        text("""
            SELECT state, count(*) FROM (SELECT DISTINCT ON (array_index) state FROM scheduler.workload
                WHERE array_id = :array ORDER BY array_index, array_run DESC) AS last GROUP BY state"""),
        {"array": row.id},
    )
    counts = {state: int(number) for state, number in rows}
    charged = await tx.execute(
        text("SELECT coalesce(sum(charged_micro_yuan), 0) FROM scheduler.workload WHERE array_id = :array"),
        {"array": row.id},
    )
    return ArrayView(row, counts, int(charged.scalar_one()))


async def arrays_of(tx: AsyncSession, firm_id: str, *, limit: int) -> list[ArrayView]:
    """A firm's arrays, newest first."""
    query = select(ArrayRow).where(ArrayRow.firm_id == firm_id).order_by(col(ArrayRow.id).desc()).limit(limit)
    return [await view(tx, row) for row in (await tx.execute(query)).scalars().all()]


async def tasks_of(
    tx: AsyncSession, array_id: str, *, states: list[JobState], index: int | None, after: int, limit: int
) -> list[WorkloadRow]:
    """The last runs of its tasks that became jobs, by index, those after `after`."""
    later = aliased(WorkloadRow)
    superseded = select(later.id).where(
        later.array_id == array_id,
        later.array_index == col(WorkloadRow.array_index),
        col(later.array_run) > col(WorkloadRow.array_run),
    )
    query = select(WorkloadRow).where(WorkloadRow.array_id == array_id, col(WorkloadRow.array_index) > after)
    query = query.where(~superseded.exists()).order_by(col(WorkloadRow.array_index))
    if states:
        query = query.where(col(WorkloadRow.state).in_(states))
    if index is not None:
        query = query.where(WorkloadRow.array_index == index)
    return list((await tx.execute(query.limit(limit))).scalars().all())


async def cancel_array(tx: AsyncSession, array_id: str, *, reason: str, terms: Terms, now: datetime) -> ArrayRow:
    """No further task gets its turn, and those under way are stopped. Raises NotFound, Conflict (`array_over`)."""
    row = await array_of(tx, array_id, lock=True)
    if row.ended_at is not None and row.cancelled_at is None:
        raise Conflict(f"array {row.id} is over", code="array_over", hint="nothing is left to cancel")
    row.cancelled_at = row.cancelled_at or now
    for task in await _open(tx, row.id):
        locked = await store.workload(tx, task.id, lock=True)
        if locked is not None and locked.state not in JOB_OVER and locked.stop_requested_at is None:
            await jobs.stop(tx, locked, reason, terms=terms, now=now)
    await events.append(tx, "array.cancelled", row.id, {"reason": reason}, now=now, firm_id=row.firm_id)
    return row


async def rerun_failed(tx: AsyncSession, array_id: str, *, by: Principal, now: datetime) -> int:
    """Give each task whose last run failed another turn; how many.

    Raises NotFound, Conflict, Refused (`none_failed`).
    """
    row = await array_of(tx, array_id, lock=True)
    if row.cancelled_at is not None:
        raise Conflict(f"array {row.id} was cancelled", code="array_over", hint="submit it again")
    failed = {task.array_index for task in await tasks_of(
        tx, array_id, states=[JobState.FAILED], index=None, after=-1, limit=row.size
    )}  # fmt: skip
    fresh = sorted(index for index in failed if index is not None and index not in row.again)
    if not fresh:
        raise Refused(
            "No task of this array has failed since its last run.",
            code="none_failed",
            hint=f"see where they stand: heliu array show {row.id}",
        )
    row.again, row.run, row.ended_at = [*row.again, *fresh], row.run + 1, None
    await tx.flush()
    await events.append(tx, "array.rerun", row.id, {"tasks": len(fresh), "by": by.id}, now=now, firm_id=row.firm_id)
    await notify(tx, JOBS_CHANNEL, row.id)
    return len(fresh)


async def _advance(tx: AsyncSession, array_id: str, *, now: datetime) -> int:
    row = await array_of(tx, array_id, lock=True)
    if await quotas.halted_firms(tx, [FirmId(row.firm_id)]):
        row.cancelled_at = row.cancelled_at or now  # what is under way is stopped with the firm's other work
    open_tasks = text("SELECT count(*) FROM scheduler.workload WHERE array_id = :array AND ended_at IS NULL")
    busy = int((await tx.execute(open_tasks, {"array": row.id})).scalar_one())
    turns: list[int] = []
    if row.cancelled_at is None:
        room = max(0, row.at_most - busy)
        turns = [*row.again, *range(row.next_index, min(row.size, row.next_index + room))][:room]
    made = 0
    row.held_detail = None
    for index in turns:
        task = _task(row, index, now=now)
        try:
            await require_room(tx, task, now=now)
        except Refused as refusal:
            row.held_detail = refusal.message
            break
        await _insert(tx, row, task)
        made += 1
    done = set(turns[:made])
    row.next_index += sum(index >= row.next_index for index in done)
    row.again = [index for index in row.again if index not in done]
    if not (busy or made or turns):
        row.ended_at = now
        told = await view(tx, row)
        body = {"state": told.state, "counts": dict(told.counts), "charged_micro_yuan": told.charged_micro_yuan}
        await events.append(tx, "array.ended", row.id, body, now=now, firm_id=row.firm_id)
    await tx.flush()
    return made


def _row(
    spec: jobs.JobSpec,
    files: Sequence[InputRow],
    firm_id: str,
    project_id: str,
    idempotency_key: str,
    request_hash: bytes,
    size: int,
    at_most: int,
    *,
    by: Principal,
    now: datetime,
) -> ArrayRow:
    return ArrayRow(
        id=new_id("arr"), firm_id=firm_id, project_id=project_id, submitted_by=by.id, name=spec.name,
        recipe=spec.recipe, idempotency_key=idempotency_key, request_hash=request_hash, size=size, at_most=at_most,
        next_index=0, run=0, again=[], created_at=now,
        inputs=[{"name": f.name, "blob": f.blob, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in files],
    )  # fmt: skip


def _task(row: ArrayRow, index: int, *, now: datetime) -> WorkloadRow:
    own = dict(row.template)
    deadline = own.pop("deadline")
    key = f"{row.id}:{index}:{row.run}"
    return WorkloadRow(
        **own | {"params": with_index(own["params"], index)},
        **jobs.fresh(now=now),
        deadline=datetime.fromisoformat(deadline) if deadline else None,
        firm_id=row.firm_id,
        project_id=row.project_id,
        submitted_by=row.submitted_by,
        idempotency_key=key,
        request_hash=jobs.content_hash([key]),
        array_id=row.id,
        array_index=index,
        array_run=row.run,
    )


async def _insert(tx: AsyncSession, row: ArrayRow, task: WorkloadRow) -> None:
    await store.insert(tx, task)
    await store.insert(tx, *(InputRow(workload_id=task.id, **file) for file in row.inputs))
    body = {
        "name": task.name,
        "recipe": task.recipe,
        "pools": task.pools,
        "array_id": row.id,
        "index": task.array_index,
    }
    await events.append(tx, "job.submitted", task.id, body, now=task.submitted_at, firm_id=task.firm_id)


async def _open(tx: AsyncSession, array_id: str) -> list[WorkloadRow]:
    query = select(WorkloadRow).where(WorkloadRow.array_id == array_id, col(WorkloadRow.ended_at).is_(None))
    return list((await tx.execute(query.order_by(col(WorkloadRow.id)))).scalars().all())


async def _known(tx: AsyncSession, firm_id: str, key: str, request_hash: bytes) -> ArrayRow | None:
    query = select(ArrayRow).where(ArrayRow.firm_id == firm_id, ArrayRow.idempotency_key == key)
    known = (await tx.execute(query)).scalar_one_or_none()
    if known is not None and known.request_hash != request_hash:
        raise Conflict(
            f"idempotency key {key!r} was used for another array ({known.id})",
            code="idempotency_conflict",
            hint="use a new key for a new array",
        )
    return known


def _filled(value: Any, index: str) -> Any:
    match value:
        case str():
            return value.replace(INDEX, index)
        case list():
            return [_filled(item, index) for item in value]
        case dict():
            return {name: _filled(item, index) for name, item in value.items()}
        case _:
            return value


def _as_given(checked: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked parameters of a task with `{index}` where its submitter wrote it."""
    return {name: given[name] if INDEX in str(given.get(name)) else value for name, value in checked.items()}
