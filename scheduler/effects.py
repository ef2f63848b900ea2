"""What the database says should run is started, what should not is stopped: after the commit, repeated until confirmed.

Confirmed means: a runner has claimed its attempt, or the cluster has said that nothing of it is left.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

from kit.clock import Clock
from kit.db import Database
from kit.errors import Unavailable
from scheduler import attempts
from scheduler.adapters import store
from scheduler.adapters.tables import AttemptRow, WorkloadRow
from scheduler.admission import attempt_token
from scheduler.ports import ClusterRuntime, Observation, RunnerState, StartOrder, cluster_resources
from scheduler.terms import Terms
from scheduler.vocabulary import AttemptId, AttemptState, EndCause, NodeId, WorkloadId

log = logging.getLogger(__name__)

AT_ONCE = 8
LAST_WORDS = timedelta(seconds=10)  # a runner that has reported its end may take this long to exit by itself
ORDER_AGAIN = timedelta(seconds=5)  # a start the cluster has not heard of is repeated after this


async def drive(db: Database, runtime: ClusterRuntime, terms: Terms, clock: Clock, token_key: bytes) -> None:
    """Start what is placed, look after what was started, clear what is over. Raises Unavailable without a cluster."""
    async with db.transaction() as tx:
        unclaimed = await store.unclaimed_attempts(tx)
    fresh = [pair for pair in unclaimed if pair[0].ordered_at is None]
    await _start_all(db, runtime, fresh, clock, token_key)
    ordered = [pair for pair in unclaimed if pair[0].ordered_at is not None]
    if ordered:
        seen = {o.attempt_id: o for o in await runtime.observe([AttemptId(a.id) for a, _ in ordered])}
        await _look_after(db, runtime, ordered, seen, terms, clock, token_key)
    await _clear(db, runtime, terms, clock)


async def _look_after(
    db: Database,
    runtime: ClusterRuntime,
    ordered: Sequence[tuple[AttemptRow, WorkloadRow]],
    seen: dict[AttemptId, Observation],
    terms: Terms,
    clock: Clock,
    token_key: bytes,
) -> None:
    again: list[tuple[AttemptRow, WorkloadRow]] = []
    for attempt, workload in ordered:
        match seen[AttemptId(attempt.id)]:
            case Observation(state=RunnerState.EXITED, message=message):
                await _end_unclaimed(db, attempt.id, f"its runner ended before it began: {message}", terms, clock)
            case Observation(state=RunnerState.UNKNOWN):
                assert attempt.ordered_at is not None, "only ordered attempts are looked after"
                if clock.now() - attempt.ordered_at >= ORDER_AGAIN:
                    again.append((attempt, workload))
            case _:
                pass
    await _start_all(db, runtime, again, clock, token_key)


async def _start_all(
    db: Database,
    runtime: ClusterRuntime,
    pairs: Sequence[tuple[AttemptRow, WorkloadRow]],
    clock: Clock,
    token_key: bytes,
) -> None:
    if not pairs:
        return
    async with db.transaction() as tx:
        placed = await store.placements(tx, [a.id for a, _ in pairs])
        resources = {node.id: node.resource for node in await store.nodes(tx)}
    gate = asyncio.Semaphore(AT_ONCE)

    async def start(attempt: AttemptRow, workload: WorkloadRow) -> None:
        first = placed[attempt.id][0]
        order = StartOrder(
            AttemptId(attempt.id),
            WorkloadId(workload.id),
            attempt_token(token_key, attempt.id, attempt.fence),
            NodeId(first.node_id),
            cluster_resources(resources[first.node_id], workload.shape),
            workload.workers,
        )
        async with gate:
            await runtime.start(order)

    results = await asyncio.gather(*(start(a, w) for a, w in pairs), return_exceptions=True)
    taken = [a.id for (a, _), result in zip(pairs, results, strict=True) if result is None]
    async with db.transaction() as tx:
        await store.mark_ordered(tx, taken, now=clock.now())
    for (attempt, _), result in zip(pairs, results, strict=True):
        if isinstance(result, Unavailable):
            log.warning("cannot start now: %s", result.message, extra={"attempt": attempt.id})
        elif isinstance(result, BaseException):
            raise result


async def _end_unclaimed(db: Database, attempt_id: str, why: str, terms: Terms, clock: Clock) -> None:
    async with db.transaction() as tx:
        seen = await store.attempt(tx, attempt_id)
        assert seen is not None, "attempts are never deleted"
        workload = await store.workload(tx, seen.workload_id, lock=True)
        attempt = await store.attempt(tx, attempt_id, lock=True)
        assert workload is not None and attempt is not None, "an attempt belongs to a workload"
        if attempt.state == AttemptState.PLACED:  # else it has spoken for itself in the meantime
            await attempts.end(tx, workload, attempt, EndCause.SETUP, why, terms=terms, now=clock.now())


async def _clear(db: Database, runtime: ClusterRuntime, terms: Terms, clock: Clock) -> None:
    """Have the cluster end what is over, and what was told to stop and has long had its grace (it ends by report)."""
    patience = timedelta(seconds=terms.grace_seconds + 2 * terms.heartbeat_seconds)
    async with db.transaction() as tx:
        ids = await store.attempts_to_clear(
            tx, claimed_before=clock.now() - LAST_WORDS, stopping_since=clock.now() - patience
        )
    gate = asyncio.Semaphore(AT_ONCE)

    async def stop(attempt_id: str) -> bool:
        async with gate:
            return await runtime.stop(AttemptId(attempt_id))

    results = await asyncio.gather(*(stop(attempt_id) for attempt_id in ids), return_exceptions=True)
    gone = [attempt_id for attempt_id, result in zip(ids, results, strict=True) if result is True]
    if gone:
        async with db.transaction() as tx:
            await store.mark_cleared(tx, gone, now=clock.now())
    for result in results:
        if isinstance(result, BaseException):
            raise result
