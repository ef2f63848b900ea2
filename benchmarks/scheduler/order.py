"""Order and fairness, and what one cycle costs: the production cycle on described loads, no trace."""

import resource
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from statistics import median
from time import perf_counter

from benchmarks.results import Row
from benchmarks.scheduler.fluid import fluid_slowdowns
from kit.units import GpuMilli
from quotas.vocabulary import CohortName, FirmId, PoolName
from scheduler.cycle import Policy, decide
from scheduler.outcomes import jain, outcome
from scheduler.sharing import Member, Quota, Seat
from scheduler.simulation import Arrival, Scenario, simulate
from scheduler.snapshot import Node, Over, Running, State, Waiting, changes_between
from scheduler.vocabulary import NodeId, Placement, Start, WorkloadId

START = datetime(2026, 11, 2, tzinfo=UTC)
POOL, COHORT = PoolName("city/gpu"), CohortName("city")
ENDS = 5
FLOOD_JAIN_TARGET, FULL_SECONDS_TARGET, INCREMENTAL_MS_TARGET, MIB_TARGET = 0.9, 5.0, 50.0, 2000.0


def order_rows() -> list[Row]:
    """A flood beside a single job, and slowdowns of firms on a mixed load."""
    cycles = _cycles_to_start(flood=10_000)
    fair, worst, ideal = _fairness(_mixed())
    rows = [
        Row("flood_cycles_to_start", cycles, "cycles", "", None, "= 1", cycles == 1),
        Row("flood_jain", fair, "Jain index", *ideal, f">= {FLOOD_JAIN_TARGET}", fair >= FLOOD_JAIN_TARGET),
        Row("flood_worst_slowdown", worst, "of the slowest firm"),
    ]
    fair, worst, ideal = _fairness(_at_once())
    rows += [
        Row("flood_jain_at_once", fair, "Jain index", *ideal),
        Row("flood_worst_slowdown_at_once", worst, "of the slowest firm"),
    ]
    return rows


def _fairness(load: Scenario) -> tuple[float, float, tuple[str, float]]:
    """Jain index of the firms' slowdowns, the largest of these, and the index of the fluid that work is not."""
    told = outcome(simulate(load, Policy(), pace_seconds=5))
    fluid = jain(list(fluid_slowdowns(load.arrivals, sum(node.devices for node in load.nodes.values())).values()))
    return told.jain, max(told.slowdowns.values()), (f"fluid {fluid:.2f}", told.jain / fluid)


def cycle_rows(jobs: int, nodes: int) -> list[Row]:
    """Deciding from scratch, and again after one job has ended; `jobs` wait, the nodes of eight GPUs are full."""
    state = _full(jobs, nodes)
    started = perf_counter()
    state, _ = decide(State(), changes_between(State(), state), Policy(), now=START)
    full = perf_counter() - started
    again, untold = _after_ends(state, tell=True), _after_ends(state, tell=False)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    of, size = f"{nodes:,} nodes, {8 * nodes:,} GPUs", f"{jobs // 1000}k"
    goal = jobs == 100_000
    return [
        Row(f"cycle_full_seconds_{size}", full, f"s ({of})", *_target(goal, full, FULL_SECONDS_TARGET)),
        Row(f"cycle_incremental_ms_{size}", again, f"ms ({of})", *_target(goal, again, INCREMENTAL_MS_TARGET)),
        Row(f"cycle_untold_ms_{size}", untold, f"ms ({of}), no reasons and times"),
        Row(f"cycle_mb_{size}", mib, f"MiB ({of})", *_target(goal, mib, MIB_TARGET)),
    ]


def _after_ends(state: State, *, tell: bool) -> float:
    """Milliseconds to decide again after one job has ended: the median of five jobs, each of which ends alone."""
    taken: list[float] = []
    for second, ended in enumerate(list(state.running)[:ENDS], start=1):
        started = perf_counter()
        decide(state, [Over(ended)], Policy(), now=START + timedelta(seconds=second), tell=tell)
        taken.append(1000 * (perf_counter() - started))
    return median(taken)


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
        if any(d.workload_id == single.id and isinstance(d, Start) for d in decisions.made):
            return cycle
    return 100


PARTS = (4, 3, 2, 2, 2, 1, 1, 1)  # of 128 GPUs: 32, 24, 16 and 8
HABITS = ("steady", "batches", "office", "steady", "batches", "office", "steady", "batches")
SIZES = ((1, 2, 4, 8), (1, 1, 2), (1, 1, 1, 2, 4), (2, 4, 8), (1,), (1, 2), (1, 1, 4), (1, 2, 4))
HOURS, LOAD = 12, 0.85


def _mixed() -> Scenario:
    """A pool of 16 nodes over 12 hours; eight firms of four sizes, each of which keeps 85 % of its quota busy.

    Three send job by job at any time, two half of their jobs in the four hours after the fourth, three in batches as
    large as their whole quota. Each has a mix of gangs of its own, from ones to whole nodes. Jobs run 5 to 60 minutes,
    estimates are up to twice too long.
    """
    random, arrivals = Random(1), list[Arrival]()
    firms = [FirmId(f"firm_{letter}") for letter in "abcdefgh"]
    nominal = {firm: 8 * part for firm, part in zip(firms, PARTS, strict=True)}
    for firm, habit, sizes in zip(firms, HABITS, SIZES, strict=True):
        left = LOAD * nominal[firm] * HOURS * 3600
        while left > 0:
            at = random.randint(0, HOURS * 3600)
            if habit == "office" and random.random() < 0.5:
                at = random.randint(4 * 3600, 8 * 3600)
            batch = nominal[firm] if habit == "batches" else 1
            while batch > 0 and left > 0:
                arrivals.append(_arrival(random, firm, len(arrivals), at, random.choice(sizes)))
                gpus = arrivals[-1].workload.gpu_milli // 1000
                batch, left = batch - gpus, left - gpus * arrivals[-1].seconds
    quotas = {(firm, POOL): Quota(GpuMilli(1000 * gpus)) for firm, gpus in nominal.items()}
    return Scenario(_nodes(16), quotas, _tree(firms), arrivals)


def _at_once() -> Scenario:
    """A hard one: six firms with a sixth of 96 GPUs each, 160 GPU-hours of work each over 12 hours, 83 % of the fleet.

    Two send one-GPU jobs, two send jobs of two and four GPUs, two send jobs of eight; one of each pair sends all of a
    quarter of the day at once, at the same instant as the others. Times and estimates as in the mixed load.
    """
    random, arrivals = Random(1), list[Arrival]()
    firms = [FirmId(f"firm_{letter}") for letter in "abcdef"]
    for n, firm in enumerate(firms):
        left = 160 * 3600
        while left > 0:
            at = random.randint(0, 12 * 3600)
            at -= at % (3 * 3600) if n % 2 else 0
            arrivals.append(_arrival(random, firm, len(arrivals), at, random.choice([[1], [2, 4], [8]][n // 2])))
            left -= arrivals[-1].workload.gpu_milli // 1000 * arrivals[-1].seconds
    quotas = {(firm, POOL): Quota(GpuMilli(16_000)) for firm in firms}
    return Scenario(_nodes(12), quotas, _tree(firms), arrivals)


def _arrival(random: Random, firm: FirmId, number: int, at: int, gpus: int) -> Arrival:
    seconds = random.randint(300, 3600)
    work = _waits(f"{firm}{number:04}", firm, gpus=gpus, seconds=random.randint(seconds, 2 * seconds))
    return Arrival(replace(work, submitted_at=START + timedelta(seconds=at)), seconds)


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
