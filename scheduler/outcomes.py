"""What a simulation came to, in numbers: by firm, and for the city as a whole. Pure arithmetic on a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from quotas.vocabulary import FirmId
from scheduler.simulation import Life, Moment, Run

MILLI_SECONDS_PER_GPU_HOUR = 3_600_000


@dataclass(frozen=True, slots=True)
class FirmOutcome:
    """One firm's work: how long it waited and what it used; times in seconds, use in accelerator-hours."""

    firm_id: FirmId
    works: int
    ended: int
    wait_mean: float
    wait_p95: float
    slowdown: float
    gpu_hours: float
    evictions: int
    lost_gpu_hours: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """`use` is the part of all accelerators in use while anything ran or waited; `jain` is of the firms' slowdowns."""

    firms: Sequence[FirmOutcome]
    use: float
    jain: float
    seconds: float


def outcome(run: Run) -> Outcome:
    """The run in numbers."""
    by_firm: dict[FirmId, list[Life]] = {}
    for life in run.lives.values():
        by_firm.setdefault(life.firm_id, []).append(life)
    firms = [_firm(firm, lives) for firm, lives in sorted(by_firm.items())]
    seconds = (run.moments[-1].at - run.moments[0].at).total_seconds() if run.moments else 0.0
    held = sum(before.used_milli * _gap(before, after) for before, after in pairwise(run.moments))
    use = held / (run.capacity_milli * seconds) if run.capacity_milli and seconds else 0.0
    return Outcome(firms, use, jain([firm.slowdown for firm in firms if firm.ended]), seconds)


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything (Jain, Chiu and Hawe 1984)."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def series(run: Run) -> Mapping[str, Sequence[tuple[float, float]]]:
    """Accelerators in use and work waiting, over the seconds since the start: for plots."""
    start = run.moments[0].at if run.moments else None
    at = [(moment.at - start).total_seconds() if start else 0.0 for moment in run.moments]
    return {
        "accelerators in use": [(x, moment.used_milli / 1000) for x, moment in zip(at, run.moments, strict=True)],
        "work waiting": [(x, float(moment.waiting)) for x, moment in zip(at, run.moments, strict=True)],
    }


def _firm(firm_id: FirmId, lives: Sequence[Life]) -> FirmOutcome:
    waits = sorted(life.waited for life in lives if life.waited is not None)
    slowdowns = [life.slowdown for life in lives if life.slowdown is not None]
    used = sum(life.arrival.workload.need * life.arrival.seconds for life in lives if life.ended_at)
    return FirmOutcome(
        firm_id,
        works=len(lives),
        ended=len(waits),
        wait_mean=sum(waits) / len(waits) if waits else 0.0,
        wait_p95=waits[(95 * len(waits) - 1) // 100] if waits else 0.0,
        slowdown=sum(slowdowns) / len(slowdowns) if slowdowns else 0.0,
        gpu_hours=used / MILLI_SECONDS_PER_GPU_HOUR,
        evictions=sum(life.evictions for life in lives),
        lost_gpu_hours=sum(life.lost_milli_seconds for life in lives) / MILLI_SECONDS_PER_GPU_HOUR,
    )


def _gap(before: Moment, after: Moment) -> float:
    return (after.at - before.at).total_seconds()
