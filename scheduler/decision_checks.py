"""S1, S3 and S4 asserted on the outcome of every cycle, in production too: a wrong decision is never acted on."""

from scheduler.rooms import grounds, occupied, workers_of
from scheduler.sharing import QuotaKey, Sharing
from scheduler.snapshot import State
from scheduler.vocabulary import Decision, Preempt, Start


def check_decisions(state: State, decisions: list[Decision]) -> None:
    """S1, S3 and S4 on the outcome of a cycle; AssertionError when one of them is broken."""
    decided = [d.workload_id for d in decisions if not isinstance(d, Preempt)]
    assert sorted(decided) == sorted(state.waiting), "every waiting workload gets exactly one decision"
    starts = [decision for decision in decisions if isinstance(decision, Start)]
    for start in starts:
        asked, workers = state.waiting[start.workload_id], len(start.placement.nodes)
        assert asked.workers_least <= workers <= asked.workers, "a gang is placed whole"
        assert all(state.nodes[node].is_open for node in start.placement.nodes), "closed nodes take no work"
    _check_rooms(state, starts)
    _check_quota(state, starts)


def _check_rooms(state: State, starts: list[Start]) -> None:
    """Starts take no accelerator, CPU or memory twice, and share an accelerator only with their own firm."""
    rooms = {pool: occupied(ground, state.running.values()) for pool, ground in grounds(state.nodes.values()).items()}
    for start in starts:
        placement, firm = start.placement, state.waiting[start.workload_id].firm_id
        shape, room = placement.shape, rooms[placement.pool]
        seats = list(workers_of(placement, room.ground))
        assert len(seats) == len(placement.nodes), "a start names nodes and accelerators that are there"
        for node, devices in seats:
            assert all(room.usable(firm)[node, list(devices)]), "an accelerator is shared by one firm only"
            room.take(node, devices, shape, firm)
            assert room.gpu_milli[node, list(devices)].min(initial=0) >= 0, "a cycle cannot mint GPUs"
            assert not shape.cpu_milli or room.cpu_milli[node] >= 0, "a cycle cannot mint CPUs"
            assert not shape.memory_mib or room.memory_mib[node] >= 0, "a cycle cannot mint memory"


def _check_quota(state: State, starts: list[Start]) -> None:
    """Starts leave every firm under its ceiling and every tree within what its firms lend."""
    sharing = Sharing(state.quotas, state.tree)
    used: dict[QuotaKey, int] = {}
    for work in state.running.values():
        key = work.firm_id, work.placement.pool
        used[key] = used.get(key, 0) + work.need
    for start in starts:
        work = state.waiting[start.workload_id]
        key = work.firm_id, start.placement.pool
        used[key] = used.get(key, 0) + work.of(len(start.placement.nodes)).need
    for start in starts:
        key = state.waiting[start.workload_id].firm_id, start.placement.pool
        tree = {firm: milli for (firm, pool), milli in used.items() if pool == key[1]}
        root = sharing.root(key[0])
        mine = {firm: milli for firm, milli in tree.items() if sharing.root(firm) == root}
        assert sharing.left(key, mine) >= 0 or mine[key[0]] <= sharing.quota(key).kept, "nobody uses what nobody lends"
