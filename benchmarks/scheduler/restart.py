"""A controller that begins anew: from an empty memory to decisions about 10,000 waiting jobs."""

import asyncio
from pathlib import Path
from time import perf_counter

from sqlalchemy import text

from benchmarks.results import Row
from benchmarks.scheduler.kueue_load import COHORTS, NOMINAL, QUEUES, empty_database, make_city, make_jobs, submit
from benchmarks.scheduler.kueue_nodes import Cluster
from kit.blobs import Blobs
from kit.clock import SystemClock
from kit.db import Database
from scheduler import loop
from scheduler.loop import Controller
from scheduler.ports import NodeReport
from scheduler.terms import Terms
from scheduler.vocabulary import NodeId

JOBS, SECONDS_TARGET = 10_000, 5.0


def restart_rows() -> list[Row]:
    """Seconds until a new leader has read 10,000 queued jobs, decided about all and recorded what is not on record."""
    seconds = asyncio.run(_measure())
    target = f"<= {SECONDS_TARGET:g}"
    return [Row("restart_10k_seconds", seconds, "s", "", None, target, seconds <= SECONDS_TARGET)]


async def _measure() -> float:
    async with empty_database() as (db, folder):
        return await _restarted(db, folder)


async def _restarted(db: Database, folder: Path) -> float:
    """Kueue's firms and jobs: one controller starts what fits and tells the rest why it waits, another takes over."""
    terms, units = Terms(), COHORTS * QUEUES * NOMINAL
    room = {"GPU": 1, "CPU": 32 * units, "memory": float(1 << 40)}
    labels = {"heliu.io/centre": "city", "heliu.io/accelerator": "gpu"}
    machine = NodeReport(NodeId("n1"), "n1", room, labels)
    firms = await make_city(db, nominal=NOMINAL)
    cluster = Cluster([machine])

    def controller() -> Controller:
        return Controller(db, Blobs(f"file://{folder}/blobs"), SystemClock(), cluster, cluster, terms, b"benchmark")

    first = controller()
    await loop.look_at_nodes(first)
    made, _ = make_jobs(firms, 1, zero=True)
    await submit(db, [job for _, job in made[: JOBS + units]])
    while await _untold(db):
        await loop.cycle(first)
    began = perf_counter()
    await loop.cycle(controller())
    return perf_counter() - began


async def _untold(db: Database) -> int:
    async with db.transaction() as tx:
        query = "SELECT count(*) FROM scheduler.workload WHERE state = 'queued' AND wait_reason = 'new'"
        return int((await tx.execute(text(query))).scalar_one())
