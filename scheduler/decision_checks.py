"""S1, S3 and S4 asserted on the outcome of every cycle, in production too: a wrong decision is never acted on.

What is checked costs what was decided, not what exists: only the nodes and trees that starts touch are counted again.
"""

from datetime import datetime

from scheduler.decisions import Decisions, of_kind
from scheduler.index import Index, indexed
from scheduler.lines import is_held
from scheduler.rooms import workers_of
from scheduler.sharing import QuotaKey
from scheduler.snapshot import State
from scheduler.vocabulary import Preempt, Start


def check_decisions(state: State, decisions: Decisions, *, now: datetime) -> None:
    """S1, S3 and S4 on the outcome of a cycle; AssertionError when one of them is broken."""
    state, index = indexed(state)
    _check_nobody_is_forgotten(state, index, decisions, now=now)
    starts = [decision for decision in decisions.made if isinstance(decision, Start)]
    for start in starts:
        asked, workers = state.waiting[start.workload_id], len(start.placement.nodes)
        assert asked.workers_least <= workers <= asked.workers, "a gang is placed whole"
        assert all(state.nodes[node].is_open for node in start.placement.nodes), "closed nodes take no work"
    _check_rooms(state, index, starts)
    _check_quota(state, index, starts)


def _check_nobody_is_forgotten(state: State, index: Index, decisions: Decisions, *, now: datetime) -> None:
    """Waiting work has one decision of its own, or is held, or waits with its kind."""
    listed = [decision.workload_id for decision in decisions.made if not isinstance(decision, Preempt)]
    made, kinds = set(listed), decisions.by_kind()
    assert len(made) == len(listed) and made <= state.waiting.keys(), "nobody is decided about twice"
    if not decisions.is_whole:
        return
    for kind, line in index.lines.by_kind.items():
        if kind in kinds and kinds[kind][0].seconds == 0:
            continue
        for _, work in line:
            waits = work.id in made or is_held(work, now=now) or of_kind(work, kinds) is not None
            assert waits, "every waiting workload is decided about"


def _check_rooms(state: State, index: Index, starts: list[Start]) -> None:
    """Starts take no accelerator, CPU or memory twice, and share an accelerator only with their own firm."""
    rooms = {
        (start.placement.pool, node): index.pools[start.placement.pool].empty_but_for_uses(node)
        for start in starts
        for node, _ in workers_of(start.placement, index.pools[start.placement.pool].ground)
    }
    for start in starts:
        placement, firm = start.placement, state.waiting[start.workload_id].firm_id
        shape, seats = placement.shape, list(workers_of(placement, index.pools[placement.pool].ground))
        assert len(seats) == len(placement.nodes), "a start names nodes and accelerators that are there"
        for node, devices in seats:
            room = rooms[placement.pool, node]
            assert all(room.usable(firm)[0, list(devices)]), "an accelerator is shared by one firm only"
            room.take(0, devices, shape, firm)
            assert room.gpu_milli[0, list(devices)].min(initial=0) >= 0, "a cycle cannot mint GPUs"
            assert not shape.cpu_milli or room.cpu_milli[0] >= 0, "a cycle cannot mint CPUs"
            assert not shape.memory_mib or room.memory_mib[0] >= 0, "a cycle cannot mint memory"


def _check_quota(state: State, index: Index, starts: list[Start]) -> None:
    """Starts leave every firm under its ceiling and every tree within what its firms lend."""
    sharing = index.sharing
    used = {key: holding.used for key, holding in index.held.items()}
    touched: set[QuotaKey] = set()
    for start in starts:
        work = state.waiting[start.workload_id]
        key = work.firm_id, start.placement.pool
        used[key] = used.get(key, 0) + work.of(len(start.placement.nodes)).need
        touched.add(key)
    for key in touched:
        root = sharing.root(key[0])
        mine = {firm: milli for (firm, pool), milli in used.items() if pool == key[1] and sharing.root(firm) == root}
        assert sharing.left(key, mine) >= 0 or mine[key[0]] <= sharing.quota(key).kept, "nobody uses what nobody lends"
