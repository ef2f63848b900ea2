"""What a placement costs the tasks still to come, at the prices of a mix of shapes (`packing.py` works them out)."""

from dataclasses import dataclass

import numpy as np

from scheduler.placement import Candidates, Policy
from scheduler.rooms import Floats, Ints, Rooms


@dataclass(frozen=True, slots=True)
class Prices:
    """What a mix of tasks makes room worth. `residual[r]` is the worth of a GPU with r thousandths left [1001]."""

    residual: Floats
    cpu_milli_per_thousandth: float
    memory_mib_per_thousandth: float

    def shortage(self, rooms: Rooms) -> Floats:
        """Free GPU thousandths of each node that its CPU or memory cannot serve [K]."""
        free = rooms.gpu_milli.sum(axis=1)
        served = np.minimum(
            rooms.cpu_milli / max(self.cpu_milli_per_thousandth, 1e-9),
            rooms.memory_mib / max(self.memory_mib_per_thousandth, 1e-9),
        )
        return np.maximum(0.0, free - served)

    def share_cost(self, left: Ints, gpu_milli: int) -> Floats:
        """Worth lost beyond the thousandths taken when a share goes to GPUs with `left` thousandths [K]."""
        return self.residual[left] - self.residual[left - gpu_milli] - gpu_milli

    def placement_cost(self, before: Rooms, after: Rooms, *, left: Ints | None, gpu_milli: int) -> Ints:
        """Cost of each candidate in thousandths, rounded; the lowest is best. `left` only for shares [K]."""
        cost = self.shortage(after) - self.shortage(before)
        if left is not None:
            cost = cost + self.share_cost(left, gpu_milli)
        return np.rint(cost).astype(np.int64)


def by_bid_prices(prices: Prices) -> Policy:
    """The production policy: the higher the score, the less the placement costs later work."""

    def score(candidates: Candidates) -> Ints:
        return -prices.placement_cost(
            candidates.before, candidates.after, left=candidates.left, gpu_milli=candidates.shape.gpu_milli
        )

    return score
