"""What a placement costs the tasks still to come, at the prices of a mix of shapes (`packing.py` works them out)."""

from dataclasses import dataclass

import numpy as np

from scheduler.placement import Candidates, Policy
from scheduler.rooms import Floats, Ints, Rooms


@dataclass(frozen=True, slots=True)
class Need:
    """What free GPU room needs of CPU or memory: with `per_thousandth` of it, the part `unserved` is of no use [T].

    Straight lines lie between; with more than the last there is enough.
    """

    per_thousandth: Floats
    unserved: Floats

    def lacking(self, there: Ints, gpu_milli: Ints) -> Floats:
        """Of so many free GPU thousandths those that are of no use with what is there [K]."""
        return gpu_milli * np.interp(there / np.maximum(gpu_milli, 1), self.per_thousandth, self.unserved)


NO_NEED = Need(np.zeros(1), np.zeros(1))


@dataclass(frozen=True, slots=True)
class Prices:
    """What a mix of tasks makes room worth. `residual[r]` is the worth of a GPU with r thousandths left [1001].

    Shortage grows in steps of `grain` thousandths, if any: what is less is no difference between two nodes.
    """

    residual: Floats
    cpu: Need
    memory: Need
    grain: int = 0

    def shortage(self, rooms: Rooms) -> Floats:
        """Free GPU thousandths of each node that its CPU or memory cannot serve [K]."""
        free = rooms.gpu_milli.sum(axis=1)
        return np.maximum(self.cpu.lacking(rooms.cpu_milli, free), self.memory.lacking(rooms.memory_mib, free))

    def share_cost(self, left: Ints, gpu_milli: int) -> Floats:
        """Worth lost beyond the thousandths taken when a share goes to GPUs with `left` thousandths [K]."""
        return self.residual[left] - self.residual[left - gpu_milli] - gpu_milli

    def placement_cost(self, before: Rooms, after: Rooms, *, left: Ints | None, gpu_milli: int) -> Ints:
        """Cost of each candidate in thousandths, rounded; the lowest is best. `left` only for shares [K]."""
        cost = self.shortage(after) - self.shortage(before)
        if self.grain:
            cost = self.grain * np.rint(cost / self.grain)
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
