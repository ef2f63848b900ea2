"""Kueue's performance baseline through PostgreSQL: the production loop, store and ledger, a runtime that only waits.

Load, as in Kueue's test/performance/scheduler: 5 cohorts of 6 queues (firms) with 20 units each, borrowing up to 100;
a queue gets 350 small (1 unit, 200 ms, priority 50), 100 medium (5, 500 ms, 100) and 50 large workloads (20, 1 s, 200).
A unit is 32 CPU cores, which count as one accelerator. Work is written to the database by the load itself, at most
every 20 ms, as a submission writes it: taking submissions is not what is measured. Money is held and charged.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, process_time

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.results import Row
from heliu.main import MIGRATIONS
from kit.auth import SYSTEM
from kit.blobs import Blobs
from kit.clock import SystemClock
from kit.db import Database, insert_many, notify
from kit.ids import new_id
from kit.migrate import run_migrations
from kit.postgres import start_embedded, stop_embedded
from kit.together import Together
from kit.units import MicroYuan
from quotas import api as quotas
from quotas.cohort_tree import place
from quotas.pricing import Meter, RateKey
from quotas.vocabulary import CohortName, FirmId, PoolName, ProjectId
from scheduler import attempts, loop, reports
from scheduler.adapters.tables import WorkloadRow
from scheduler.loop import Controller
from scheduler.node.protocol import Cause, FinishedIn, Outcome
from scheduler.ports import NodeReport, Observation, RunnerState, StartOrder
from scheduler.terms import Terms
from scheduler.vocabulary import (
    CPU_MILLI_PER_GPU,
    JOBS_CHANNEL,
    AttemptId,
    AttemptIdentity,
    JobState,
    NodeId,
    Spread,
    WaitReason,
    WorkloadKind,
)
from scheduler.web.internal import ENDS_APART_SECONDS

POOL = PoolName("city/gpu")
COHORTS, QUEUES, NOMINAL, BORROWING = 5, 6, 20, 100
BOUND_SECONDS, BOUND_TARGET, UNBOUND_TARGET = 66.0, 1.2, 1000.0
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


@dataclass(slots=True)
class Waiter:
    """`ports.ClusterRuntime` and `ports.NodeDirectory`: its runners claim, begin, wait and report their end."""

    db: Database
    terms: Terms
    machines: Sequence[NodeReport]
    runs_ms: dict[str, int] = field(default_factory=dict[str, int])  # by workload
    begun: Together[AttemptIdentity, bool] = field(init=False)
    ended: Together[tuple[AttemptIdentity, FinishedIn], bool] = field(init=False)
    running: dict[AttemptId, "asyncio.Task[None]"] = field(default_factory=dict[AttemptId, "asyncio.Task[None]"])

    def __post_init__(self) -> None:
        self.begun, self.ended = Together(self._begin), Together(self._end, apart=ENDS_APART_SECONDS)

    async def start(self, order: StartOrder) -> None:
        if order.attempt_id not in self.running:
            self.running[order.attempt_id] = asyncio.create_task(self._run(order))

    async def observe(self, attempts: Sequence[AttemptId]) -> list[Observation]:
        return [Observation(one, RunnerState.RUNNING) for one in attempts]

    async def stop(self, attempt: AttemptId) -> bool:
        return attempt not in self.running or self.running[attempt].done()

    async def nodes(self) -> list[NodeReport]:
        return list(self.machines)

    async def _run(self, order: StartOrder) -> None:
        fence, unknown = 1, FirmId("")
        identity = AttemptIdentity(
            order.attempt_id, order.workload_id, WorkloadKind.JOB, unknown, ProjectId(""), fence, False
        )
        ran = self.runs_ms[order.workload_id]
        assert await self.begun.put(identity), "the first runner may begin"
        if ran:
            await asyncio.sleep(ran / 1000)
        report = FinishedIn(outcome=Outcome.SUCCEEDED, cause=Cause.DONE, message="", exit_code=0, ran_ms=ran)
        assert await self.ended.put((identity, report)), "nobody gave it up"

    async def _begin(self, identities: Sequence[AttemptIdentity]) -> list[bool]:
        now = datetime.now(UTC)
        async with self.db.transaction() as tx:
            claimed = await attempts.claim_many(
                tx, {one: f"runner of {one.attempt_id}" for one in identities}, terms=self.terms, now=now
            )
            begun = await attempts.begin_many(tx, claimed, terms=self.terms, now=now)
        return [one in begun for one in identities]

    async def _end(self, reported: Sequence[tuple[AttemptIdentity, FinishedIn]]) -> list[bool]:
        async def work(tx: AsyncSession) -> set[AttemptIdentity]:
            return await reports.finished_many(tx, dict(reported), terms=self.terms, now=datetime.now(UTC))

        heard = await self.db.retrying(work)
        return [identity in heard for identity, _ in reported]


@dataclass(slots=True)
class Run:
    """What a run came to."""

    seconds: float
    jobs: int
    usage: float
    admission: dict[str, float]  # mean seconds from creation to placement, by class
    cpu_ms_per_job: float  # of this process: loop, decisions, runtime and load together


def kueue_rows(*, quick: bool) -> list[Row]:
    """The baseline against the bound that its quotas set, and admissions per second when nothing bounds them."""
    share = 10 if quick else 1
    bound = BOUND_SECONDS / share
    paced, flood = asyncio.run(_measure(share, zero=False)), asyncio.run(_measure(share, zero=True))
    ratio, rate = paced.seconds / bound, flood.jobs / flood.seconds
    note = " (a tenth of the load)" if quick else ""
    beside, cpu = "Kueue published {}", f"ms of the controller's processor a job{note}"
    rows = [
        Row("kueue_baseline_vs_bound", ratio, f"× the bound of {bound:g} s{note}", beside.format("351 s"),
            paced.seconds / 351, f"<= {BOUND_TARGET}", ratio <= BOUND_TARGET),
        Row("kueue_baseline_usage", 100 * paced.usage, f"% of nominal units in use{note}", beside.format(55.9),
            100 * paced.usage / 55.9),
        Row("kueue_baseline_cpu_ms", paced.cpu_ms_per_job, cpu),
        Row("kueue_unbound_per_second", rate, f"jobs/s{note}", beside.format("43, bounded"), rate / 43,
            f">= {UNBOUND_TARGET:g}", rate >= UNBOUND_TARGET),
        Row("kueue_unbound_cpu_ms", flood.cpu_ms_per_job, cpu),
    ]  # fmt: skip
    for one in CLASSES:
        mean = paced.admission[one.name]
        published = beside.format(f"{one.published:g} s")
        rows.append(Row(f"kueue_admission_{one.name}", mean, f"s, mean{note}", published, mean / one.published))
    return rows


async def _measure(share: int, *, zero: bool) -> Run:
    folder = Path(tempfile.mkdtemp(prefix="heliu-kueue-"))
    try:
        url = start_embedded(folder / "postgres")
        run_migrations(url, MIGRATIONS)
        db = Database(url, pool_size=10)
        try:
            return await _play(db, folder, share, zero=zero)
        finally:
            await db.close()
    finally:
        stop_embedded(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)


async def _play(db: Database, folder: Path, share: int, *, zero: bool) -> Run:
    terms, clock = Terms(), SystemClock()
    firms = await _city(db, nominal=10_000 if zero else NOMINAL)
    machines = [
        NodeReport(
            NodeId(f"n{i:02}"), f"n{i:02}", {"GPU": 1, "CPU": 32 * 1000, "memory": float(1 << 40)},
            {"heliu.io/centre": "city", "heliu.io/accelerator": "gpu"},
        )
        for i in range(COHORTS)
    ]  # fmt: skip
    waiter = Waiter(db, terms, machines)
    controller = Controller(db, Blobs(f"file://{folder}/blobs"), clock, waiter, waiter, terms, b"benchmark")
    await loop.look_at_nodes(controller)
    stop, runs = asyncio.Event(), {one.name: one.runs_ms for one in CLASSES}
    made, names = _jobs(firms, share, zero=zero)
    waiter.runs_ms = {job: 0 if zero else runs[name] for job, name in names.items()}
    if zero:
        await _submit(db, [job for _, job in made])
    began, cpu = perf_counter(), process_time()
    leading = asyncio.create_task(loop.run(controller, stop))
    try:
        if not zero:
            await _arrive(db, made, began)
        await _until_all_over(db, len(made))
    finally:
        seconds, used = perf_counter() - began, process_time() - cpu
        stop.set()
        await leading
    return await _outcome(db, seconds, used, units=COHORTS * QUEUES * NOMINAL)


async def _city(db: Database, *, nominal: int) -> list[FirmId]:
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


def _jobs(firms: Sequence[FirmId], share: int, *, zero: bool) -> tuple[list[tuple[float, WorkloadRow]], dict[str, str]]:
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


async def _submit(db: Database, jobs: Sequence[WorkloadRow]) -> None:
    now = datetime.now(UTC)
    written = [{**job.model_dump(), "submitted_at": now} for job in jobs]
    said = sorted({name for row in written for name, value in row.items() if value is not None})
    async with db.transaction() as tx:
        await insert_many(tx, "scheduler.workload", [{name: row[name] for name in said} for row in written])
        await notify(tx, JOBS_CHANNEL, "*")


async def _arrive(db: Database, made: Sequence[tuple[float, WorkloadRow]], began: float) -> None:
    at = 0
    while at < len(made):
        passed, first = perf_counter() - began, at
        while at < len(made) and made[at][0] <= passed:
            at += 1
        if at > first:
            await _submit(db, [job for _, job in made[first:at]])
        await asyncio.sleep(TICK)


async def _until_all_over(db: Database, jobs: int) -> None:
    while True:
        async with db.transaction() as tx:
            over = await tx.execute(text("SELECT count(*) FROM scheduler.workload WHERE state = 'succeeded'"))
            if over.scalar_one() == jobs:
                return
        await asyncio.sleep(0.1)


async def _outcome(db: Database, seconds: float, cpu: float, *, units: int) -> Run:
    """From the rows themselves: when each was submitted, placed and over, and whether the books are right."""
    async with db.transaction() as tx:
        rows = await tx.execute(
            text("""SELECT w.name, avg(extract(epoch FROM a.placed_at - w.submitted_at)) AS waited, count(*) AS jobs,
                    sum(w.cpu_milli / 32000 * extract(epoch FROM a.ended_at - a.placed_at)) AS held
                FROM scheduler.workload AS w JOIN scheduler.attempt AS a ON a.workload_id = w.id GROUP BY w.name""")
        )
        found = rows.all()
        assert await quotas.check_ledger(tx) == [], "the books are right"
    jobs = sum(row.jobs for row in found)
    usage = float(sum(row.held for row in found)) / (units * seconds)
    return Run(seconds, jobs, usage, {row.name: float(row.waited) for row in found}, 1000 * cpu / jobs)
