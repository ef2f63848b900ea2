"""What a leader remembers between two looks at the queue, so that it reads and decides only what has changed.

It is a copy and nothing more: a leader that has just begun reads everything once and decides the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from scheduler.adapters import store, versions, waits
from scheduler.facts import HOLDING, as_running, as_waiting, terms_of
from scheduler.index import follow, indexed
from scheduler.snapshot import (
    Change,
    Node,
    NodeGone,
    NodeSeen,
    Over,
    Placed,
    Queued,
    Running,
    State,
    Stock,
    terms_between,
)
from scheduler.terms import Terms
from scheduler.vocabulary import NodeId, NodeState, WorkloadId


@dataclass(slots=True)
class Memory:
    """The state as it was last seen, with its index, and the rows it came from with their versions."""

    state: State = field(default_factory=State)
    told: dict[str, waits.WaitRow] = field(default_factory=dict[str, waits.WaitRow])
    _queued: dict[str, int] = field(default_factory=dict[str, int])
    _view: int = 0  # the database as it was when the queue was last looked at
    _started: set[str] = field(default_factory=set[str])  # by this leader since then
    _running: dict[str, tuple[tuple[int, int], Running]] = field(
        default_factory=dict[str, tuple[tuple[int, int], Running]]
    )
    _nodes: dict[NodeId, Node] = field(default_factory=dict[NodeId, Node])
    _node_rows: dict[str, tuple[int, Any]] = field(default_factory=dict[str, tuple[int, Any]])
    _stocks: dict[str, tuple[int, Stock]] = field(default_factory=dict[str, tuple[int, Stock]])

    async def look(self, tx: AsyncSession, terms: Terms, *, now: datetime) -> State:
        """The state as it is, equal to `load_state`; in a transaction that has read nothing yet.

        What was seen of a look that fails is forgotten with all the rest, and read again.
        """
        try:
            return await self._look(tx, terms, now=now)
        except BaseException:
            self._forget()
            raise

    def keep(self, written: Mapping[str, tuple[waits.WaitRow, int]]) -> None:
        """What this leader has written of why work waits, and the versions of the rows: it need not read them again.

        But for reasons that hold work back: those are part of what a decision sees.
        """
        for id, (row, version) in written.items():
            if id in self.told and HOLDING.isdisjoint((row.wait_reason, self.told[id].wait_reason)):
                self.told[id], self._queued[id] = row, version

    def started(self, workload_id: WorkloadId) -> None:
        """This leader has started it: it waits no more."""
        self._started.add(workload_id)

    def _forget(self) -> None:
        nothing = Memory()
        for each in fields(self):
            setattr(self, each.name, getattr(nothing, each.name))

    async def _look(self, tx: AsyncSession, terms: Terms, *, now: datetime) -> State:
        await versions.one_view(tx)
        queued = await self._look_at_queue(tx)
        running = await self._look_at_running(tx, terms, now=now)
        await self._look_at_nodes(tx)
        self.state = follow(self.state, [*queued, *self._moves(running), *self._changes_of_nodes()])
        _, index = indexed(self.state)
        as_they_are = await terms_of(tx, index.lines.by_kind, index.held, terms, now=now)
        self.state = follow(self.state, terms_between(self.state, as_they_are))
        return self.state

    async def _look_at_queue(self, tx: AsyncSession) -> list[Change]:
        """What waits now and did not, or did so otherwise, and what waits no more.

        Asked is only for what may be new. What else has left the queue than by this leader's hand shows in the count.
        """
        seen = await versions.queued(tx, since=self._view)
        new, gone = seen.versions.keys() - self._queued.keys(), self._started & self._queued.keys()
        gone -= seen.versions.keys()
        if len(self._queued) + len(new) - len(gone) != seen.waiting:
            seen = await versions.queued(tx)
            gone = self._queued.keys() - seen.versions.keys()
        for id in gone:
            del self._queued[id], self.told[id]
        changed = [id for id, version in seen.versions.items() if self._queued.get(id) != version]
        changes: list[Change] = [Over(WorkloadId(id)) for id in gone if id in self.state.waiting]
        for row in await versions.workload_rows(tx, changed):
            self.told[row.id] = waits.WaitRow(
                row.id, row.fence, row.wait_reason or "", row.wait_detail, row.eta, row.eta_estimated
            )
            waiting = as_waiting(row)
            if self.state.waiting.get(waiting.id) != waiting:
                changes.append(Queued(waiting))
            self._queued[row.id] = seen.versions[row.id]
        self._view, self._started = seen.view, set()
        return changes

    def _moves(self, running: Mapping[WorkloadId, Running]) -> list[Change]:
        """What runs no more, and what runs and did not, or did so otherwise."""
        state = self.state
        changes: list[Change] = [Over(id) for id in state.running if id not in running and id not in self._queued]
        for id, work in running.items():
            before = state.running.get(id)
            if before is not work and before != work:
                changes.append(Placed(work))
        return changes

    def _changes_of_nodes(self) -> list[Change]:
        before = self.state.nodes
        changes: list[Change] = [NodeGone(id) for id in before if id not in self._nodes]
        new = ((node, before.get(id)) for id, node in self._nodes.items() if before.get(id) is not node)
        return changes + [NodeSeen(node) for node, known in new if known != node]

    async def _look_at_running(self, tx: AsyncSession, terms: Terms, *, now: datetime) -> dict[WorkloadId, Running]:
        live = await versions.live(tx)
        known = self._running
        changed = [one for one in live if one.attempt_id not in known or known[one.attempt_id][0] != one.version]
        attempts = await versions.attempt_rows(tx, [one.attempt_id for one in changed])
        placed = await versions.placement_rows(tx, list(attempts))
        workloads = {row.id: row for row in await versions.workload_rows(tx, [one.workload_id for one in changed])}
        fresh: dict[str, tuple[tuple[int, int], Running]] = {}
        running: dict[WorkloadId, Running] = {}
        for one in live:
            if one.attempt_id in attempts:
                attempt = attempts[one.attempt_id]
                work = as_running(workloads[one.workload_id], attempt, placed[one.attempt_id], terms, now=now)
                if attempt.started_at is not None:  # else its expected end moves on with the clock
                    fresh[one.attempt_id] = one.version, work
            else:
                work = known[one.attempt_id][1]
                fresh[one.attempt_id] = known[one.attempt_id]
            running[work.id] = work
        self._running = fresh
        return running

    async def _look_at_nodes(self, tx: AsyncSession) -> None:
        seen = await versions.nodes(tx)
        before = {id: _closes(row) for id, (_, row) in self._node_rows.items()}
        changed = [id for id, (version, _) in seen.items() if id not in before or self._node_rows[id][0] != version]
        rows = {id: row for id, row in self._node_rows.items() if id in seen}
        rows |= {row.id: (seen[row.id][0], row) for row in await versions.node_rows(tx, changed)}
        self._node_rows = rows
        restocked = [id for id, (_, version) in seen.items() if version and self._held_version(id) != version]
        for row in await versions.inventory_rows(tx, restocked):
            self._stocks[row.node_id] = seen[row.node_id][1], store.as_stock(row)
        if restocked or len(before) != len(rows) or any(before.get(id) != _closes(rows[id][1]) for id in changed):
            held = {id: stocks for id, (_, stocks) in self._stocks.items()}
            self._nodes = store.as_nodes([rows[id][1] for id in seen], held)

    def _held_version(self, node_id: str) -> int:
        return self._stocks[node_id][0] if node_id in self._stocks else 0


def _closes(row: Any) -> tuple[object, ...]:
    """All that decisions see of a node, and whether it keeps its machine closed."""
    haunts = row.state == NodeState.LOST and row.is_used
    return (
        row.pool, row.address, row.gpu_milli, row.cpu_milli, row.memory_mib, row.topology, row.state,
        row.cordon_reason, row.draining, haunts,
    )  # fmt: skip
