"""A suspended or closed firm stops working: what runs is told to stop with its grace, what waits is cancelled."""

from kit.clock import Clock
from kit.db import Database
from quotas import api as quotas
from quotas.vocabulary import FirmId
from scheduler import jobs
from scheduler.adapters import store
from scheduler.terms import Terms
from scheduler.vocabulary import JOB_OVER


async def drain(db: Database, terms: Terms, clock: Clock) -> int:
    """Stop the work of firms that may not work any more, each in a transaction of its own. Returns how many."""
    async with db.transaction() as tx:
        found = await quotas.halted_firms(tx, [FirmId(firm) for firm in await store.firms_at_work(tx)])
        work = [(row.id, found[firm]) for firm in sorted(found) for row in await store.not_over(tx, firm)]
    done = 0
    for workload_id, why in work:
        async with db.transaction() as tx:
            row = await store.workload(tx, workload_id, lock=True)
            if row is not None and row.state not in JOB_OVER and row.stop_requested_at is None:
                await jobs.stop(tx, row, why, terms=terms, now=clock.now())
                done += 1
    return done
