"""Everybody locks a workload before its attempt, so no two of them wait for each other."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text

from kit.auth import SYSTEM
from kit.db import Database
from scheduler import jobs
from scheduler.adapters import store
from tests.support.scheduling import City, Runner
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
