"""What a simulation came to, in numbers: by firm and class, and for the city as a whole. Pure arithmetic on a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kit.units import MILLI_PER_GPU, MicroYuan
from quotas.vocabulary import FirmId, QoS
from scheduler.simulation import Life, Moment, Run

SECONDS_PER_HOUR = 3600
MILLI_SECONDS_PER_GPU_HOUR = MILLI_PER_GPU * SECONDS_PER_HOUR


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """One firm's work of one class: how long it waited, what it used and what that costs; waits in seconds."""

    firm_id: FirmId
    qos: QoS
    works: int
    ended: int
    wait_p50: float
    wait_p90: float
    wait_p99: float
    slowdown: float
    gpu_hours: float
    evictions: int
    lost_gpu_hours: float
    cost_micro_yuan: MicroYuan


@dataclass(frozen=True, slots=True)
class Outcome:
    """`use`: the part of all accelerators in use from the first event to the last; `jain`: of the firms' slowdowns."""

    groups: Sequence[GroupOutcome]
    slowdowns: Mapping[FirmId, float]
    use: float
    jain: float
    seconds: float
    evictions: int
    lost_gpu_hours: float
    cost_micro_yuan: MicroYuan


def outcome(run: Run) -> Outcome:
    """The run in numbers."""
    by_group: dict[tuple[FirmId, QoS], list[Life]] = {}
    by_firm: dict[FirmId, list[float]] = {}
    for life in run.lives.values():
        by_group.setdefault((life.firm_id, life.arrival.workload.qos), []).append(life)
        if life.slowdown is not None:
            by_firm.setdefault(life.firm_id, []).append(life.slowdown)
    groups = [_group(run, *key, lives) for key, lives in sorted(by_group.items())]
    slowdowns = {firm: sum(values) / len(values) for firm, values in sorted(by_firm.items())}
    seconds = (run.moments[-1].at - run.moments[0].at).total_seconds() if run.moments else 0.0
    held = sum(before.used_milli * _gap(before, after) for before, after in pairwise(run.moments))
    return Outcome(
        groups,
        slowdowns,
        use=held / (run.capacity_milli * seconds) if run.capacity_milli and seconds else 0.0,
        jain=jain(list(slowdowns.values())),
        seconds=seconds,
        evictions=sum(group.evictions for group in groups),
        lost_gpu_hours=sum(group.lost_gpu_hours for group in groups),
        cost_micro_yuan=MicroYuan(sum(group.cost_micro_yuan for group in groups)),
    )


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything (Jain, Chiu and Hawe 1984)."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def percentile(ascending: Sequence[float], percent: int) -> float:
    """The smallest value that so many per cent do not exceed (nearest rank); 0 of nothing."""
    return ascending[max(0, -(-percent * len(ascending) // 100) - 1)] if ascending else 0.0


@dataclass(frozen=True, slots=True)
class Course:
    """Accelerators in use and work waiting, each the mean over one of equally long spans, and when these begin."""

    hours: Sequence[float]
    in_use: Sequence[float]
    waiting: Sequence[float]


def course(run: Run, spans: int = 480) -> Course:
    """How a run went, in so many spans."""
    if len(run.moments) < 2:
        return Course((), (), ())
    start = run.moments[0].at
    width = (run.moments[-1].at - start).total_seconds() / spans or 1.0
    used, waiting = [0.0] * spans, [0.0] * spans
    for before, after in pairwise(run.moments):
        begins, ends = ((moment.at - start).total_seconds() / width for moment in (before, after))
        for span in range(int(begins), min(spans, int(ends) + 1)):
            part = min(ends, span + 1) - max(begins, span)
            used[span] += part * before.used_milli / MILLI_PER_GPU
            waiting[span] += part * before.waiting
    return Course([span * width / SECONDS_PER_HOUR for span in range(spans)], used, waiting)


def _group(run: Run, firm_id: FirmId, qos: QoS, lives: Iterable[Life]) -> GroupOutcome:
    lives = list(lives)
    waits = sorted(life.waited for life in lives if life.waited is not None)
    slowdowns = [life.slowdown for life in lives if life.slowdown is not None]
    used = sum(life.milli_seconds for life in lives)
    cost = sum(life.milli_seconds * run.scenario.rates.get((life.pool, qos), 0) for life in lives if life.pool)
    return GroupOutcome(
        firm_id,
        qos,
        works=len(lives),
        ended=len(waits),
        wait_p50=percentile(waits, 50),
        wait_p90=percentile(waits, 90),
        wait_p99=percentile(waits, 99),
        slowdown=sum(slowdowns) / len(slowdowns) if slowdowns else 0.0,
        gpu_hours=used / MILLI_SECONDS_PER_GPU_HOUR,
        evictions=sum(life.evictions for life in lives),
        lost_gpu_hours=sum(life.lost_milli_seconds for life in lives) / MILLI_SECONDS_PER_GPU_HOUR,
        cost_micro_yuan=MicroYuan(cost // MILLI_SECONDS_PER_GPU_HOUR),
    )


def _gap(before: Moment, after: Moment) -> float:
    return (after.at - before.at).total_seconds()
