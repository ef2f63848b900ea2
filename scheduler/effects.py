"""What the database says should run is started, what should not is stopped: after the commit, repeated until confirmed.

Confirmed means: a runner has claimed its attempt, or the cluster has said that nothing of it is left.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from kit.clock import Clock
from kit.db import Database
from kit.errors import Unavailable
from scheduler import attempts
from scheduler.adapters import store
from scheduler.admission import attempt_token
from scheduler.ports import ClusterRuntime, Observation, RunnerState, StartOrder, cluster_resources
from scheduler.terms import Terms
from scheduler.vocabulary import AttemptId, AttemptState, EndCause, NodeId, Shape, WorkloadId

log = logging.getLogger(__name__)

AT_ONCE = 8
LAST_WORDS = timedelta(seconds=10)  # a runner that has reported its end may take this long to exit by itself
ORDER_AGAIN = timedelta(seconds=5)  # a start the cluster has not heard of is repeated after this


async def drive(
    db: Database, runtime: ClusterRuntime, terms: Terms, clock: Clock, token_key: bytes, *, all_of_it: bool = True
) -> None:
    """Start what is placed; with `all_of_it` also look after what was started and clear what is over.

    Raises Unavailable without a cluster.
    """
    async with db.transaction() as tx:
        unclaimed = await store.unclaimed_attempts(tx, ordered_too=all_of_it)
    await _start_all(db, runtime, [one for one in unclaimed if one.ordered_at is None], clock, token_key)
    if all_of_it:
        ordered = [one for one in unclaimed if one.ordered_at is not None]
        await _look_after(db, runtime, ordered, terms, clock, token_key)
        await _clear(db, runtime, terms, clock)


async def _look_after(
    db: Database, runtime: ClusterRuntime, ordered: Sequence[Any], terms: Terms, clock: Clock, token_key: bytes
) -> None:
    if not ordered:
        return
    seen = {o.attempt_id: o for o in await runtime.observe([AttemptId(one.id) for one in ordered])}
    again: list[Any] = []
    for one in ordered:
        match seen[AttemptId(one.id)]:
            case Observation(state=RunnerState.EXITED, message=message):
                await _end_unclaimed(db, one.id, f"its runner ended before it began: {message}", terms, clock)
            case Observation(state=RunnerState.UNKNOWN):
                if clock.now() - one.ordered_at >= ORDER_AGAIN:
                    again.append(one)
            case _:
                pass
    await _start_all(db, runtime, again, clock, token_key)


async def _start_all(
    db: Database, runtime: ClusterRuntime, placed: Sequence[Any], clock: Clock, token_key: bytes
) -> None:
    if not placed:
        return
    gate = asyncio.Semaphore(AT_ONCE)

    async def start(one: Any) -> None:
        shape = Shape.of(one.gpu_milli, one.cpu_milli, one.memory_mib)
        order = StartOrder(
            AttemptId(one.id),
            WorkloadId(one.workload_id),
            attempt_token(token_key, one.id, one.fence),
            NodeId(one.node_id),
            cluster_resources(one.resource, shape),
            one.workers,
        )
        async with gate:
            await runtime.start(order)

    results = await asyncio.gather(*(start(one) for one in placed), return_exceptions=True)
    taken = [one.id for one, result in zip(placed, results, strict=True) if result is None]
    async with db.transaction() as tx:
        await store.mark_ordered(tx, taken, now=clock.now())
    for one, result in zip(placed, results, strict=True):
        if isinstance(result, Unavailable):
            log.warning("cannot start now: %s", result.message, extra={"attempt": one.id})
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
