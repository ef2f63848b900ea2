"""What nobody can beat and no rigid job allows: accelerators shared out like water.

At every instant the firms get the max-min share of all accelerators, a firm's work in the order of its age as much as
its gang can use; work runs at the part of its gang that it has, is moved at no cost and lies anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quotas.vocabulary import FirmId
from scheduler.simulation import Arrival

_LEAST = 1e-9


@dataclass(slots=True)
class _Work:
    firm: FirmId
    gpus: float
    begins: float
    seconds: float
    left: float  # seconds at full speed
    speed: float = 0.0


def fluid_slowdowns(arrivals: Sequence[Arrival], gpus: float) -> dict[FirmId, float]:
    """Mean bounded slowdown of each firm's work."""
    coming = sorted((_work(one) for one in arrivals), key=lambda work: work.begins, reverse=True)
    now, live, slowdowns = 0.0, list[_Work](), dict[FirmId, list[float]]()
    while coming or live:
        while coming and coming[-1].begins <= now:
            live.append(coming.pop())
        _share_out(live, gpus)
        ends = [now + work.left / work.speed for work in live if work.speed > _LEAST]
        then = min([*ends, coming[-1].begins] if coming else ends)
        for work in live:
            work.left -= (then - now) * work.speed
            if work.left <= _LEAST * then:
                slowdown = max(1.0, (then - work.begins) / max(10.0, work.seconds))
                slowdowns.setdefault(work.firm, []).append(slowdown)
        live, now = [work for work in live if work.left > _LEAST * then], then
    return {firm: sum(values) / len(values) for firm, values in sorted(slowdowns.items())}


def _share_out(live: Sequence[_Work], gpus: float) -> None:
    asked: dict[FirmId, float] = {}
    for work in live:
        asked[work.firm] = asked.get(work.firm, 0.0) + work.gpus
    shares: dict[FirmId, float] = {}
    for n, firm in enumerate(sorted(asked, key=lambda firm: asked[firm])):
        shares[firm] = min(asked[firm], gpus / (len(asked) - n))
        gpus -= shares[firm]
    for work in live:
        work.speed = min(1.0, shares[work.firm] / work.gpus)
        shares[work.firm] -= work.speed * work.gpus


def _work(arrival: Arrival) -> _Work:
    work = arrival.workload
    return _Work(work.firm_id, work.need / 1000, work.submitted_at.timestamp(), arrival.seconds, arrival.seconds)
