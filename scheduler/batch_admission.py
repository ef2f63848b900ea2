"""Starts become facts, many in one transaction: quota, money, placement and attempt of each, or a named reason.

The facts a decision rests on are checked again here, under locks: two leaders cannot both win. What one start lacks
(room that went to somebody else, money) keeps no other from starting.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from kit import events
from kit.db import insert_many
from kit.errors import Refused
from kit.ids import new_id
from quotas import api as quotas
from quotas.vocabulary import FirmId, Hold
from scheduler.adapters import records, taking
from scheduler.adapters.records import Workload
from scheduler.admission import (
    Admitted,
    Outcome,
    Stale,
    attempt_values,
    clear_wait,
    hold_request,
    placement_values,
    postpone,
    topic,
    whole_again,
)
from scheduler.sharing import Sharing
from scheduler.terms import Terms
from scheduler.vocabulary import AttemptId, JobState, Start


@dataclass(frozen=True, slots=True)
class _Case:
    """A start whose workload is locked and waits."""

    start: Start
    workload: Workload
    attempt_id: AttemptId

    @property
    def gang(self) -> taking.Gang:
        return FirmId(self.workload.firm_id), self.start.placement


async def admit_many(
    tx: AsyncSession, starts: Sequence[Start], sharing: Sharing, *, key: bytes, terms: Terms, now: datetime
) -> list[Outcome]:
    """Record the starts; says for each, in their order, whether it is admitted, waits for money, or came too late."""
    outcomes: dict[str, Outcome] = {start.workload_id: Stale() for start in starts}
    cases = await _waiting(tx, starts)
    rooms = await taking.lock_rooms(tx, [case.gang for case in cases], sharing)
    fitting = [case for case in cases if rooms.take(*case.gang)]
    for case in fitting:
        case.workload.workers = len(case.start.placement.nodes)  # an elastic gang has what was found for it
    asked = [hold_request(c.workload, c.attempt_id, c.start.placement.pool, terms) for c in fitting]
    paid: list[tuple[_Case, Hold]] = []
    async with events.together(tx):
        for case, hold in zip(fitting, await quotas.hold_compute_many(tx, asked, now=now), strict=True):
            if isinstance(hold, Refused):
                rooms.put_back(*case.gang)
                whole_again(case.workload)
                outcomes[case.start.workload_id] = await postpone(tx, case.workload, hold, terms, now)
            else:
                paid.append((case, hold))
                outcomes[case.start.workload_id] = Admitted(case.attempt_id)
        await taking.write(tx, rooms)
        await _record(tx, paid, key=key, terms=terms, now=now)
        await records.write(tx, [case.workload for case in cases])
    return [outcomes[start.workload_id] for start in starts]


async def _waiting(tx: AsyncSession, starts: Sequence[Start]) -> list[_Case]:
    """Those that still wait, locked; in the order of the starts."""
    locked = await records.waiting_locked(tx, [start.workload_id for start in starts])
    waiting = [(start, locked.pop(start.workload_id, None)) for start in starts]
    return [_Case(start, one, AttemptId(new_id("att"))) for start, one in waiting if one is not None]


async def _record(
    tx: AsyncSession, paid: Sequence[tuple[_Case, Hold]], *, key: bytes, terms: Terms, now: datetime
) -> None:
    attempts: list[dict[str, object]] = []
    placed: list[dict[str, object]] = []
    for case, hold in paid:
        workload, attempt_id = case.workload, case.attempt_id
        attempt = attempt_values(workload, attempt_id, case.start.placement.pool, hold, key, terms, now)
        attempt["told"] = None if case.start.told is None else asdict(case.start.told)
        attempts.append(attempt)
        placed += placement_values(attempt_id, case.start.placement)
        workload.state, workload.fence = JobState.STARTING, workload.fence + 1
        clear_wait(workload)
        nodes = list(case.start.placement.nodes)
        pool = case.start.placement.pool
        body: dict[str, object] = {"attempt_id": attempt_id, "fence": workload.fence, "pool": pool, "nodes": nodes}
        body |= {"score": attempt["told"]} if attempt["told"] else {}
        await events.append(tx, topic(workload, "starting"), workload.id, body, now=now, firm_id=workload.firm_id)
    await insert_many(tx, "scheduler.attempt", attempts)
    await insert_many(tx, "scheduler.placement", placed)
