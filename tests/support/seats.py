"""Running work of tests that say on which nodes it lies, but not on which accelerators."""

from collections.abc import Iterable
from dataclasses import replace

from scheduler.snapshot import Node, Running
from scheduler.vocabulary import NodeId


def seated(nodes: Iterable[Node], running: Iterable[Running]) -> list[Running]:
    """The same work, each worker on the first accelerators of its node that are wholly free."""
    free = {node.id: list(range(node.devices)) for node in nodes}
    return [replace(work, placement=replace(work.placement, devices=_take(free, work))) for work in running]


def _take(free: dict[NodeId, list[int]], work: Running) -> tuple[tuple[int, ...], ...]:
    if work.placement.devices:
        return work.placement.devices
    gpus, taken = work.placement.gpu_milli // 1000, list[tuple[int, ...]]()
    for node in work.placement.nodes:
        taken.append(tuple(free[node][:gpus]))
        free[node] = free[node][gpus:]
    return tuple(taken)
