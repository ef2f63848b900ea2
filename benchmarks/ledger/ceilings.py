"""Effective limits, asked at every admission: from the store, and the decision in memory."""

import statistics
from datetime import UTC, datetime
from time import perf_counter, process_time

import psycopg

from benchmarks.ledger.server import Server
from benchmarks.results import Row
from kit.db import Database
from quotas.ceilings import effective_limits
from quotas.limits import first_overrun, tighter
from quotas.vocabulary import Ceilings, EffectiveLimits, FirmId, ProjectId, Use

FIRMS = 500
PROJECTS = 4
VERSIONS = 10
NOW = datetime(2026, 11, 2, tzinfo=UTC)
FIRM = FirmId("firm_limits_7")
PROJECT = ProjectId("prj_limits_7_2")


async def effective_limits_speed(running: Server, calls: int) -> list[Row]:
    """Among 500 firms of 4 projects with ten versions each: the limits over one project now, one connection."""
    with running.connect() as connection:
        _versions(connection)
    db = Database(running.url, pool_size=1)
    spent: list[float] = []
    worked: list[float] = []
    async with db.transaction() as tx:
        for number in range(calls + 100):
            firm = number % FIRMS + 1
            started, began = perf_counter(), process_time()
            limits = await effective_limits(
                tx, FirmId(f"firm_limits_{firm}"), ProjectId(f"prj_limits_{firm}_{number % PROJECTS + 1}"), at=NOW
            )
            spent.append(perf_counter() - started)
            worked.append(process_time() - began)
            assert limits.effective.jobs_at_once == VERSIONS
    await db.close()
    p99, busy = (statistics.quantiles(times[100:], n=100)[98] * 1000 for times in (spent, worked))
    median = statistics.median(spent[100:]) * 1000
    memory = _in_memory()
    said = f"ms, one query; median {median:.2f}, p99 of the caller's processor time {busy:.2f}"
    return [
        Row("limits_store_p99_ms", p99, said, target="<= 1", met=p99 <= 1),
        Row("limits_memory_us", memory, "us a decision, best of 15 rounds", target="<= 5", met=memory <= 5),
    ]


def _versions(connection: psycopg.Connection) -> None:
    connection.execute(
        """INSERT INTO quotas.firm (id, kind, name, state, uscc, doubts, industry_cluster, district, contact_name,
            contact_email, applied_at, state_since)
        SELECT 'firm_limits_' || g, 'company', 'limits' || g, 'active', upper(substr(md5('limits' || g), 1, 18)),
            '{doubted}', 'online_games', 'd', 'c', 'c@example.com', now(), now() FROM generate_series(1, %s) g""",
        (FIRMS,),
    )
    connection.execute(
        """INSERT INTO quotas.project (id, firm_id, name, created_at)
        SELECT 'prj_limits_' || f || '_' || p, 'firm_limits_' || f, 'p' || p, now()
        FROM generate_series(1, %s) f, generate_series(1, %s) p""",
        (FIRMS, PROJECTS),
    )
    connection.execute(
        """INSERT INTO quotas.ceiling_version (firm_id, project_id, jobs_at_once, gpu_milli_at_once, effective_from,
            set_at, set_by)
        SELECT 'firm_limits_' || f, CASE WHEN p > 0 THEN 'prj_limits_' || f || '_' || p END, v + CASE p WHEN 0 THEN 5
            ELSE 0 END, 8000, %(now)s - make_interval(days => %(versions)s + 1 - v),
            %(now)s - make_interval(days => %(versions)s + 1 - v), 'bench'
        FROM generate_series(1, %(firms)s) f, generate_series(0, %(projects)s) p, generate_series(1, %(versions)s) v""",
        {"now": NOW, "firms": FIRMS, "projects": PROJECTS, "versions": VERSIONS},
    )
    connection.execute("ANALYZE quotas.ceiling_version")


def _in_memory(calls: int = 2000, rounds: int = 15) -> float:
    """Microseconds to make the effective limits of a firm's and a project's, and hold an ask against them."""
    firm = Ceilings(gpu_milli_at_once=64_000, jobs_at_once=50, gpu_ms_per_period=10**12, tokens_per_period=10**10)
    project = Ceilings(gpu_milli_at_once=32_000, tokens_per_period=10**9)
    used, asked = Use(gpu_milli=8_000, jobs=3, gpu_ms=10**9, tokens=10**6), Use(gpu_milli=4_000, jobs=1, gpu_ms=10**7)
    spent: list[float] = []
    for _ in range(rounds):
        started = perf_counter()
        for _ in range(calls):
            limits = EffectiveLimits(FIRM, PROJECT, NOW, firm, project, tighter(firm, project))
            assert first_overrun(limits, firm=used, project=used, asked=asked) is None
        spent.append((perf_counter() - started) / calls * 1e6)
    return min(spent)
