"""Placement policies side by side: each scores candidate placements of one task; the highest score is picked."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from benchmarks.scheduler.trace import Fleet
from kit.units import MILLI_PER_GPU
from scheduler.packing import Beside, prices_of
from scheduler.placement import Candidates, Policy
from scheduler.rooms import Floats, Ints, Rooms
from scheduler.scoring import by_bid_prices
from scheduler.vocabulary import Shape

TYPICAL_SHARE = 0.95


def random(fleet: Fleet, mix: Counter[Shape], rng: np.random.Generator) -> Policy:
    """Any node that fits, each as likely, and any GPU of it."""

    def score(candidates: Candidates) -> Ints:
        node = rng.integers(0, 1 << 30, int(candidates.node.max()) + 1)[candidates.node]
        return (node << 10) + rng.integers(0, 1 << 10, len(node))

    return score


def best_fit(fleet: Fleet, mix: Counter[Shape], rng: np.random.Generator) -> Policy:
    """The node with the least CPU and GPU left, weighted alike, over the largest node's; then the fullest GPU."""

    def score(candidates: Candidates) -> Ints:
        after = candidates.after
        left = after.cpu_milli / 128_000 + after.gpu_milli.sum(axis=1) / 8_000
        return _tightest(candidates, np.rint(100 * (1 - left / 2)).astype(np.int64))

    return score


def fgd(fleet: Fleet, mix: Counter[Shape], rng: np.random.Generator) -> Policy:
    """Fragmentation gradient descent (Weng et al., ATC'23): least growth of what the typical tasks cannot use."""
    shapes, shares = _typical(mix)

    def score(candidates: Candidates) -> Ints:
        growth = _fragmented(candidates.after, shapes, shares) - _fragmented(candidates.before, shapes, shares)
        return np.rint(100 / (1 + np.exp(growth / 1000))).astype(np.int64)

    return score


def bid_price(fleet: Fleet, mix: Counter[Shape], rng: np.random.Generator) -> Policy:
    """Heliu's own, as in production: `scheduler.scoring`."""
    cpu, memory = int(fleet.cpu_milli.sum()), int(fleet.memory_mib.sum())
    return by_bid_prices(prices_of(mix, Beside.of(cpu_milli=cpu, memory_mib=memory, gpu_milli=fleet.capacity)))


POLICIES: dict[str, Callable[[Fleet, Counter[Shape], np.random.Generator], Policy]] = {
    "random": random,
    "best-fit": best_fit,
    "fgd": fgd,
    "bid-price": bid_price,
}

UNREPEATABLE = frozenset({"random"})
"""Policies whose score of an unchanged node differs at every look, so that no score may be kept."""


def _tightest(candidates: Candidates, score: Ints) -> Ints:
    """Within equal scores the GPU with the least left; scores are spread so that this never outweighs them."""
    return score if candidates.left is None else score * (MILLI_PER_GPU + 1) - candidates.left


def _typical(mix: Counter[Shape]) -> tuple[Ints, Floats]:
    """The most frequent shapes that make up 95 % of the mix [T, 4], and their shares [T]."""
    total, seen, typical = sum(mix.values()), 0, list[tuple[Shape, int]]()
    for shape, count in mix.most_common():
        if seen >= TYPICAL_SHARE * total:
            break
        typical.append((shape, count))
        seen += count
    rows = [(s.cpu_milli, s.memory_mib, s.gpus, s.gpu_milli) for s, _ in typical]
    return np.array(rows), np.array([count for _, count in typical], dtype=np.float64) / seen


def _fragmented(rooms: Rooms, shapes: Ints, shares: Floats) -> Floats:
    """F(node) = Σ over typical shapes of share × GPU thousandths that shape cannot use there [K]."""
    levels, level_of = np.unique(shapes[:, 3], return_inverse=True)
    enough = rooms.gpu_milli[:, None, :] >= levels[None, :, None]
    count = enough.sum(axis=2)[:, level_of]
    usable = (rooms.gpu_milli[:, None, :] * enough).sum(axis=2)[:, level_of]
    fits = (
        (rooms.cpu_milli[:, None] >= shapes[:, 0])
        & (rooms.memory_mib[:, None] >= shapes[:, 1])
        & (count >= shapes[:, 2])
        & (shapes[:, 2] > 0)
    )
    return rooms.gpu_milli.sum(axis=1) - np.where(fits, usable, 0) @ shares
