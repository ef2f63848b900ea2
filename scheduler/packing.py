"""What a placement costs the tasks still to come: a bid price for the GPU share it takes plus the shortage it makes.

Tasks arrive one by one and are never refused where they fit, so a policy can only choose *where*. It knows the mix of
task shapes, not their order.

* **Bid price.** An arc-flow linear programme packs the mix's GPU shares into GPUs: its nodes are what may be left of a
  GPU, its arcs put one share into what is left. The dual of a node is what a GPU in that state is still worth
  (network revenue management: Talluri and van Ryzin 1998; arc flow: Valério de Carvalho 1999). Taking a share that
  leaves 190 thousandths nobody asks for costs the difference.
* **Shortage.** GPU room is worth nothing without the CPU and memory its tasks need. The shortage of a node is the part
  of its free GPU thousandths that its free CPU or memory cannot serve at the mix's mean need per thousandth; a
  placement pays for the growth.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from kit.units import MILLI_PER_GPU
from scheduler.rooms import Floats
from scheduler.scoring import Prices
from scheduler.vocabulary import Shape


def prices_of(mix: Mapping[Shape, int]) -> Prices:
    """Prices for tasks that come in the proportions of `mix` (shape → count). Without GPU tasks all prices are zero."""
    wanted: Counter[int] = Counter()
    for shape, count in mix.items():
        if shape.gpus:
            wanted[min(shape.gpu_milli, MILLI_PER_GPU)] += count * shape.gpus
    demand = sum(size * count for size, count in wanted.items())
    if not demand:
        return Prices(np.zeros(MILLI_PER_GPU + 1), 0.0, 0.0)
    cpu = sum(shape.cpu_milli * count for shape, count in mix.items() if shape.gpus)
    memory = sum(shape.memory_mib * count for shape, count in mix.items() if shape.gpus)
    return Prices(
        _residual_worth(wanted, gpus=demand / MILLI_PER_GPU),
        cpu / demand,
        memory / demand,
    )


def _residual_worth(wanted: Mapping[int, int], *, gpus: float) -> Floats:
    """Duals of the arc-flow programme, spread over 0..1000: a residual between two states is worth the lower one.

    As many GPUs as the demand fills without waste: that is where the states' worth differs most.
    """
    sizes = sorted((size for size in wanted if size > 0), reverse=True)
    states = _reachable(sizes)
    row = {state: index for index, state in enumerate(states)}
    arcs = [(state, size) for state in states for size in sizes if size <= state]
    rows: list[int] = []
    columns: list[int] = []
    signs: list[float] = []
    for column, (state, size) in enumerate(arcs):
        rows += [row[state], row[state - size], len(states) + sizes.index(size)]
        columns += [column] * 3
        signs += [1.0, -1.0, 1.0]
    limits = np.zeros(len(states) + len(sizes))
    limits[row[MILLI_PER_GPU]] = gpus
    limits[len(states) :] = [wanted[size] for size in sizes]
    matrix = coo_array((signs, (rows, columns)), shape=(len(limits), len(arcs))).tocsr()
    solution = linprog([-size for _, size in arcs], A_ub=matrix, b_ub=limits, method="highs")
    assert solution.status == 0, f"a packing programme always has a solution: {solution.message}"
    duals = -solution.ineqlin.marginals[: len(states)]
    worth = np.zeros(MILLI_PER_GPU + 1)
    for state, dual in sorted(zip(states, duals, strict=True)):
        worth[state:] = dual
    return worth


def _reachable(sizes: Sequence[int]) -> list[int]:
    """Everything that may be left of a GPU by this mix, and what exactly holds one share of it; emptiest GPU first."""
    states, open_ = {MILLI_PER_GPU, *sizes}, [MILLI_PER_GPU, *sizes]
    while open_:
        state = open_.pop()
        for size in sizes:
            if size <= state and state - size not in states:
                states.add(state - size)
                open_.append(state - size)
    return sorted(states, reverse=True)
