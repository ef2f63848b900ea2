"""The tree in which firms share: cohorts below cohorts, firms as its leaves; dated, so any instant's tree can be asked.

Borrowing goes up the tree: firms of one cohort lend to each other first (Kueue's hierarchical cohorts).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from kit.errors import Conflict, InvalidInput
from quotas.vocabulary import CohortName, FirmId


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a node hangs from `effective_from` on, until a later placement moves it.

    A node is a firm or a cohort; without a parent it is a root. `weight_milli` is its share among its siblings when
    they compete for what nobody owns; 1000 is one. `version` is the order of writing.
    """

    version: int
    node: FirmId | CohortName
    parent: CohortName | None
    weight_milli: int
    effective_from: datetime


Tree = Mapping[FirmId | CohortName, Placement]


def tree_at(placements: Iterable[Placement], *, at: datetime) -> Tree:
    """Node → the placement in force at `at`: the latest start, and of equal starts the last written."""
    chosen: dict[FirmId | CohortName, Placement] = {}
    for one in placements:
        if one.effective_from > at:
            continue
        before = chosen.get(one.node)
        if before is None or (before.effective_from, before.version) < (one.effective_from, one.version):
            chosen[one.node] = one
    return chosen


def ancestors(tree: Tree, node: FirmId | CohortName) -> tuple[CohortName, ...]:
    """The cohorts above a node, nearest first. Raises Conflict (`cohort_loop`) when they close a loop."""
    above: list[CohortName] = []
    placed = tree.get(node)
    while placed is not None and placed.parent is not None:
        if placed.parent in above or placed.parent == node:
            raise Conflict(
                f"{node} would be above itself: {' → '.join([node, *above, placed.parent])}.",
                code="cohort_loop",
                hint="Hang it somewhere that is not below it.",
            )
        above.append(placed.parent)
        placed = tree.get(placed.parent)
    return tuple(above)


def check_placement(placements: Iterable[Placement], new: Placement) -> None:
    """Return if the tree stays a tree from `new` on, at every instant at which it changes.

    Raises InvalidInput for a weight below one thousandth or a firm as parent, Conflict for a loop or for a parent
    that is not there.
    """
    if new.weight_milli < 1:
        raise InvalidInput("A weight is at least 1 thousandth.", code="cohort_weight")
    if new.parent is not None and is_firm(new.parent):
        raise InvalidInput("A firm cannot be above anything; name a cohort.", code="cohort_parent")
    together = [*placements, new]
    instants = {one.effective_from for one in together if one.effective_from >= new.effective_from}
    for instant in sorted(instants):
        tree = tree_at(together, at=instant)
        for node, placed in tree.items():
            if placed.parent is not None and placed.parent not in tree:
                raise Conflict(
                    f"There is no cohort {placed.parent} on {instant:%Y-%m-%d}.",
                    code="cohort_missing",
                    hint="Make it first: heliu cohort place NAME",
                )
            ancestors(tree, node)


def is_firm(node: str) -> bool:
    """Whether a node of the tree is a firm; cohorts have no underscore in their names."""
    return node.startswith("firm_")
