"""What a replica host reports, and what it is told: the one conversation between an engine's node and serving."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from kit import events
from kit.db import notify
from kit.errors import Conflict, InvalidInput, NotFound
from scheduler.vocabulary import AttemptIdentity, WorkloadKind
from serving import engines
from serving.adapter_choice import Candidate, choose
from serving.adapters import store
from serving.adapters.tables import AdapterLoadRow, AdapterRow, EngineKeyRow, ReplicaRow
from serving.engines import Counters
from serving.vocabulary import (
    REPLICA_OVER,
    REPLICAS_CHANNEL,
    AdapterState,
    DeploymentKind,
    LoadState,
    ReplicaCommand,
    ReplicaState,
    may_become,
)

UNLOAD_AFTER = timedelta(seconds=5)  # a deleted adapter stays loaded until the gateways have forgotten it
POLL_SECONDS_BUSY, POLL_SECONDS_READY = 0.5, 1.0
_URL = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]{1,253}:[0-9]{2,5}")
_REPORTABLE = frozenset(
    {ReplicaState.STARTING, ReplicaState.WARMING, ReplicaState.READY, ReplicaState.DRAINING, ReplicaState.FAILED}
)


@dataclass(frozen=True, slots=True)
class Report:
    """A replica host's report, checked for form. `counters` are those of `engine_start`."""

    state: ReplicaState
    engine_start: str | None = None
    url: str | None = None
    engine_key: str | None = field(default=None, repr=False)
    loading: frozenset[str] = frozenset()
    loaded: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict[str, str])
    counters: Counters | None = None
    requests_running: int = 0
    requests_waiting: int = 0
    kv_cache_usage_ppm: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What the replica host is to do. `adapters` is all it should have loaded; the rest it unloads."""

    command: ReplicaCommand
    adapters: tuple[AdapterRow, ...]
    poll_seconds: float


async def sync(tx: AsyncSession, attempt: AttemptIdentity, report: Report, *, now: datetime) -> Reply:
    """Record the report and answer it. Raises NotFound for an attempt of no replica, Conflict for an old attempt."""
    replica = await _replica_of(tx, attempt)
    before = (replica.state, replica.url, replica.engine_start)
    if attempt.attempt_id != replica.attempt_id:
        await _take_over(tx, replica, attempt, now=now)
    await _record_engine(tx, replica, report, now=now)
    await _move(tx, replica, report, leaving=attempt.stop_requested, now=now)
    replica.synced_at = now
    replica.requests_running, replica.requests_waiting = report.requests_running, report.requests_waiting
    replica.kv_cache_usage_ppm = report.kv_cache_usage_ppm
    await tx.flush()
    orders, loads_changed = await _order_adapters(tx, replica, report, now=now)
    if loads_changed or before != (replica.state, replica.url, replica.engine_start):
        await notify(tx, REPLICAS_CHANNEL, replica.id)
    if before[0] != replica.state:
        body = {"from": before[0], "to": replica.state, "deployment": replica.deployment_id, "reason": replica.reason}
        await events.append(tx, "replica.state", replica.id, body, now=now)
    return Reply(_command(replica, attempt), tuple(orders), _poll_seconds(replica, orders, report))


async def ordered_adapter(tx: AsyncSession, attempt: AttemptIdentity, adapter_id: str) -> AdapterRow:
    """An adapter this attempt's replica was told to load. Raises NotFound for any other."""
    replica = await _replica_of(tx, attempt)
    load = await tx.get(AdapterLoadRow, (replica.id, adapter_id))
    row = await store.adapter(tx, adapter_id)
    if replica.attempt_id != attempt.attempt_id or load is None or row is None or row.config is None:
        raise NotFound(f"there is no adapter {adapter_id} for this replica", code="adapter_not_found")
    return row


async def _replica_of(tx: AsyncSession, attempt: AttemptIdentity) -> ReplicaRow:
    replica = await store.replica_of_workload(tx, attempt.workload_id)
    if attempt.kind is not WorkloadKind.REPLICA or replica is None:
        raise NotFound("this attempt is not a replica's", code="replica_not_found")
    return replica


async def _take_over(tx: AsyncSession, replica: ReplicaRow, attempt: AttemptIdentity, *, now: datetime) -> None:
    """A newer attempt of the workload speaks: whatever the older one had is gone."""
    if attempt.fence <= replica.fence:
        raise Conflict("a newer attempt runs this replica", code="fence_lost", hint="stop at once")
    await forget_engine(tx, replica, now=now)
    replica.attempt_id, replica.fence = attempt.attempt_id, attempt.fence
    if replica.state in {ReplicaState.STARTING, ReplicaState.WARMING, ReplicaState.READY}:
        replica.state, replica.changed_at = ReplicaState.PENDING, now
        await tx.flush()


async def forget_engine(tx: AsyncSession, replica: ReplicaRow, *, now: datetime) -> None:
    """Its engine is over: end its counters, forget its key, its address and the adapters it had."""
    if replica.engine_start is not None:
        await engines.end(tx, replica.engine_start, now=now)
    await tx.execute(delete(EngineKeyRow).where(col(EngineKeyRow.replica_id) == replica.id))
    await tx.execute(delete(AdapterLoadRow).where(col(AdapterLoadRow.replica_id) == replica.id))
    if replica.state == ReplicaState.READY:
        replica.state, replica.changed_at = ReplicaState.PENDING, now
    replica.url = replica.engine_start = None
    replica.requests_running = replica.requests_waiting = replica.kv_cache_usage_ppm = 0
    await tx.flush()


async def _record_engine(tx: AsyncSession, replica: ReplicaRow, report: Report, *, now: datetime) -> None:
    if report.engine_start is None:
        if replica.engine_start is not None:
            await forget_engine(tx, replica, now=now)
        return
    if report.engine_start != replica.engine_start:
        await forget_engine(tx, replica, now=now)
        await engines.begin(tx, report.engine_start, replica_id=replica.id, model=replica.model, now=now)
        replica.engine_start = report.engine_start
    if report.url is not None:
        if not _URL.fullmatch(report.url):
            raise InvalidInput("url must be http(s)://host:port and nothing more", code="replica_url")
        replica.url = report.url
    if report.engine_key is not None:
        await tx.execute(
            text("""
                INSERT INTO serving.engine_key (replica_id, engine_start, secret) VALUES (:replica, :start, :secret)
                ON CONFLICT (replica_id) DO UPDATE SET engine_start = excluded.engine_start, secret = excluded.secret
                WHERE (engine_key.engine_start, engine_key.secret) <> (excluded.engine_start, excluded.secret)"""),
            {"replica": replica.id, "start": report.engine_start, "secret": report.engine_key},
        )
    if report.counters is not None:
        await engines.count(tx, report.engine_start, report.counters, now=now)
    await tx.flush()


async def _move(tx: AsyncSession, replica: ReplicaRow, report: Report, *, leaving: bool, now: datetime) -> None:
    """Follow the reported state as far as it is legal; a replica told to drain does not become ready again.

    `leaving`: the scheduler takes the attempt's place away. Such a replica, and one whose host drains by itself, takes
    no more requests and waits for its next attempt.
    """
    here = ReplicaState(replica.state)
    if report.state not in _REPORTABLE:
        raise InvalidInput(f"a replica host does not report {report.state}", code="replica_state")
    if here in REPLICA_OVER or here is ReplicaState.DRAINING:
        return
    if report.state is ReplicaState.FAILED:
        # The attempt is about to end; the scheduler tries again, and this replica waits for that.
        replica.reason = (report.reason or "the engine failed")[:500]
        _enter(replica, ReplicaState.PENDING, now=now)
        return
    if leaving or report.state is ReplicaState.DRAINING:
        replica.reason = report.reason or "its place is taken back; it waits for another"
        _enter(replica, ReplicaState.PENDING, now=now)
        return
    if report.state is ReplicaState.READY and (replica.url is None or replica.engine_start is None):
        raise InvalidInput("a ready replica has a url and an engine start", code="replica_state")
    for step in _steps(here, report.state):
        _enter(replica, step, now=now)
        await tx.flush()
    if report.state is ReplicaState.READY and here is not ReplicaState.READY:
        replica.reason, replica.ready_at = None, now


def _steps(here: ReplicaState, there: ReplicaState) -> list[ReplicaState]:
    """The states to pass through: a host that reports rarely may have skipped some."""
    if may_become(here, there):
        return [there]
    ladder = [ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.WARMING, ReplicaState.READY]
    if here in ladder and there in ladder:
        if ladder.index(there) > ladder.index(here):
            return ladder[ladder.index(here) + 1 : ladder.index(there) + 1]
        return [ReplicaState.STARTING, *ladder[2 : ladder.index(there) + 1]]
    raise InvalidInput(f"a {here} replica cannot become {there}", code="replica_state")


def _enter(replica: ReplicaRow, state: ReplicaState, *, now: datetime) -> None:
    if replica.state != state:
        assert may_become(ReplicaState(replica.state), state), "replica states only move along their arrows"
        replica.state, replica.changed_at = state.value, now


async def _order_adapters(
    tx: AsyncSession, replica: ReplicaRow, report: Report, *, now: datetime
) -> tuple[list[AdapterRow], bool]:
    """The adapters the replica is to have, and whether anything about its loads changed."""
    if replica.engine_start is None:
        return [], False
    stand = {row.adapter_id: row for row in await store.loads(tx, [replica.id])}
    ordered = await _wanted(tx, replica, stand, now=now)
    wanted = {row.id for row in ordered}
    changed = False
    for adapter_id in sorted(wanted | set(stand)):
        row = stand.get(adapter_id)
        state, reason = _load_state(adapter_id, row, report, wanted=adapter_id in wanted)
        if state is None:
            assert row is not None, "only a load that stands can end"
            await tx.delete(row)
            changed = True
        elif row is None:
            tx.add(
                AdapterLoadRow(
                    replica_id=replica.id, adapter_id=adapter_id, state=state.value, reason=reason, changed_at=now
                )
            )
            changed = True
        elif row.state != state:
            row.state, row.reason, row.changed_at = state.value, reason, now
            changed = True
    await tx.flush()
    return [row for row in ordered if row.id not in report.failed], changed


async def _wanted(
    tx: AsyncSession, replica: ReplicaRow, stand: Mapping[str, AdapterLoadRow], *, now: datetime
) -> list[AdapterRow]:
    """Chosen adapters in order of id. One that this engine could not load is not tried on it again."""
    deployment = await store.deployment(tx, replica.deployment_id)
    model = await store.model(tx, replica.model)
    assert deployment is not None and model is not None, "foreign keys hold them"
    rows = {row.id: row for row in await store.adapters(tx, base_model=replica.model)}
    firm_id = deployment.firm_id if deployment.kind == DeploymentKind.DEDICATED else None
    usable = [
        Candidate(store.adapter_of(row).id, row.firm_id, row.last_used_at or row.created_at)
        for row in rows.values()
        if not _forgotten(row, now=now) and not (row.id in stand and stand[row.id].state == LoadState.FAILED)
    ]
    return [rows[adapter_id] for adapter_id in sorted(choose(usable, room=model.max_loras, firm_id=firm_id))]


def _forgotten(row: AdapterRow, *, now: datetime) -> bool:
    """Whether a deleted adapter may be unloaded: every gateway has stopped routing to it."""
    return row.state == AdapterState.RETIRING and row.retired_at is not None and now > row.retired_at + UNLOAD_AFTER


def _load_state(
    adapter_id: str, row: AdapterLoadRow | None, report: Report, *, wanted: bool
) -> tuple[LoadState | None, str | None]:
    """Where this adapter stands after the report; None: nowhere any more."""
    if adapter_id in report.failed:
        return LoadState.FAILED, report.failed[adapter_id][:500]
    if not wanted:
        if row is not None and row.state == LoadState.FAILED:
            return LoadState.FAILED, row.reason
        busy = adapter_id in report.loaded or adapter_id in report.loading
        return (LoadState.UNLOADING if busy else None), None
    if adapter_id in report.loaded:
        return LoadState.READY, None
    if adapter_id in report.loading:
        return LoadState.LOADING, None
    return LoadState.PENDING, None


def _command(replica: ReplicaRow, attempt: AttemptIdentity) -> ReplicaCommand:
    if replica.stop_at is not None or replica.state in REPLICA_OVER:
        return ReplicaCommand.STOP
    if attempt.stop_requested or replica.state == ReplicaState.DRAINING:
        return ReplicaCommand.DRAIN
    return ReplicaCommand.RUN


def _poll_seconds(replica: ReplicaRow, orders: list[AdapterRow], report: Report) -> float:
    settled = replica.state == ReplicaState.READY and {row.id for row in orders} == report.loaded
    return POLL_SECONDS_READY if settled else POLL_SECONDS_BUSY


def as_counters(metrics: Mapping[str, Any]) -> Counters:
    """The counters of a sync report's metrics."""
    return Counters(
        prompt_tokens=metrics["prompt_tokens_total"],
        generation_tokens=metrics["generation_tokens_total"],
        warmup_prompt_tokens=metrics["warmup_prompt_tokens"],
        warmup_generation_tokens=metrics["warmup_generation_tokens"],
    )
