"""What a decision looks up, worked out of the facts once and kept up as they change, so that cost follows changes.

An index is a value beside the facts of a state and says nothing they do not say. It knows which facts it was made of:
of a state with others it is made anew, as a leader does that has just begun.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias, TypeVar

from quotas.vocabulary import FirmId, PoolName
from scheduler.lines import Lines
from scheduler.occupancy import Occupancy
from scheduler.preferences import Shelves
from scheduler.rooms import grounds
from scheduler.sharing import Member, QuotaKey, Sharing
from scheduler.snapshot import Change, Node, NodeGone, NodeSeen, Over, Placed, Queued, Running, State, Waiting, apply
from scheduler.stretches import FOREVER
from scheduler.usage import Holding, holdings
from scheduler.vocabulary import NodeId, WorkloadId

Tree: TypeAlias = tuple[Member, PoolName]
"""The top of a tree, and a pool."""
Work = TypeVar("Work", Waiting, Running)


@dataclass(frozen=True, slots=True)
class Index:
    """Waiting work in line, running work by firm and by node, quotas and tree worked out."""

    facts: State
    lines: Lines
    held: Mapping[QuotaKey, Holding]
    pools: Mapping[PoolName, Occupancy]  # those with an open node
    sharing: Sharing
    ends: Mapping[Tree, Sequence[datetime]]  # of running work that nobody has told to stop, in order
    draining: frozenset[NodeId]
    known_pools: frozenset[PoolName]  # those that have a node or in which somebody has a quota

    @classmethod
    def of(cls, state: State) -> "Index":
        """Worked out from the facts alone."""
        running = list(state.running.values())
        held, sharing = holdings(running), Sharing(state.quotas, state.tree)
        return cls(
            facts=state,
            lines=Lines.of(state.waiting.values()),
            held=held,
            pools=_pools(state.nodes.values(), running),
            sharing=sharing,
            ends=_ends(held, sharing),
            draining=_draining(state),
            known_pools=_known_pools(state),
        )

    def of_tree(self, tree: Tree) -> tuple[Mapping[FirmId, Holding], Sequence[datetime]]:
        """What the firms of a tree run in a pool, and when that ends."""
        root, pool = tree
        held = {
            firm: holding for (firm, of), holding in self.held.items() if of == pool and self.sharing.root(firm) == root
        }
        return held, self.ends.get(tree, ())

    def fits(self, state: State) -> bool:
        """Whether it was made of these very facts."""
        mine = self.facts
        return (
            mine.waiting is state.waiting
            and mine.running is state.running
            and mine.nodes is state.nodes
            and mine.quotas is state.quotas
            and mine.tree is state.tree
        )

    def after(self, changes: Iterable[Change], state: State) -> "Index":
        """The index of `state`, which `changes` have led to."""
        before, changes = self.facts, list(changes)
        ids = list(dict.fromkeys(id for change in changes for id in _concerned(change)))
        lines = self.lines.after(*_moved(ids, before.waiting, state.waiting))
        gone, come = _moved(ids, before.running, state.running)
        quotas_changed = before.quotas is not state.quotas or before.tree is not state.tree
        sharing = Sharing(state.quotas, state.tree) if quotas_changed else self.sharing
        held = _held_after(self.held, gone, come)
        nodes_changed = before.nodes is not state.nodes
        return Index(
            facts=state,
            lines=lines,
            held=held,
            pools=self._pools_after(changes, state, gone, come),
            sharing=sharing,
            ends=_ends(held, sharing) if quotas_changed else _ends_after(self.ends, sharing, gone, come),
            draining=_draining(state) if nodes_changed else self.draining,
            known_pools=_known_pools(state) if nodes_changed or quotas_changed else self.known_pools,
        )

    def _pools_after(
        self, changes: Iterable[Change], state: State, gone: Sequence[Running], come: Sequence[Running]
    ) -> Mapping[PoolName, Occupancy]:
        """Pools whose nodes changed are made anew; in the others what ended and began is put in."""
        pools = dict(self.pools)
        anew, restocked = _pools_of_changed_nodes(changes, self.facts, state)
        for pool in restocked & pools.keys() - anew:
            ground = pools[pool].ground
            shelves = Shelves([state.nodes[id].holds for id in ground.ids])
            pools[pool] = pools[pool].on(replace(ground, shelves=shelves))
        if anew:
            running = [work for work in state.running.values() if work.placement.pool in anew]
            fresh = _pools((node for node in state.nodes.values() if node.pool in anew), running)
            pools = {pool: of for pool, of in pools.items() if pool not in anew} | fresh
        touched = {work.placement.pool for work in (*gone, *come)} & pools.keys() - anew
        for pool in touched:
            left, began = ([work for work in works if work.placement.pool == pool] for works in (gone, come))
            pools[pool] = pools[pool].after(left, began)
        return pools


def indexed(state: State) -> tuple[State, Index]:
    """The state with its index, which is worked out if it has none."""
    index = state.index
    if not isinstance(index, Index) or not index.fits(state):
        index = Index.of(replace(state, index=None))
        state = replace(state, index=index)
    return state, index


def follow(state: State, changes: Iterable[Change]) -> State:
    """The state after `changes`, with its index; `state` itself stays as it is."""
    changes = list(changes)
    if not isinstance(state.index, Index) or not state.index.fits(state):
        return indexed(apply(state, changes))[0]
    after = apply(state, changes)
    return replace(after, index=state.index.after(changes, after))


def _concerned(change: Change) -> Iterable[WorkloadId]:
    match change:
        case Queued(workload) | Placed(workload):
            return (workload.id,)
        case Over(workload_id):
            return (workload_id,)
        case _:
            return ()


def _moved(
    ids: Iterable[WorkloadId], before: Mapping[WorkloadId, Work], after: Mapping[WorkloadId, Work]
) -> tuple[list[Work], list[Work]]:
    """What of these has gone, and what has come; work that was changed has done both."""
    gone, come = list[Work](), list[Work]()
    for id in ids:
        old, new = before.get(id), after.get(id)
        if old != new:
            gone += [old] if old is not None else []
            come += [new] if new is not None else []
    return gone, come


def _held_after(
    held: Mapping[QuotaKey, Holding], gone: Iterable[Running], come: Iterable[Running]
) -> Mapping[QuotaKey, Holding]:
    moves: dict[QuotaKey, tuple[list[Running], list[Running]]] = {}
    for way, works in enumerate((gone, come)):
        for work in works:
            moves.setdefault((work.firm_id, work.placement.pool), ([], []))[way].append(work)
    after = dict(held)
    for key, (left, began) in moves.items():
        after[key] = after.get(key, _NOTHING).after(left, began)
        if not after[key].works:
            del after[key]
    return after


def _ends(held: Mapping[QuotaKey, Holding], sharing: Sharing) -> Mapping[Tree, Sequence[datetime]]:
    ends: dict[Tree, list[datetime]] = {}
    for (firm, pool), holding in held.items():
        ends.setdefault((sharing.root(firm), pool), []).extend(holding.ends.at)
    return {tree: sorted(of) for tree, of in ends.items()}


def _ends_after(
    ends: Mapping[Tree, Sequence[datetime]], sharing: Sharing, gone: Iterable[Running], come: Iterable[Running]
) -> Mapping[Tree, Sequence[datetime]]:
    after, fresh = dict(ends), dict[Tree, list[datetime]]()

    def of(work: Running) -> list[datetime]:
        tree = sharing.root(work.firm_id), work.placement.pool
        if tree not in fresh:
            after[tree] = fresh[tree] = list(ends.get(tree, ()))
        return fresh[tree]

    for work in gone:
        if not work.is_stopping:
            at = of(work)
            del at[bisect_left(at, work.ends_at or FOREVER)]
    for work in come:
        if not work.is_stopping:
            insort(of(work), work.ends_at or FOREVER)
    return after


def _pools(nodes: Iterable[Node], running: Iterable[Running]) -> dict[PoolName, Occupancy]:
    by_pool: dict[PoolName, list[Running]] = {}
    for work in running:
        by_pool.setdefault(work.placement.pool, []).append(work)
    return {pool: Occupancy.of(ground, by_pool.get(pool, ())) for pool, ground in grounds(nodes).items()}


def _pools_of_changed_nodes(
    changes: Iterable[Change], before: State, after: State
) -> tuple[set[PoolName], set[PoolName]]:
    """Pools with other nodes than before, and those whose nodes have other files or models."""
    ids = {change.node.id for change in changes if isinstance(change, NodeSeen)}
    ids |= {change.node_id for change in changes if isinstance(change, NodeGone)}
    anew, restocked = set[PoolName](), set[PoolName]()
    for old, new in ((before.nodes.get(id), after.nodes.get(id)) for id in ids):
        if old is not None and new is not None and replace(old, holds=new.holds) == new:
            restocked |= {new.pool} if old.holds != new.holds else set()
        else:
            anew |= {node.pool for node in (old, new) if node is not None}
    return anew, restocked


def _draining(state: State) -> frozenset[NodeId]:
    return frozenset(node.id for node in state.nodes.values() if node.is_draining)


def _known_pools(state: State) -> frozenset[PoolName]:
    return frozenset({node.pool for node in state.nodes.values()} | {pool for _, pool in state.quotas})


_NOTHING = Holding()
