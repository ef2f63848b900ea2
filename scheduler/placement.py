"""A gang on nodes: filter those with room, score every way to put a worker there, pick the best; all or none.

Each step is a function of arrays over the K nodes (or candidate placements) at hand. What makes a place good is the
caller's `Scoring`: how it packs (in production `scheduler/scoring.py`), and what its node has (`preferences.py`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from kit.units import MILLI_PER_GPU
from quotas.vocabulary import FirmId
from scheduler.preferences import USUAL, Files, Weights
from scheduler.rooms import Flags, Ground, Ints, Room, Rooms
from scheduler.snapshot import Waiting
from scheduler.vocabulary import Shape, Spread

_MANY = 1 << 40


@dataclass(frozen=True, slots=True)
class Candidates:
    """K ways to put one worker of `shape` on nodes: which node, that node before and after.

    `left`: what the shared accelerator had left (shares only) [K].
    """

    shape: Shape
    node: Ints
    before: Rooms
    after: Rooms
    left: Ints | None


Policy: TypeAlias = Callable[[Candidates], Ints]
"""Scores [K], higher is better; equal scores go to the node and the accelerator that come first."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """What makes a place good: how it packs, and what the node has. `unit` points of `packing` are a thousandth."""

    packing: Policy
    unit: int = 1
    weights: Weights = USUAL


@dataclass(frozen=True, slots=True)
class Ask:
    """A gang to be placed: equal workers of one firm. `model` and `files`: what each of them reads."""

    firm: FirmId
    shape: Shape
    workers: int = 1
    spread: Spread = Spread.SAME_CENTRE
    topology: str | None = None
    model: str | None = None
    files: Files = ()


def ask_of(workload: Waiting) -> Ask:
    """What waiting work asks of a pool."""
    return Ask(
        workload.firm_id, workload.shape, workload.workers, workload.spread, workload.topology,
        workload.model, workload.files,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seat:
    """One worker's node (its index on the ground) and accelerators, and how good that was.

    `second`: the next best node and its score.
    """

    node: int
    devices: tuple[int, ...]
    score: int
    second: tuple[int, int] | None = None


def slots(rooms: Rooms, shape: Shape, usable: Flags | None = None) -> Ints:
    """Filter: how many workers of this shape fit on each node at once [K]. `usable`: accelerators it may share."""
    count = np.full(len(rooms.cpu_milli), _MANY, dtype=np.int64)
    if shape.cpu_milli:
        count = np.minimum(count, rooms.cpu_milli // shape.cpu_milli)
    if shape.memory_mib:
        count = np.minimum(count, rooms.memory_mib // shape.memory_mib)
    if shape.is_share:
        shares = np.maximum(rooms.gpu_milli, 0) // shape.gpu_milli
        count = np.minimum(count, (shares if usable is None else shares * usable).sum(axis=1))
    elif shape.gpus:
        count = np.minimum(count, (rooms.gpu_milli == MILLI_PER_GPU).sum(axis=1) // shape.gpus)
    return np.maximum(count, 0)


def candidates_on(
    rooms: Rooms, nodes: Ints, shape: Shape, usable: Flags | None = None
) -> tuple[Candidates, Ints, Ints]:
    """Every way to put a worker on `nodes`, which have room: candidates, index into `nodes`, accelerator [K].

    Only a share chooses its accelerator (else −1): whole ones are all alike, the first free ones are taken.
    """
    if shape.is_share:
        enough = rooms.gpu_milli[nodes] >= shape.gpu_milli
        index, device = np.nonzero(enough if usable is None else enough & usable[nodes])
    else:
        index, device = np.arange(len(nodes)), np.full(len(nodes), -1)
    of = nodes[index]
    before = Rooms(rooms.cpu_milli[of], rooms.memory_mib[of], rooms.gpu_milli[of])
    after, left = before.gpu_milli.copy(), None
    if shape.is_share:
        row = np.arange(len(of))
        left = before.gpu_milli[row, device]
        after[row, device] -= shape.gpu_milli
    elif shape.gpus:
        whole = after == MILLI_PER_GPU
        after[whole & (np.cumsum(whole, axis=1) <= shape.gpus)] = 0
    then = Rooms(before.cpu_milli - shape.cpu_milli, before.memory_mib - shape.memory_mib, after)
    return Candidates(shape, of, before, then, left), index, device


def best_on_each(
    rooms: Rooms, nodes: Ints, shape: Shape, policy: Policy, usable: Flags | None = None
) -> tuple[Ints, Ints]:
    """Score: the best way on each of `nodes`, which have room: its score, its accelerator (−1: not a share) [K]."""
    candidates, index, device = candidates_on(rooms, nodes, shape, usable)
    score = policy(candidates)
    if not shape.is_share:  # one candidate for each node
        return score, device
    order = np.lexsort((device, -score, index))
    best = order[np.unique(index[order], return_index=True)[1]]
    return score[best], device[best]


def pick(scores: Ints, allowed: Flags) -> int | None:
    """Pick: the first of the best nodes among those allowed; None when none is."""
    if not allowed.any():
        return None
    return int(np.argmax(np.where(allowed, scores, np.iinfo(np.int64).min)))


def best_fit(candidates: Candidates) -> Ints:
    """The node on which least stays free, and on it the fullest accelerator."""
    free = candidates.after.gpu_milli.sum(axis=1) * (MILLI_PER_GPU + 1)
    return -free if candidates.left is None else -free - candidates.left


BEST_FIT = Scoring(best_fit, MILLI_PER_GPU + 1)


@dataclass(frozen=True, slots=True)
class Scored:
    """The best way on each node for workers of one shape (of one firm, if they share), as far as it was worked out.

    `room`: each node as it was then; one that is not so any more is looked at again. Rows are changed in place.
    """

    room: Room
    scores: Ints
    device: Ints

    @classmethod
    def nothing(cls, ground: Ground, nodes: int) -> "Scored":
        """Of none of so many nodes."""
        one, each = (nodes,), (nodes, ground.rooms.gpu_milli.shape[1])
        unseen = Room(ground, *(np.full(shape, -_MANY) for shape in (one, one, each, each)))
        return cls(unseen, np.zeros(nodes, dtype=np.int64), np.full(nodes, -1))

    def bring_up(self, room: Room, allowed: Flags, shape: Shape, policy: Policy, usable: Flags | None) -> None:
        """Look again at the nodes that are allowed and are not as they were."""
        before = self.room
        same = (before.cpu_milli == room.cpu_milli) & (before.memory_mib == room.memory_mib)
        same &= (before.gpu_milli == room.gpu_milli).all(axis=1)
        if shape.is_share:
            same &= (before.firm == room.firm).all(axis=1)
        changed = np.flatnonzero(allowed & ~same)
        if not len(changed):
            return
        self.scores[changed], self.device[changed] = best_on_each(as_rooms(room), changed, shape, policy, usable)
        before.cpu_milli[changed], before.memory_mib[changed] = room.cpu_milli[changed], room.memory_mib[changed]
        before.gpu_milli[changed], before.firm[changed] = room.gpu_milli[changed], room.firm[changed]


def place_gang(
    room: Room, ask: Ask, scoring: Scoring = BEST_FIT, scored: Scored | None = None
) -> tuple[Seat, ...] | None:
    """A seat for each worker, or None when not all of them fit at once. `room` stays as it is.

    `scored`: what is known of its nodes for such workers by the same scoring; it is brought up to date.
    """
    usable = room.usable(ask.firm) if ask.shape.is_share else None
    fit = slots(as_rooms(room), ask.shape, usable)
    allowed = _together(fit, room.ground, ask)
    if allowed is None:
        return None
    near = room.ground.shelves.points(ask.model, ask.files, scoring.weights)
    near = np.zeros(len(allowed), dtype=np.int64) if near is None else near * scoring.unit
    if ask.spread is Spread.SAME_NODE and ask.workers > 1:
        return _on_one_node(room, np.flatnonzero(allowed), ask, scoring.packing, near)
    return _one_by_one(room, allowed, ask, scoring.packing, near, scored)


def could_hold(room: Room, ask: Ask) -> bool:
    """Whether a gang fits there at once."""
    usable = room.usable(ask.firm) if ask.shape.is_share else None
    return _together(slots(as_rooms(room), ask.shape, usable), room.ground, ask) is not None


def as_rooms(room: Room) -> Rooms:
    """The arrays alone."""
    return Rooms(room.cpu_milli, room.memory_mib, room.gpu_milli)


def devices_for(room: Room, node: int, device: int, shape: Shape) -> tuple[int, ...]:
    """Indexes of the accelerators: the one that was chosen for a share, the first wholly free ones otherwise."""
    if shape.is_share:
        return (device,)
    whole = np.flatnonzero(room.gpu_milli[node] == MILLI_PER_GPU)[: shape.gpus]
    return tuple(int(index) for index in whole)


def _together(fit: Ints, ground: Ground, ask: Ask) -> Flags | None:
    """The nodes it may use such that all workers find a seat there, as its spread and topology want; None: nowhere.

    Of several groups of one topology the tightest that holds it, so that large groups stay whole.
    """
    each = np.minimum(fit, 1) if ask.spread is Spread.APART else fit
    if ask.spread is Spread.SAME_NODE:
        each = np.where(fit >= ask.workers, fit, 0)
    if ask.topology is None:
        return each > 0 if each.sum() >= ask.workers else None
    groups: list[tuple[int, str, Flags]] = []
    for value, inside in _groups(ground, ask.topology):
        total = int(each[inside].sum())
        if total >= ask.workers:
            groups.append((total, value, inside))
    return min(groups, key=lambda group: group[:2])[2] & (each > 0) if groups else None


def _groups(ground: Ground, label: str) -> Iterable[tuple[str, Flags]]:
    """Nodes by the value of a topology label; nodes without it are in no group."""
    values = np.array([of.get(label, "") for of in ground.topology])
    return ((str(value), values == value) for value in np.unique(values) if value)


def _one_by_one(
    room: Room, allowed: Flags, ask: Ask, policy: Policy, near: Ints, scored: Scored | None = None
) -> tuple[Seat, ...]:
    """One worker after the other; after each only its node is looked at again. `near`: points of the nodes [N]."""
    usable = room.usable(ask.firm) if ask.shape.is_share else None
    scored = scored or Scored.nothing(room.ground, len(allowed))
    scored.bring_up(room, allowed, ask.shape, policy, usable)
    scores, device, seats = scored.scores + near, scored.device, list[Seat]()
    if ask.workers > 1:
        room, allowed, device = room.copy(), allowed.copy(), device.copy()
    for worker in range(ask.workers):
        node = pick(scores, allowed)
        assert node is not None, "the filter counted a seat for every worker"
        second = None if worker else _second(scores, allowed, node)
        seat = Seat(node, devices_for(room, node, int(device[node]), ask.shape), int(scores[node]), second)
        seats.append(seat)
        if worker + 1 < ask.workers:
            room.take(node, seat.devices, ask.shape, ask.firm)
            one = np.array([node])
            still = slots(_rows(room, one), ask.shape, None if usable is None else usable[one])[0] > 0
            allowed[node] = still and ask.spread is not Spread.APART
            if allowed[node]:
                scores[one], device[one] = best_on_each(as_rooms(room), one, ask.shape, policy, usable)
                scores[one] += near[one]
    return tuple(seats)


def _second(scores: Ints, allowed: Flags, best: int) -> tuple[int, int] | None:
    """The node that would have been picked without the best one, and its score."""
    others = allowed.copy()
    others[best] = False
    node = pick(scores, others)
    return None if node is None else (node, int(scores[node]))


def _on_one_node(room: Room, nodes: Ints, ask: Ask, policy: Policy, near: Ints) -> tuple[Seat, ...]:
    """All workers on the node where they are best together."""
    gangs = [_alone(room, int(node), ask, policy, near[[node]]) for node in nodes]
    best, *others = sorted(gangs, key=lambda seats: (-sum(seat.score for seat in seats), seats[0].node))
    second = (others[0][0].node, others[0][0].score) if others else None
    return (replace(best[0], second=second), *best[1:])


def _alone(room: Room, node: int, ask: Ask, policy: Policy, near: Ints) -> tuple[Seat, ...]:
    """All workers on this node."""
    rows = _rows(room, np.array([node]))
    one = Room(room.ground, rows.cpu_milli, rows.memory_mib, rows.gpu_milli, room.firm[[node]])
    seats = _one_by_one(one, np.ones(1, dtype=bool), ask, policy, near)
    return tuple(replace(seat, node=node) for seat in seats)


def _rows(room: Room, nodes: Ints) -> Rooms:
    return Rooms(room.cpu_milli[nodes], room.memory_mib[nodes], room.gpu_milli[nodes])
