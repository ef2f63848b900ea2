"""The invariants of ARCHITECTURE.md, asked of the database and compared with what really ran."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.units import MILLI_PER_GPU
from quotas import api as quotas
from tests.simulation.programs import Program

LIVE = "SELECT id FROM scheduler.attempt WHERE state <> 'ended'"

ROOM = f"""
    SELECT node.id, node.placed_milli, coalesce(sum(placement.gpu_milli), 0) AS placed, node.gpu_milli
    FROM scheduler.node AS node
    LEFT JOIN scheduler.placement AS placement ON placement.node_id = node.id AND placement.attempt_id IN ({LIVE})
    GROUP BY node.id ORDER BY node.id"""

FORGOTTEN = f"""
    SELECT workload.id, workload.state, workload.wait_reason FROM scheduler.workload AS workload
    WHERE workload.ended_at IS NULL AND CASE WHEN workload.state = 'queued' THEN workload.wait_reason IS NULL
        WHEN workload.state = 'paused' THEN workload.pause_requested_at IS NULL
        ELSE NOT EXISTS (SELECT FROM ({LIVE}) AS live JOIN scheduler.attempt USING (id)
            WHERE workload_id = workload.id) END
    ORDER BY workload.id"""

DEVICES = f"""
    SELECT device.node_id, device.index, device.placed_milli, coalesce(sum(taken.milli), 0) AS placed
    FROM scheduler.device AS device
    LEFT JOIN (SELECT node_id, unnest(devices) AS index, least(gpu_milli, 1000) AS milli FROM scheduler.placement
        WHERE attempt_id IN ({LIVE})) AS taken ON taken.node_id = device.node_id AND taken.index = device.index
    GROUP BY device.node_id, device.index ORDER BY 1, 2"""

HALF_PLACED = f"""
    SELECT attempt.id, workload.workers, count(placement.worker) AS placed
    FROM scheduler.attempt AS attempt JOIN scheduler.workload AS workload ON workload.id = attempt.workload_id
    LEFT JOIN scheduler.placement AS placement ON placement.attempt_id = attempt.id
    WHERE attempt.id IN ({LIVE}) GROUP BY attempt.id, workload.workers
    HAVING count(placement.worker) <> workload.workers ORDER BY attempt.id"""

HOLDS = f"""
    SELECT coalesce(hold.id, live.hold_id) AS id
    FROM (SELECT hold_id FROM scheduler.attempt WHERE id IN ({LIVE})) AS live
    FULL JOIN (SELECT id FROM quotas.compute_hold WHERE state = 'open') AS hold ON hold.id = live.hold_id
    WHERE hold.id IS NULL OR live.hold_id IS NULL ORDER BY 1"""

CHARGED = "SELECT id, charged_micro_yuan FROM scheduler.workload WHERE charged_micro_yuan > 0 ORDER BY id"

USED = "SELECT firm_id, used_milli FROM scheduler.quota_use ORDER BY firm_id"


async def rows(tx: AsyncSession, query: str) -> list[Any]:
    """What a query finds."""
    return list(await tx.execute(text(query)))


def one_runs_and_fits(programs: Sequence[Program], now: datetime) -> list[str]:
    """S1 and S2 on the machines themselves: no job runs twice at once, no accelerator has too much or two firms."""
    holding = [program for program in programs if program.holds_room(now)]
    jobs = [program.workload_id for program in holding]
    found = [f"S2: two runners of {job} at once" for job in sorted({job for job in jobs if jobs.count(job) > 1})]
    used: dict[tuple[str, int], int] = {}
    firms: dict[tuple[str, int], set[str]] = {}
    for program in holding:
        for place in program.places:
            for device in place.devices:
                key = (place.node, device)
                used[key] = used.get(key, 0) + place.milli_each
                firms.setdefault(key, set()).add(program.firm_id)
    found += [f"S1: accelerator {key} runs {milli} thousandths" for key, milli in used.items() if milli > MILLI_PER_GPU]
    return found + [f"S1: accelerator {key} is shared by firms" for key, owners in firms.items() if len(owners) > 1]


async def books(tx: AsyncSession, *, settled: bool) -> list[str]:
    """S1, S3 and the holds as the database has them. `settled`: the controller has just looked at everything."""
    found = [f"S1: {row}" for row in await rows(tx, ROOM) if not row.placed_milli == row.placed <= row.gpu_milli]
    found += [f"S1: {row}" for row in await rows(tx, DEVICES) if row.placed_milli != row.placed]
    found += [f"S1: a gang half placed: {row}" for row in await rows(tx, HALF_PLACED)]
    found += [f"L2: hold without an attempt, or the other way round: {row.id}" for row in await rows(tx, HOLDS)]
    if settled:
        found += [f"S3: forgotten: {row}" for row in await rows(tx, FORGOTTEN)]
    return found


async def ledger(tx: AsyncSession) -> list[str]:
    """L1 to L3, by what `heliu ledger verify` runs."""
    return [f"ledger: {finding}" for finding in await quotas.check_ledger(tx)]


async def charged_no_more_than_ran(tx: AsyncSession, programs: Sequence[Program], now: datetime) -> list[str]:
    """S2 in money: at one micro-yuan a slot's millisecond, no job is charged more than its programs really ran."""
    ran: dict[str, int] = {}
    for program in programs:
        ran[program.workload_id] = ran.get(program.workload_id, 0) + program.ran_ms(now) * program.milli // 1000
    charged = await rows(
        tx, "SELECT id, charged_micro_yuan FROM scheduler.workload WHERE charged_micro_yuan > 0 ORDER BY id"
    )
    return [f"S2: {row} ran {ran.get(row.id, 0)}" for row in charged if row.charged_micro_yuan > ran.get(row.id, 0)]


def lends_only_what_is_there(used: Collection[int], before: Collection[int], nominal: Collection[int]) -> list[str]:
    """S4: a cohort's firms together grow to no more than their nominal quotas; what was above may only shrink."""
    total, was, promised = sum(used), sum(before), sum(nominal)
    return [f"S4: the cohort uses {total} of {promised}"] if total > max(promised, was) else []
