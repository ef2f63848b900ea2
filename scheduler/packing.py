"""What a placement costs the tasks still to come: a bid price for the GPU share it takes plus the shortage it makes.

Tasks arrive one by one and are never refused where they fit, so a policy can only choose *where*. It knows the mix of
task shapes, not their order.

* **Bid price.** An arc-flow linear programme packs the mix's GPU shares into GPUs: its nodes are what may be left of a
  GPU, its arcs put one share into what is left. The dual of a node is what a GPU in that state is still worth
  (network revenue management: Talluri and van Ryzin 1998; arc flow: Valério de Carvalho 1999). Taking a share that
  leaves 190 thousandths nobody asks for costs the difference.
* **Shortage.** GPU room is worth nothing without the CPU and memory its tasks need. The shortage of a node is the part
  of its free GPU thousandths that its free CPU or memory cannot serve; a placement pays for the growth. While GPUs run
  out first, a node serves whatever comes at the mix's mean need per thousandth.
* **Scarce CPU.** Where the mix, its CPU-only tasks too, asks for more CPU (or memory) than the nodes have beside their
  GPUs, room ends up too short for some tasks and not for others. Then each counts with its own need, so CPU-only tasks
  go where the fewest others lose their room; the leaner it is the more it counts, for lean tasks are those that still
  get a place in the end. Every node differs a little by that; a grain keeps nodes filling up one after the other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from kit.units import MILLI_PER_GPU
from scheduler.rooms import Floats, Ints
from scheduler.scoring import NO_NEED, Need, Prices
from scheduler.vocabulary import Shape


@dataclass(frozen=True, slots=True)
class Beside:
    """What nodes have beside each GPU thousandth, all of them together; nobody knows: plenty."""

    cpu_milli: float = inf
    memory_mib: float = inf

    @classmethod
    def of(cls, *, cpu_milli: int, memory_mib: int, gpu_milli: int) -> "Beside":
        """From what they have in all."""
        return cls(cpu_milli / gpu_milli, memory_mib / gpu_milli) if gpu_milli else cls()


PLENTY = Beside()
GRAIN = 100  # thousandths; tuned, as is the square below, on mixes and seeds other than those reported


def prices_of(mix: Mapping[Shape, int], beside: Beside = PLENTY) -> Prices:
    """Prices for tasks that come in the proportions of `mix` (shape → count). Without GPU tasks all prices are zero."""
    wanted: Counter[int] = Counter()
    for shape, count in mix.items():
        if shape.gpus:
            wanted[min(shape.gpu_milli, MILLI_PER_GPU)] += count * shape.gpus
    if not wanted:
        return Prices(np.zeros(MILLI_PER_GPU + 1), NO_NEED, NO_NEED)
    count, demand = np.array(list(mix.values())), np.array([shape.demand for shape in mix])
    cpu, memory = np.array([shape.cpu_milli for shape in mix]), np.array([shape.memory_mib for shape in mix])
    total, on_gpus = float(count @ demand), demand > 0
    weight, scarce = (count * demand)[on_gpus] / total, list[bool]()

    def need(taken: Ints, there: float) -> Need:
        scarce.append(bool(count @ taken > there * total))
        ratio = taken[on_gpus] / demand[on_gpus]
        return _need_of_each(ratio, weight) if scarce[-1] else _mean_need(ratio, weight)

    needs = need(cpu, beside.cpu_milli), need(memory, beside.memory_mib)
    return Prices(_residual_worth(wanted, gpus=total / MILLI_PER_GPU), *needs, GRAIN if any(scarce) else 0)


def _mean_need(ratio: Floats, weight: Floats) -> Need:
    """Tasks that need `ratio` of a resource for each GPU thousandth share the room; `weight` adds up to 1 [T]."""
    mean = float(ratio @ weight)
    return Need(np.array([0.0, mean]), np.array([1.0, 0.0])) if mean else NO_NEED


def _need_of_each(ratio: Floats, weight: Floats) -> Need:
    """Each task has the room that its own need leaves of use, and lean ones weigh more [T]."""
    mean, needy = float(ratio @ weight), ratio > 0
    if not needy.any():
        return NO_NEED
    ratio, weight = ratio[needy], weight[needy] / np.maximum(ratio[needy], mean / 10) ** 2
    at = np.unique([0.0, *ratio])
    return Need(at, np.maximum(0.0, 1 - at[:, None] / ratio) @ weight / weight.sum())


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
