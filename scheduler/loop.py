"""The controller's loop: look at the cluster, load, decide, record with a fence, act, and do it again.

Everything it knows is in the database, so it may die between any two lines and a successor goes on. Effects (starting
and stopping runners) come after the commit that made them true, may be repeated, and are repeated until confirmed.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import assert_never

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.blobs import Blobs
from kit.clock import Clock
from kit.db import Database
from kit.errors import HeliuError, Unavailable
from quotas.vocabulary import PoolName
from scheduler import (
    arrays,
    artifacts,
    checkpoints,
    dependencies,
    effects,
    fleet,
    leases,
    storage_meter,
    suspensions,
    uploads,
)
from scheduler.adapters import store, waits
from scheduler.admission import Admitted, Outcome, Postponed, Stale, is_payable, record_wait, record_waits, topic
from scheduler.attempts import finish_workload, request_stop
from scheduler.batch_admission import admit_many
from scheduler.cycle import decide
from scheduler.memory import Memory
from scheduler.mix import Mix
from scheduler.notices import Notices
from scheduler.ports import ClusterRuntime, NodeDirectory
from scheduler.preemption import TOLD
from scheduler.sharing import Sharing
from scheduler.terms import Terms
from scheduler.vocabulary import (
    JOBS_CHANNEL,
    EndCause,
    JobState,
    Preempt,
    Reject,
    Start,
    Wait,
    WaitReason,
    WorkloadId,
    WorkloadKind,
)

log = logging.getLogger(__name__)

PACE_SECONDS = 1.0  # between two rounds without a message, and between two ticks
LOOK_SECONDS = 2.0  # between two looks at the nodes; work waking the loop does not make them more frequent
CALM_SECONDS = 0.02  # from one round's beginning to the next one's, so that a burst of submissions is one cycle
TIDY_SECONDS = 60.0
STARTS_AT_ONCE = 250  # in one transaction: while it lasts it has the balances of their firms
WAITS_AT_ONCE = 1000
MOVED_AT_ONCE = 250  # of them, those where only the expected time has moved
ETA_MOVED = timedelta(seconds=5)  # a smaller change of an expected time is not worth a write, nor one by a tenth


@dataclass(frozen=True, slots=True)
class Controller:
    """What the loop works with."""

    db: Database
    blobs: Blobs
    clock: Clock
    runtime: ClusterRuntime
    directory: NodeDirectory
    terms: Terms
    token_key: bytes
    memory: Memory = field(default_factory=Memory)
    notices: Notices = field(default_factory=Notices)
    mix: Mix = field(default_factory=Mix)


async def run(controller: Controller, stop: asyncio.Event) -> None:
    """Work until `stop` is set. One bad step is logged and the next one comes."""
    wake = asyncio.Event()
    listener = asyncio.create_task(_listen(controller.db, wake))
    monotonic = asyncio.get_running_loop().time
    look_at = tick_at = tidy_at = monotonic()
    try:
        while not stop.is_set():
            wake.clear()
            began = monotonic()
            looks, ticks = began >= look_at, began >= tick_at
            await step(controller, look=looks, tick=ticks)
            if looks:
                look_at = monotonic() + LOOK_SECONDS
            if ticks:
                tick_at = monotonic() + PACE_SECONDS
            if monotonic() >= tidy_at:
                await _guarded("mix", controller.mix.look, controller.db, controller.clock)
                await _guarded("tidy", tidy, controller)
                await _guarded("storage", storage_meter.measure, controller.db, controller.clock)
                tidy_at = monotonic() + TIDY_SECONDS
            await asyncio.sleep(began + CALM_SECONDS - monotonic())
            await _pause(wake, stop)
    finally:
        listener.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listener


async def step(controller: Controller, *, look: bool = True, tick: bool = True) -> None:
    """One round; with a look at the nodes, and with what time brings and no message tells of (`tick`), or without.

    Each part stands alone: what fails is done in the next round.
    """
    db, terms, clock = controller.db, controller.terms, controller.clock
    if look:
        await _guarded("nodes", look_at_nodes, controller)
    if tick:
        await _guarded("leases", leases.expire, db, terms, clock)
        await _guarded("replicas", leases.renew_holds, db, terms, clock)
        await _guarded("suspensions", suspensions.drain, db, terms, clock)
    await _guarded("linked work", _advance_linked, controller)
    await _guarded("cycle", partial(cycle, tell=tick), controller)
    drive = partial(effects.drive, all_of_it=tick)
    await _guarded("effects", drive, db, controller.runtime, terms, clock, controller.token_key)


async def _advance_linked(controller: Controller) -> None:
    """Tasks of arrays whose turn has come, and jobs whose awaited work is over."""
    async with controller.db.transaction() as tx:
        if not await store.has_linked_work(tx):
            return
    await _guarded("arrays", arrays.advance, controller.db, controller.clock)
    await _guarded("dependencies", dependencies.resolve, controller.db, controller.clock)


async def cycle(controller: Controller, *, tell: bool = True) -> None:
    """Load, decide, record: starts in the order decided, and nobody is stopped before those ahead have started.

    Why the rest waits is written where `tell` says so: what starts soon need not be told of before.
    """
    now = controller.clock.now()
    async with controller.db.transaction() as tx:
        state = await controller.memory.look(tx, controller.terms, now=now)
    seen, decisions = decide(state, (), controller.mix.applied(controller.terms.policy), now=now, tell=tell)
    sharing, told, poor = Sharing(seen.quotas, seen.tree), list[Wait](), set[WorkloadId | None]()
    starts: list[Start] = []
    for decision in decisions.made:
        if starts and isinstance(decision, Preempt | Reject):  # whoever came before has had its money first
            await _start_all(controller, starts, sharing)
            starts = []
        match decision:
            case Start():
                starts.append(decision)
            case Preempt():
                if not await _preempt(controller, decision):
                    poor.add(decision.by)
            case Reject():
                await _reject(controller, decision)
            case Wait():
                if decision.workload_id not in poor:
                    told.append(decision)
            case _:
                assert_never(decision)
    await _start_all(controller, starts, sharing)
    if tell:
        await _record_waits(controller, [*told, *await controller.notices.due(seen, decisions, now=now)], now)


async def look_at_nodes(controller: Controller) -> None:
    """Bring the node table up to date with the cluster."""
    try:
        reports = await controller.directory.nodes()
    except Unavailable:
        async with controller.db.transaction() as tx:
            await fleet.record_silence(tx, terms=controller.terms, now=controller.clock.now())
        return
    async with controller.db.transaction() as tx:
        gone = await fleet.record_nodes(tx, reports, now=controller.clock.now())
    if gone:
        async with controller.db.transaction() as tx:
            await fleet.give_up_on(tx, gone, terms=controller.terms, now=controller.clock.now())


async def tidy(controller: Controller) -> None:
    """Remove files nobody can ask for: of attempts that failed, of half uploads, checkpoints of what is over."""
    await artifacts.remove_unpublished(controller.db, controller.blobs)
    await checkpoints.remove_finished(controller.db, controller.blobs)
    await uploads.remove_expired(controller.db, controller.blobs, now=controller.clock.now())


async def _start_all(controller: Controller, starts: Sequence[Start], sharing: Sharing) -> None:
    """Record the starts in their order, many in one transaction."""
    for at in range(0, len(starts), STARTS_AT_ONCE):
        batch = starts[at : at + STARTS_AT_ONCE]
        try:
            await _admit(controller, batch, sharing)
        except Unavailable:
            raise
        except (HeliuError, DBAPIError, AssertionError):
            log.exception("a batch of starts failed; each is tried alone")
            for start in batch:
                await _guarded(f"start of {start.workload_id}", _admit, controller, [start], sharing)


async def _admit(controller: Controller, starts: Sequence[Start], sharing: Sharing) -> None:
    async def record(tx: AsyncSession) -> list[Outcome]:
        now = controller.clock.now()
        return await admit_many(tx, starts, sharing, key=controller.token_key, terms=controller.terms, now=now)

    for start, outcome in zip(starts, await controller.db.retrying(record), strict=True):
        match outcome:
            case Admitted(attempt_id):
                controller.memory.started(start.workload_id)
                log.info("admitted", extra={"workload": start.workload_id, "attempt": attempt_id})
            case Postponed(reason, _):
                log.info("postponed", extra={"workload": start.workload_id, "reason": reason.value})
            case Stale():
                log.info("the facts changed meanwhile", extra={"workload": start.workload_id})
            case _:
                assert_never(outcome)


async def _preempt(controller: Controller, preempt: Preempt) -> bool:
    """Tell it to stop. False when whom it should make room for could not pay: nobody is stopped for nothing."""
    now = controller.clock.now()
    async with controller.db.transaction() as tx:
        workload = await store.workload(tx, preempt.workload_id, lock=True)
        attempt = await store.live_attempt(tx, preempt.workload_id)
        if workload is None or attempt is None or attempt.stop_requested_at is not None:
            return True
        pool = PoolName(attempt.pool)
        if preempt.by and not await is_payable(tx, preempt.by, pool, terms=controller.terms, now=now):
            return False
        message = f"{TOLD[preempt.why]} (rule: {preempt.why})"
        await request_stop(tx, attempt, EndCause.EVICTED, message, now=now)
        body = {"attempt_id": attempt.id, "rule": preempt.why, "message": message}
        await events.append(tx, topic(workload, "preempted"), workload.id, body, now=now, firm_id=workload.firm_id)
        return True


async def _reject(controller: Controller, reject: Reject) -> None:
    async with controller.db.transaction() as tx:
        workload = await store.workload(tx, reject.workload_id, lock=True)
        if workload is None or workload.state != JobState.QUEUED:
            return
        if workload.kind == WorkloadKind.REPLICA:  # only its owner ends a replica; the pool may come
            await record_wait(
                tx, workload, WaitReason.NO_NODE, reject.detail, None, estimated=False, now=controller.clock.now()
            )
            return
        workload.last_message = reject.detail
        await finish_workload(tx, workload, JobState.FAILED, now=controller.clock.now())


async def _record_waits(controller: Controller, told: list[Wait], now: datetime) -> None:
    """Write what has changed of why work waits, many in one transaction; the rest is told in the next round."""
    known = controller.memory.told
    changed = [
        (wait, known[wait.workload_id].fence)
        for wait in told
        if wait.workload_id in known and _differs(wait, known[wait.workload_id], now)
    ]
    new = [one for one in changed if one[0].reason != known[one[0].workload_id].wait_reason]
    moved = [one for one in changed if one[0].reason == known[one[0].workload_id].wait_reason]
    if changed:
        batch = [*new[:WAITS_AT_ONCE], *moved[: max(0, MOVED_AT_ONCE - len(new))]]
        async with controller.db.transaction() as tx:
            written = await record_waits(tx, batch, now=now)
        controller.memory.keep(written)


def _differs(wait: Wait, row: waits.WaitRow, now: datetime) -> bool:
    if (wait.reason, wait.detail, wait.estimated) != (row.wait_reason, row.wait_detail, row.eta_estimated):
        return True
    if wait.eta is None or row.eta is None:
        return wait.eta is not row.eta
    return abs(wait.eta - row.eta) > max(ETA_MOVED, abs(wait.eta - now) / 10)


async def _guarded(part: str, work: Callable[..., Awaitable[object]], *arguments: object) -> None:
    try:
        await work(*arguments)
    except Unavailable as error:
        log.warning("%s: %s", part, error.message)
    except (HeliuError, DBAPIError, AssertionError):
        log.exception("a step of the loop failed: %s", part)


async def _listen(db: Database, wake: asyncio.Event) -> None:
    while True:
        try:
            async for _ in db.listen([JOBS_CHANNEL]):
                wake.set()
        except Unavailable:
            await asyncio.sleep(PACE_SECONDS)


async def _pause(wake: asyncio.Event, stop: asyncio.Event) -> None:
    waiters = [asyncio.create_task(wake.wait()), asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait(waiters, timeout=PACE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
