"""The cluster's port with faults: orders that are lost, late or repeated, machines that die, a head that forgets."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random

from kit.units import MILLI_PER_GPU
from scheduler.adapters import store
from scheduler.adapters.simulated_runtime import SimulatedRuntime
from scheduler.ports import NodeReport, StartOrder
from scheduler.vocabulary import AttemptId, NodeId, WorkloadId
from tests.simulation.programs import Fate, Nodes, Place, Program
from tests.support.scheduling import City, Runner


@dataclass(slots=True)
class Cluster(SimulatedRuntime):
    """`SimulatedRuntime` that spawns processes, and fails as it is told. Faults are in percent."""

    seed: int = 0
    lost: int = 4
    late: int = 4
    repeated: int = 15
    arriving: list[tuple[datetime | None, StartOrder]] = field(default_factory=list[tuple[datetime | None, StartOrder]])
    stopping: list[AttemptId] = field(default_factory=list[AttemptId])

    async def start(self, order: StartOrder) -> None:
        """Take an order; what becomes of it shows when the storm delivers."""
        before = self.lose_starts
        if self.answers and self.happens("lost", order.attempt_id, self.lost):
            self.lose_starts += 1
        known = order.attempt_id in self.runners
        await SimulatedRuntime.start(self, order)
        self.lose_starts = before
        if not known and order.attempt_id in self.runners:
            self.arriving.append((None, order))

    async def stop(self, attempt: AttemptId) -> bool:
        """Ask it to stop: the process is killed when the storm delivers."""
        gone = await SimulatedRuntime.stop(self, attempt)
        if not gone:
            self.stopping.append(attempt)
        return gone

    def clear_up(self) -> None:
        """No more faults."""
        self.lost = self.late = self.repeated = 0
        self.answers = True

    def happens(self, fault: str, attempt: AttemptId, percent: int) -> bool:
        """Whether this fault strikes this attempt: by seed and name, as orders are sent side by side."""
        return Random(f"{self.seed} {fault} {attempt}").randrange(100) < percent


@dataclass
class Machines:
    """What the cluster's machines do with its orders."""

    city: City
    cluster: Cluster
    nodes: Nodes
    fates: dict[WorkloadId, Fate]
    away: dict[NodeId, NodeReport] = field(default_factory=dict[NodeId, NodeReport])

    async def deliver(self) -> None:
        """Spawn and kill what was ordered, now or later."""
        now, cluster = self.city.clock.now(), self.cluster
        for attempt in cluster.stopping:
            for program in self.nodes.alive:
                if program.attempt_id == attempt:
                    self.nodes.kill(program)
        cluster.stopping.clear()
        arriving, cluster.arriving = sorted(cluster.arriving, key=lambda one: one[1].attempt_id), []
        for due, order in arriving:  # by name, as orders are sent side by side
            attempt = order.attempt_id
            if due is None and cluster.happens("late", attempt, cluster.late):
                delay = timedelta(seconds=Random(f"{cluster.seed} delay {attempt}").randint(1, 240))
                cluster.arriving.append((now + delay, order))
            elif due is not None and due > now:
                cluster.arriving.append((due, order))
            else:
                await self._spawn(order)
                if due is None and cluster.happens("repeated", attempt, cluster.repeated):
                    await self._spawn(order)

    def reap(self) -> None:
        """The cluster notices which processes have ended."""
        alive = {program.attempt_id for program in self.nodes.alive}
        for attempt in {program.attempt_id for program in self.nodes.programs} - alive:
            if attempt in self.cluster.runners:
                self.cluster.exit(attempt)

    def lose(self, node: NodeId) -> None:
        """A machine dies with all that runs on it."""
        report = self.cluster.machines.pop(node, None)
        if report is not None:
            self.away[node] = report
        for program in self.nodes.alive:
            if node in program.nodes:
                self.nodes.kill(program)

    def bring_back(self, node: NodeId) -> None:
        """A dead machine starts again, empty."""
        self.cluster.machines[node] = self.away.pop(node)

    def lose_head(self) -> None:
        """The head dies with every process, and starts again with the same machines."""
        machines = dict(self.cluster.machines)
        for program in self.nodes.alive:
            self.nodes.kill(program)
        self.cluster.forget()
        self.cluster.arriving.clear()
        self.cluster.machines.update(machines)

    async def _spawn(self, order: StartOrder) -> None:
        async with self.city.db.transaction() as tx:
            attempt = await store.attempt(tx, order.attempt_id)
            rows = (await store.placements(tx, [order.attempt_id]))[order.attempt_id]
        assert attempt is not None, "only recorded attempts are ordered"
        places = tuple(
            Place(NodeId(row.node_id), tuple(row.devices), min(row.gpu_milli, MILLI_PER_GPU)) for row in rows
        )
        if not {place.node for place in places} <= set(self.cluster.machines):
            return  # a machine died meanwhile
        runner = Runner(self.city, order.attempt_id, order.token, f"runner-{len(self.nodes.programs)}")
        fate = self.fates[order.workload_id]
        self.nodes.programs.append(Program(order, attempt.firm_id, places, runner, fate))
