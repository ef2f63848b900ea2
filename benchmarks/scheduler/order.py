"""Order and fairness, and what one cycle costs: the production cycle on described loads, no trace."""

import resource
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from time import perf_counter

from benchmarks.results import Row
from kit.units import GpuMilli
from quotas.vocabulary import CohortName, FirmId, PoolName
from scheduler.cycle import Policy, decide
from scheduler.outcomes import outcome
from scheduler.sharing import Member, Quota, Seat
from scheduler.simulation import Arrival, Scenario, simulate
from scheduler.snapshot import Node, Over, Running, State, Waiting, changes_between
from scheduler.vocabulary import NodeId, Placement, Start, WorkloadId

START = datetime(2026, 11, 2, tzinfo=UTC)
POOL, COHORT = PoolName("city/gpu"), CohortName("city")
FLOOD_JAIN_TARGET, FULL_SECONDS_TARGET, INCREMENTAL_MS_TARGET, MIB_TARGET = 0.9, 5.0, 50.0, 2000.0


def order_rows() -> list[Row]:
    """A flood beside a single job, and slowdowns of firms on a mixed load."""
    cycles = _cycles_to_start(flood=10_000)
    fair = outcome(simulate(_mixed(), Policy(), pace_seconds=5)).jain
    return [
        Row("flood_cycles_to_start", cycles, "cycles", "", None, "= 1", cycles == 1),
        Row("flood_jain", fair, "Jain index", "", None, f">= {FLOOD_JAIN_TARGET}", fair >= FLOOD_JAIN_TARGET),
    ]


def cycle_rows(jobs: int, nodes: int) -> list[Row]:
    """Deciding from scratch, and again after one job has ended; `jobs` wait, the nodes of eight GPUs are full."""
    state = _full(jobs, nodes)
    started = perf_counter()
    state, _ = decide(State(), changes_between(State(), state), Policy(), now=START)
    full = perf_counter() - started
    ended = next(iter(state.running))
    started = perf_counter()
    decide(state, [Over(ended)], Policy(), now=START + timedelta(seconds=1))
    again = 1000 * (perf_counter() - started)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    of, size = f"{nodes:,} nodes, {8 * nodes:,} GPUs", f"{jobs // 1000}k"
    goal = jobs == 100_000
    return [
        Row(f"cycle_full_seconds_{size}", full, f"s ({of})", *_target(goal, full, FULL_SECONDS_TARGET)),
        Row(f"cycle_incremental_ms_{size}", again, f"ms ({of})", *_target(goal, again, INCREMENTAL_MS_TARGET)),
        Row(f"cycle_mb_{size}", mib, f"MiB ({of})", *_target(goal, mib, MIB_TARGET)),
    ]


def _target(goal: bool, value: float, most: float) -> tuple[str, float | None, str, bool | None]:
    return ("", None, f"<= {most:g}", value <= most) if goal else ("", None, "", None)


def _cycles_to_start(flood: int) -> int:
    """In how many looks a single job within its quota starts after another firm's flood of the same instant."""
    firms = [FirmId("firm_flood"), FirmId("firm_single")]
    work = [_waits(f"f{i:05}", firms[0], gpus=1, seconds=600) for i in range(flood)]
    single = _waits("single", firms[1], gpus=1, seconds=600)
    state = State(
        nodes=_nodes(20),
        waiting={one.id: one for one in (*work, replace(single, submitted_at=START + timedelta(seconds=1)))},
        quotas={(firm, POOL): Quota(GpuMilli(80_000)) for firm in firms},
        tree=_tree(firms),
    )
    for cycle in range(1, 100):
        _, decisions = decide(state, (), Policy(), now=START + timedelta(seconds=cycle))
        if any(d.workload_id == single.id and isinstance(d, Start) for d in decisions):
            return cycle
    return 100


def _mixed() -> Scenario:
    """Six firms with a sixth of 96 GPUs each and 160 GPU-hours of work each over 12 hours, 83 % of the fleet.

    Two send one-GPU jobs, two send jobs of two and four GPUs, two send jobs of eight; one of each pair sends all of a
    quarter of the day at once. Jobs run 5 to 60 minutes, estimates are up to twice too long.
    """
    random, arrivals = Random(1), list[Arrival]()
    firms = [FirmId(f"firm_{letter}") for letter in "abcdef"]
    for n, firm in enumerate(firms):
        left, i = 160 * 3600, 0
        while left > 0:
            gpus, seconds = random.choice([[1], [2, 4], [8]][n // 2]), random.randint(300, 3600)
            at = random.randint(0, 12 * 3600)
            at -= at % (3 * 3600) if n % 2 else 0
            work = _waits(f"{firm}{i:03}", firm, gpus=gpus, seconds=random.randint(seconds, 2 * seconds))
            arrivals.append(Arrival(replace(work, submitted_at=START + timedelta(seconds=at)), seconds))
            left, i = left - gpus * seconds, i + 1
    quotas = {(firm, POOL): Quota(GpuMilli(16_000)) for firm in firms}
    return Scenario(_nodes(12), quotas, _tree(firms), arrivals)


def _full(jobs: int, nodes: int) -> State:
    random = Random(1)
    firms = [FirmId(f"firm_{i:02}") for i in range(30)]
    running: dict[WorkloadId, Running] = {}
    for node in _nodes(nodes):
        for half in range(2):
            id, ends = WorkloadId(f"r{node}{half}"), START + timedelta(seconds=random.randint(10, 3600))
            placement = Placement(POOL, (node,), GpuMilli(4000), (tuple(range(4 * half, 4 * half + 4)),))
            running[id] = Running(id, random.choice(firms), placement, ends, since=START)
    waiting: dict[WorkloadId, Waiting] = {}
    for i in range(jobs):
        gpus, seconds = random.choice([1, 2, 4, 8]), random.choice([60, 600, 3600])
        work = _waits(f"w{i:06}", random.choice(firms), gpus=gpus, seconds=seconds)
        waiting[work.id] = work
    quotas = {(firm, POOL): Quota(GpuMilli(nodes * 8000 // len(firms))) for firm in firms}
    return State(_nodes(nodes), waiting, running, quotas, _tree(firms))


def _waits(name: str, firm: FirmId, *, gpus: int, seconds: int) -> Waiting:
    return Waiting(WorkloadId(name), firm, (POOL,), 1, GpuMilli(1000 * gpus), 0, START, seconds)


def _nodes(count: int) -> dict[NodeId, Node]:
    names = [NodeId(f"n{i:05}") for i in range(count)]
    return {name: Node(name, POOL, GpuMilli(8000)) for name in names}


def _tree(firms: list[FirmId]) -> dict[Member, Seat]:
    return {COHORT: Seat(None), **{firm: Seat(COHORT) for firm in firms}}
