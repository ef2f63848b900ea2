"""Everybody locks a workload before its attempt, so no two of them wait for each other."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from kit.auth import SYSTEM
from kit.db import Database
from quotas import api as quotas
from quotas.budgets import BudgetSpec, set_budget
from quotas.vocabulary import Payer
from scheduler import jobs, leases
from scheduler.adapters import store
from scheduler.api import submit_replica
from scheduler.vocabulary import WorkloadId
from tests.api.scheduler.test_replicas import spec
from tests.support.conflicts import BROKEN, DEADLOCK, refuse_writes
from tests.support.money import yuan
from tests.support.scheduling import City, Firm, Runner
from tests.support.until import until_async

DEADLINE_SECONDS = 10


async def somebody_waits(db: Database) -> bool:
    """Whether a transaction of this database waits for a lock of another."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with db.transaction() as tx:
        return (await tx.execute(text(query))).scalar_one() > 0


async def beat(runner: Runner) -> Any:
    return await runner.heartbeat(step=3, log=["a line"])


async def store_output(runner: Runner) -> Any:
    return await runner.put("weights.bin", b"weights")


@pytest.mark.parametrize("report", [beat, store_output])
async def test_a_cancel_and_a_runners_report_at_once_both_succeed(
    city: City, report: Callable[[Runner], Awaitable[Any]]
) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    runner = await city.runner(job_id)
    await runner.begin()
    async with city.db.transaction() as tx:
        await store.workload(tx, job_id, lock=True)
        reporting = asyncio.ensure_future(report(runner))
        await until_async(lambda: somebody_waits(city.db), seconds=DEADLINE_SECONDS, what="the report waits")
        await jobs.cancel_job(tx, job_id, by=SYSTEM, terms=city.terms, now=city.clock.now())
        await store.attempt(tx, runner.attempt_id, lock=True)
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert (await reporting).status_code == 200
    assert (await city.attempt(job_id)).stop_cause == "cancelled"
    assert (await runner.heartbeat()).json()["command"] == "stop"


async def due(city: City, firm: Firm, count: int) -> list[WorkloadId]:
    """Replicas whose slice is to be settled at the next renewal, in the order of their attempts."""
    async with city.db.transaction() as tx:
        ids = [
            await submit_replica(tx, spec(firm.id, firm.project_id, key=f"rep_{n}"), now=city.clock.now())
            for n in range(count)
        ]
    await city.step()
    runners = [await city.runner(one) for one in ids]
    for runner in runners:
        await runner.begin()
    for _ in range(city.terms.replica_renew_seconds // 15 + 1):
        city.clock.advance(timedelta(seconds=15))
        for runner in runners:
            assert (await runner.heartbeat()).status_code == 200
    return ids


async def renew(city: City) -> int:
    return await leases.renew_holds(city.db, city.terms, city.clock)


async def test_a_replicas_renewal_and_a_gateways_lease_take_turns_under_a_budget(city: City) -> None:
    firm = await city.firm()
    await due(city, firm, 1)
    async with city.db.transaction() as tx:
        hard = BudgetSpec(firm.id, yuan(50), (100,), True)
        await set_budget(tx, hard, by=SYSTEM, now=city.clock.now())
    async with city.db.transaction() as tx:
        await tx.execute(text("SET LOCAL lock_timeout = '500ms'"))  # whoever has the turn waits for nobody
        await quotas.room_of(tx, Payer(firm.id), now=city.clock.now())
        renewing = asyncio.ensure_future(renew(city))
        await until_async(lambda: somebody_waits(city.db), seconds=DEADLINE_SECONDS, what="the renewal waits")
        lease = await quotas.lease_allowance(
            tx, holder="gw", firm_id=firm.id, amount=yuan(1), lease_seconds=60, now=city.clock.now()
        )
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert (await renewing, lease.amount_left) == (1, yuan(1))
    await city.assert_ledger()


async def test_a_renewal_that_meets_a_deadlock_is_tried_again(city: City) -> None:
    firm = await city.firm()
    await due(city, firm, 1)
    await refuse_writes(city.db, "quotas.compute_hold", code=DEADLOCK)
    assert await renew(city) == 1
    await city.assert_ledger()


async def test_a_replica_that_cannot_be_renewed_does_not_keep_the_others_from_it(city: City) -> None:
    firm = await city.firm()
    first, second = await due(city, firm, 2)
    broken = min((await city.attempt(first), await city.attempt(second)), key=lambda attempt: attempt.id)
    await refuse_writes(city.db, "scheduler.attempt", code=BROKEN, times=99, where=f"NEW.id = '{broken.id}'")
    assert await renew(city) == 1
    metered = {(await city.attempt(one)).id: (await city.attempt(one)).metered_ms for one in (first, second)}
    assert metered.pop(broken.id) == 0
    assert all(metered.values())
    await city.assert_ledger()
