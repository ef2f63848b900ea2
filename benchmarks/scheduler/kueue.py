"""Kueue's performance baseline through PostgreSQL: the production loop, store and ledger, a runtime that only waits.

Load, as in Kueue's test/performance/scheduler: 5 cohorts of 6 queues (firms) with 20 units each, borrowing up to 100;
a queue gets 350 small (1 unit, 200 ms, priority 50), 100 medium (5, 500 ms, 100) and 50 large workloads (20, 1 s, 200).
A unit is 32 CPU cores, which count as one accelerator. Work is written to the database by the load itself, at most
every 20 ms, as a submission writes it: taking submissions is not what is measured. Money is held and charged.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated

import typer
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.processors import seconds_of
from benchmarks.results import Row, publish
from benchmarks.scheduler.kueue_load import (
    CLASSES,
    COHORTS,
    NOMINAL,
    QUEUES,
    arrive,
    empty_database,
    make_city,
    make_jobs,
    submit,
)
from kit.blobs import Blobs
from kit.clock import SystemClock
from kit.db import Database
from kit.postgres import embedded_pid
from kit.together import Together
from quotas import api as quotas
from quotas.vocabulary import FirmId, ProjectId
from scheduler import attempts, loop, reports
from scheduler.loop import Controller
from scheduler.node.protocol import Cause, FinishedIn, Outcome
from scheduler.ports import NodeReport, Observation, RunnerState, StartOrder
from scheduler.terms import Terms
from scheduler.vocabulary import (
    AttemptId,
    AttemptIdentity,
    NodeId,
    WorkloadKind,
)
from scheduler.web.internal import ENDS_APART_SECONDS

BOUND_SECONDS, BOUND_TARGET, UNBOUND_TARGET = 66.0, 1.2, 1000.0


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
    server_ms_per_job: float  # of PostgreSQL


def kueue_rows(*, quick: bool) -> list[Row]:
    """The baseline against the bound that its quotas set, and admissions per second when nothing bounds them."""
    share = 10 if quick else 1
    bound = BOUND_SECONDS / share
    paced, flood = asyncio.run(_measure(share, zero=False)), asyncio.run(_measure(share, zero=True))
    ratio, rate = paced.seconds / bound, flood.jobs / flood.seconds
    note = " (a tenth of the load)" if quick else ""
    beside, cpu = "Kueue published {}", "ms of {} processor a job" + note
    own, server = cpu.format("the controller's"), cpu.format("PostgreSQL's")
    rows = [
        Row("kueue_baseline_vs_bound", ratio, f"× the bound of {bound:g} s{note}", beside.format("351 s"),
            paced.seconds / 351, f"<= {BOUND_TARGET}", ratio <= BOUND_TARGET),
        Row("kueue_baseline_usage", 100 * paced.usage, f"% of nominal units in use{note}", beside.format(55.9),
            100 * paced.usage / 55.9),
        Row("kueue_baseline_cpu_ms", paced.cpu_ms_per_job, own),
        Row("kueue_baseline_server_ms", paced.server_ms_per_job, server),
        Row("kueue_unbound_per_second", rate, f"jobs/s{note}", beside.format("43, bounded"), rate / 43,
            f">= {UNBOUND_TARGET:g}", rate >= UNBOUND_TARGET),
        Row("kueue_unbound_cpu_ms", flood.cpu_ms_per_job, own),
        Row("kueue_unbound_server_ms", flood.server_ms_per_job, server),
    ]  # fmt: skip
    for one in CLASSES:
        mean = paced.admission[one.name]
        published = beside.format(f"{one.published:g} s")
        rows.append(Row(f"kueue_admission_{one.name}", mean, f"s, mean{note}", published, mean / one.published))
    return rows


async def _measure(share: int, *, zero: bool) -> Run:
    async with empty_database() as (db, folder):
        return await _play(db, folder, share, zero=zero)


async def _play(db: Database, folder: Path, share: int, *, zero: bool) -> Run:
    terms, clock = Terms(), SystemClock()
    firms = await make_city(db, nominal=10_000 if zero else NOMINAL)
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
    made, names = make_jobs(firms, share, zero=zero)
    waiter.runs_ms = {job: 0 if zero else runs[name] for job, name in names.items()}
    if zero:
        await submit(db, [job for _, job in made])
    began, cpu, server = perf_counter(), process_time(), _server_seconds(folder)
    leading = asyncio.create_task(loop.run(controller, stop))
    try:
        if not zero:
            await arrive(db, made, began)
        await _until_all_over(db, len(made))
    finally:
        seconds, used = perf_counter() - began, (process_time() - cpu, _server_seconds(folder) - server)
        stop.set()
        await leading
    return await _outcome(db, seconds, used, units=COHORTS * QUEUES * NOMINAL)


async def _until_all_over(db: Database, jobs: int) -> None:
    while True:
        async with db.transaction() as tx:
            over = await tx.execute(text("SELECT count(*) FROM scheduler.workload WHERE state = 'succeeded'"))
            if over.scalar_one() == jobs:
                return
        await asyncio.sleep(0.1)


def _server_seconds(folder: Path) -> float:
    server = embedded_pid(folder / "postgres")
    assert server is not None, "it was started"
    return seconds_of(server)


async def _outcome(db: Database, seconds: float, used: tuple[float, float], *, units: int) -> Run:
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
    own, server = (1000 * one / jobs for one in used)
    return Run(seconds, jobs, usage, {row.name: float(row.waited) for row in found}, own, server)


def main(quick: Annotated[bool, typer.Option(help="A tenth of the load.")] = False) -> None:
    """Kueue's rows of `benchmarks.scheduler` by themselves; written to benchmarks/results/kueue.json."""
    publish("kueue", kueue_rows(quick=quick))


if __name__ == "__main__":
    typer.run(main)
