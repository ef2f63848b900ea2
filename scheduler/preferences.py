"""What makes a place good beside how it packs: a model that is warm, data that is there, a low price.

Each part is a number in [0, 1]. Its weight says what the whole part is worth in thousandths of an accelerator: so much
more a placement may cost the tasks still to come. A node's parts depend on the node and the job alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from quotas.vocabulary import PoolName
from scheduler.snapshot import Node, Stock, Waiting
from scheduler.vocabulary import NodeId, Placement, Score, Told

Files: TypeAlias = Sequence[tuple[str, int]]
"""What a job reads: the names nodes keep it under, and bytes."""

ON_DISK = 0.5
"""A model that has to be read from the node's own disk is half as good as one in its memory."""
HALF_BYTES = 1 << 30
"""So much data on the node is worth half of all data there could be: a few kilobytes are worth next to nothing."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What each part is worth, in thousandths of an accelerator: 0 and it does not count. Administrators turn these."""

    model: int = 200
    data: int = 200
    tariff: int = 400


USUAL = Weights()


@dataclass(frozen=True, slots=True)
class Nearness:
    """How much of what a job needs a node has: the two parts that depend on the node."""

    model: float
    data: float

    def points(self, weights: Weights) -> int:
        """Worth in thousandths of an accelerator."""
        return round(weights.model * self.model + weights.data * self.data)


def nearness(model: str | None, files: Files, holds: Stock) -> Nearness:
    """The parts of one node."""
    return Nearness(warm_model(model, holds), data_nearby(files, holds))


def warm_model(model: str | None, holds: Stock) -> float:
    """1 where the model is in the node's memory, `ON_DISK` where it is on its disk, else 0."""
    if model in holds.warm:
        return 1.0
    return ON_DISK if model in holds.models else 0.0


def data_nearby(files: Files, holds: Stock) -> float:
    """Grows with the bytes that need not be fetched: 0 for none, 1/2 for `HALF_BYTES`, towards 1 for ever more."""
    there = sum(size for name, size in files if name in holds.files)
    return there / (there + HALF_BYTES)


def pool_price(workload: Waiting, pool: PoolName, rates: Mapping[PoolName, int]) -> float:
    """The part that a pool's price has in the score: beside the pools that are liked as much."""
    tier = next(tier for tier in workload.tiers if pool in tier)
    return low_price(rates.get(pool), [rates.get(other) for other in tier])


def low_price(rate: int | None, rates: Iterable[int | None]) -> float:
    """The lowest of the rates as a part of this one: 1 for the cheapest, 0 where there is no price."""
    if rate is None:
        return 0.0
    return 1.0 if rate == 0 else min(other for other in rates if other is not None) / rate


def told(
    placement: Placement,
    workload: Waiting,
    nodes: Mapping[NodeId, Node],
    weights: Weights,
    rates: Mapping[PoolName, int],
) -> Told | None:
    """The score of a placement that has just been chosen, in its parts; None when nothing is known of the choice."""
    if placement.choice is None:
        return None

    def parts(node: NodeId, total: int) -> Score:
        near = nearness(workload.model, workload.files, nodes[node].holds)
        return Score(node, total, total - near.points(weights), near.model, round(near.data, 3))

    choice = placement.choice
    second = None if choice.second is None else parts(choice.second, choice.second_score)
    price = round(pool_price(workload, placement.pool, rates), 3) if workload.ranks else None
    return Told(parts(placement.nodes[0], choice.score), second, price)


class Shelves:
    """What N nodes have, by what it is: which of them have a file, a model, a warm model. Made when it is asked for."""

    def __init__(self, stocks: Sequence[Stock]) -> None:
        self._count = len(stocks)
        self._stocked = [(i, holds) for i, holds in enumerate(stocks) if holds.files or holds.models]
        self._where: tuple[_Where, _Where, _Where] | None = None

    def points(self, model: str | None, files: Files, weights: Weights) -> NDArray[np.int64] | None:
        """`Nearness.points` of every node [N]; None when none of them has anything of it."""
        if not self._stocked or not (model or files):
            return None
        of_files, of_models, of_warm = self._index()
        there = [(of_files[name], size) for name, size in files if name in of_files]
        if not there and model not in of_models:
            return None
        near, data = np.zeros(self._count), np.zeros(self._count)
        near[of_models.get(model, [])] = ON_DISK
        near[of_warm.get(model, [])] = 1.0
        for nodes, size in there:
            data[nodes] += size
        return np.rint(weights.model * near + weights.data * (data / (data + HALF_BYTES))).astype(np.int64)

    def _index(self) -> "tuple[_Where, _Where, _Where]":
        if self._where is None:
            index: tuple[_Where, _Where, _Where] = ({}, {}, {})
            for i, holds in self._stocked:
                for where, names in zip(index, (holds.files, holds.models, holds.warm), strict=True):
                    for name in names:
                        where.setdefault(name, []).append(i)
            self._where = index
        return self._where


_Where: TypeAlias = dict[str | None, list[int]]
