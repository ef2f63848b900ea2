"""The load of Kueue's performance baseline: its city of firms, its classes of workloads, and their arrival."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from sqlalchemy import text

from heliu.main import MIGRATIONS
from kit.auth import SYSTEM
from kit.db import Database, insert_many, notify
from kit.ids import new_id
from kit.migrate import run_migrations
from kit.postgres import start_embedded, stop_embedded
from kit.units import MicroYuan
from quotas import api as quotas
from quotas.cohort_tree import place
from quotas.pricing import Meter, RateKey
from quotas.vocabulary import CohortName, FirmId, PoolName
from scheduler.adapters.tables import WorkloadRow
from scheduler.vocabulary import (
    CPU_MILLI_PER_GPU,
    JOBS_CHANNEL,
    JobState,
    Spread,
    WaitReason,
    WorkloadKind,
)

POOL = PoolName("city/gpu")
COHORTS, QUEUES, NOMINAL, BORROWING = 5, 6, 20, 100
TICK = 0.02
UNIT_CPU_MILLI = CPU_MILLI_PER_GPU


@dataclass(frozen=True, slots=True)
class Class:
    """A class of workloads: `published` is Kueue's mean time to admission in seconds."""

    name: str
    count: int
    units: int
    runs_ms: int
    priority: int
    every_ms: int
    published: float


CLASSES = (
    Class("large", 50, 20, 1000, 200, 1200, 16.5),
    Class("medium", 100, 5, 500, 100, 500, 77.0),
    Class("small", 350, 1, 200, 50, 100, 215.0),
)


@asynccontextmanager
async def empty_database() -> AsyncIterator[tuple[Database, Path]]:
    """A database of this version on a server of its own, and the folder that both are in until they are gone."""
    folder = Path(tempfile.mkdtemp(prefix="heliu-benchmark-"))
    try:
        url = start_embedded(folder / "postgres")
        run_migrations(url, MIGRATIONS)
        db = Database(url, pool_size=10)
        try:
            yield db, folder
        finally:
            await db.close()
    finally:
        stop_embedded(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)


async def make_city(db: Database, *, nominal: int) -> list[FirmId]:
    """Firms with money, a price, cohorts and quotas."""
    now, firms = datetime.now(UTC), [FirmId(new_id("firm")) for _ in range(COHORTS * QUEUES)]
    async with db.transaction() as tx:
        for n, firm in enumerate(firms):
            await tx.execute(
                text("""INSERT INTO quotas.firm (id, kind, name, state, uscc, doubts, industry_cluster, district,
                        contact_name, contact_email, applied_at, state_since)
                    VALUES (:id, 'company', :id, 'active', :uscc, '{}', 'online_games', 'East Lake', 'Li',
                        'li@example.com', :now, :now)"""),
                {"id": firm, "uscc": f"{n:018}", "now": now},
            )
            await quotas.record_topup(
                tx, key=f"top {n}", firm_id=firm, amount=MicroYuan(10**12), evidence="none", by="benchmark", now=now
            )
        rates = {RateKey(Meter.GPU_HOUR, POOL, "standard"): 3_600_000}
        await quotas.publish_tariff(tx, name="prices", valid_from=None, rates=rates, by="benchmark", now=now)
    async with db.transaction() as tx:
        for n, firm in enumerate(firms):
            cohort = CohortName(f"cohort-{n // QUEUES}")
            if n % QUEUES == 0:
                await place(tx, cohort, parent=None, by=SYSTEM, now=now)
            await place(tx, firm, parent=cohort, by=SYSTEM, now=now)
            await quotas.set_quota(
                tx, firm, POOL, nominal * 1000, borrowing_gpu_milli=BORROWING * 1000, by=SYSTEM, now=now
            )
    return firms


def make_jobs(
    firms: Sequence[FirmId], share: int, *, zero: bool
) -> tuple[list[tuple[float, WorkloadRow]], dict[str, str]]:
    """(seconds after the start, row) in the order of arrival, and each job's class."""
    made: list[tuple[float, WorkloadRow]] = []
    names: dict[str, str] = {}
    for firm in firms:
        for one in CLASSES:
            for n in range(one.count // share):
                row = _row(firm, one)
                names[row.id] = one.name
                made.append((0.0 if zero else n * one.every_ms / 1000, row))
    return sorted(made, key=lambda job: (job[0], job[1].id)), names


def _row(firm: FirmId, one: Class) -> WorkloadRow:
    id = new_id("job")
    return WorkloadRow(
        id=id, kind=WorkloadKind.JOB, name=one.name, firm_id=firm, project_id="prj_benchmark", submitted_by="benchmark",
        idempotency_key=id, request_hash=bytes(32), recipe="script", program="script", params={}, sandboxed=True,
        pools=[POOL], workers=1, gpu_milli=0,
        cpu_milli=UNIT_CPU_MILLI * one.units, memory_mib=0, spread=Spread.SAME_CENTRE, qos="standard",
        priority=one.priority, expected_seconds=1,
        max_runtime_seconds=60, state=JobState.QUEUED, fence=0, failures=0, wait_reason=WaitReason.NEW,
        eta_estimated=False, charged_micro_yuan=0,
    )  # fmt: skip


async def submit(db: Database, jobs: Sequence[WorkloadRow]) -> None:
    """Write jobs as they come in, and wake the loop."""
    now = datetime.now(UTC)
    written = [{**job.model_dump(), "submitted_at": now} for job in jobs]
    said = sorted({name for row in written for name, value in row.items() if value is not None})
    async with db.transaction() as tx:
        await insert_many(tx, "scheduler.workload", [{name: row[name] for name in said} for row in written])
        await notify(tx, JOBS_CHANNEL, "*")


async def arrive(db: Database, made: Sequence[tuple[float, WorkloadRow]], began: float) -> None:
    """Submit each job at its time after `began`, those of a tick together."""
    at = 0
    while at < len(made):
        passed, first = perf_counter() - began, at
        while at < len(made) and made[at][0] <= passed:
            at += 1
        if at > first:
            await submit(db, [job for _, job in made[first:at]])
        await asyncio.sleep(TICK)
