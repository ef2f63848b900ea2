"""A gang on nodes: filter those with room, score them, pick the best for one worker after the other, all or none."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from scheduler.vocabulary import NodeId

Score: TypeAlias = Callable[[int, int], int]
"""(free thousandths of a node, thousandths a worker needs) → how bad this node is; the lowest is picked."""


def has_room(free: int, need: int) -> bool:
    """Filter: whether a worker fits."""
    return free >= need


def best_fit(free: int, need: int) -> int:
    """Score: what stays free afterwards, so that large holes stay large."""
    return free - need


def place_gang(
    free: Mapping[NodeId, int], workers: int, gpu_milli: int, *, score: Score = best_fit
) -> tuple[NodeId, ...] | None:
    """A node for each of `workers`, or None when not all of them fit at once. Ties go to the smaller node id."""
    left = {node: room for node, room in free.items() if has_room(room, gpu_milli)}
    chosen: list[NodeId] = []
    for _ in range(workers):
        fitting = [node for node, room in left.items() if has_room(room, gpu_milli)]
        if not fitting:
            return None
        best = min(fitting, key=lambda node: (score(left[node], gpu_milli), node))
        left[best] -= gpu_milli
        chosen.append(best)
    assert all(room >= 0 for room in left.values()), "a placement cannot mint GPUs"
    return tuple(chosen)


def could_hold(capacity: Mapping[NodeId, int], workers: int, gpu_milli: int) -> bool:
    """Whether these nodes, all empty, would hold the gang."""
    return gpu_milli > 0 and sum(room // gpu_milli for room in capacity.values()) >= workers
