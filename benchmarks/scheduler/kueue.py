"""Kueue's performance baseline through PostgreSQL: the production loop, store and ledger, a runtime that only waits.

Load, as in Kueue's test/performance/scheduler: 5 cohorts of 6 queues (firms) with 20 units each, borrowing up to 100;
a queue gets 350 small (1 unit, 200 ms, priority 50), 100 medium (5, 500 ms, 100) and 50 large workloads (20, 1 s, 200).
A unit is 32 CPU cores, which count as one accelerator. Work is written to the database by the load itself, at most
every 20 ms, as a submission writes it: taking submissions is not what is measured. Money is held and charged.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated

import typer
from sqlalchemy import text

from benchmarks.processors import seconds_of
from benchmarks.results import Row, publish
from benchmarks.scheduler.kueue_load import (
    CLASSES,
    COHORTS,
    NOMINAL,
    QUEUES,
    UNIT_CPU_MILLI,
    empty_database,
    make_city,
    make_jobs,
    submit,
)
from benchmarks.scheduler.kueue_nodes import Cluster, Load, beside, play
from kit import collector
from kit.blobs import Blobs
from kit.clock import SystemClock
from kit.db import Database
from kit.postgres import embedded_pid
from quotas import api as quotas
from scheduler import loop
from scheduler.loop import Controller
from scheduler.ports import NodeReport
from scheduler.terms import Terms
from scheduler.vocabulary import NodeId

BOUND_SECONDS, BOUND_TARGET, UNBOUND_TARGET = 66.0, 1.2, 1000.0
MACHINE_UNITS = 40
MACHINES = 2 * COHORTS * QUEUES * NOMINAL // MACHINE_UNITS
"""Whatever their quotas allow has room: with all of them in use, some machine has half of it free."""
ALL_UNITS = 60_000
"""More than all workloads together take at once."""


@dataclass(slots=True)
class Run:
    """What a run came to."""

    seconds: float
    jobs: int
    usage: float
    admission: dict[str, float]  # mean seconds from creation to placement, by class
    ms_per_job: dict[str, float]  # of processor time, by whose


def kueue_rows(*, quick: bool) -> list[Row]:
    """The baseline against the bound that its quotas set, and admissions per second when nothing bounds them."""
    share = 10 if quick else 1
    bound = BOUND_SECONDS / share
    paced, flood = asyncio.run(_measure(share, zero=False)), asyncio.run(_measure(share, zero=True))
    ratio, rate = paced.seconds / bound, flood.jobs / flood.seconds
    note = " (a tenth of the load)" if quick else ""
    published = "Kueue published {}"
    rows = [
        Row("kueue_baseline_vs_bound", ratio, f"× the bound of {bound:g} s{note}", published.format("351 s"),
            paced.seconds / 351, f"<= {BOUND_TARGET}", ratio <= BOUND_TARGET),
        Row("kueue_baseline_usage", 100 * paced.usage, f"% of nominal units in use{note}", published.format(55.9),
            100 * paced.usage / 55.9),
        Row("kueue_unbound_per_second", rate, f"jobs/s{note}", published.format("43, bounded"), rate / 43,
            f">= {UNBOUND_TARGET:g}", rate >= UNBOUND_TARGET),
    ]  # fmt: skip
    for name, run in (("baseline", paced), ("unbound", flood)):
        for whose, ms in run.ms_per_job.items():
            rows.append(Row(f"kueue_{name}_{whose}_ms", ms, f"ms of {whose} processor time a job{note}"))
    for one in CLASSES:
        mean, theirs = paced.admission[one.name], published.format(f"{one.published:g} s")
        rows.append(Row(f"kueue_admission_{one.name}", mean, f"s, mean{note}", theirs, mean / one.published))
    return rows


async def _measure(share: int, *, zero: bool) -> Run:
    async with empty_database() as (db, folder):
        return await _play(db, folder, share, zero=zero)


async def _play(db: Database, folder: Path, share: int, *, zero: bool) -> Run:
    terms, firms = Terms(), await make_city(db, nominal=ALL_UNITS if zero else NOMINAL)
    made, names = make_jobs(firms, share, zero=zero)
    runs = {one.name: 0 if zero else one.runs_ms for one in CLASSES}
    load = Load([] if zero else made, {job: runs[name] for job, name in names.items()})
    if zero:
        await submit(db, [job for _, job in made])
    async with beside(db.url, load, terms) as (nodes, pipe):
        cluster = Cluster(_machines(ALL_UNITS // MACHINE_UNITS if zero else MACHINES), pipe)
        controller = Controller(
            db, Blobs(f"file://{folder}/blobs"), SystemClock(), cluster, cluster, terms, b"benchmark"
        )
        await loop.look_at_nodes(controller)
        collector.look_rarely()  # as the controller's process
        stop, used = asyncio.Event(), _processor_seconds(folder, nodes)
        began, leading = perf_counter(), asyncio.create_task(loop.run(controller, stop))
        try:
            await play(pipe)
        finally:
            seconds = perf_counter() - began
            stop.set()
            await leading
        used = {whose: after - used[whose] for whose, after in _processor_seconds(folder, nodes).items()}
    return await _outcome(db, seconds, used)


def _machines(count: int) -> list[NodeReport]:
    resources = {"GPU": 1, "CPU": UNIT_CPU_MILLI // 1000 * MACHINE_UNITS, "memory": float(1 << 40)}
    labels = {"heliu.io/centre": "city", "heliu.io/accelerator": "gpu"}
    return [NodeReport(NodeId(f"n{i:04}"), f"n{i:04}", resources, labels) for i in range(count)]


def _processor_seconds(folder: Path, nodes: int) -> dict[str, float]:
    """Of the controller, which is this process, of firms and runners, and of PostgreSQL."""
    server = embedded_pid(folder / "postgres")
    assert server is not None, "it was started"
    return {"controller": process_time(), "nodes": seconds_of(nodes), "server": seconds_of(server)}


async def _outcome(db: Database, seconds: float, used: Mapping[str, float]) -> Run:
    """From the rows themselves: when each was submitted, placed and over, and whether the books are right."""
    async with db.transaction() as tx:
        rows = await tx.execute(
            text("""SELECT w.name, avg(extract(epoch FROM a.placed_at - w.submitted_at)) AS waited, count(*) AS jobs,
                    sum(w.cpu_milli / 32000 * extract(epoch FROM a.ended_at - a.placed_at)) AS held
                FROM scheduler.workload AS w JOIN scheduler.attempt AS a ON a.workload_id = w.id GROUP BY w.name""")
        )
        found = rows.all()
        unfinished = await tx.execute(text("SELECT count(*) FROM scheduler.workload WHERE state <> 'succeeded'"))
        assert unfinished.scalar_one() == 0, "every job has ended well"
        assert await quotas.check_ledger(tx) == [], "the books are right"
    jobs = sum(row.jobs for row in found)
    usage = float(sum(row.held for row in found)) / (COHORTS * QUEUES * NOMINAL * seconds)
    waited = {row.name: float(row.waited) for row in found}
    return Run(seconds, jobs, usage, waited, {whose: 1000 * one / jobs for whose, one in used.items()})


def main(quick: Annotated[bool, typer.Option(help="A tenth of the load.")] = False) -> None:
    """Kueue's rows of `benchmarks.scheduler` by themselves; written to benchmarks/results/kueue.json."""
    publish("kueue", kueue_rows(quick=quick))


if __name__ == "__main__":
    typer.run(main)
