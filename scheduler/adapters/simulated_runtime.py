"""A cluster in memory, at the port: it remembers what it was told and does what a test or a simulator says happens."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kit.errors import Unavailable
from scheduler.ports import NodeReport, Observation, RunnerState, StartOrder
from scheduler.vocabulary import AttemptId, NodeId


@dataclass(slots=True)
class SimulatedRuntime:
    """`ports.ClusterRuntime` and `ports.NodeDirectory`. Runners run until they exit, are stopped, or the head dies."""

    machines: dict[NodeId, NodeReport] = field(default_factory=dict[NodeId, NodeReport])
    runners: dict[AttemptId, Observation] = field(default_factory=dict[AttemptId, Observation])
    orders: dict[AttemptId, StartOrder] = field(default_factory=dict[AttemptId, StartOrder])
    answers: bool = True
    lose_starts: int = 0  # so many starts are answered and then forgotten

    async def start(self, order: StartOrder) -> None:
        """Start a runner, once."""
        self._answer()
        if self.lose_starts:
            self.lose_starts -= 1
            return
        if order.attempt_id not in self.runners:
            self.orders[order.attempt_id] = order
            self.runners[order.attempt_id] = Observation(order.attempt_id, RunnerState.RUNNING)

    async def observe(self, attempts: Sequence[AttemptId]) -> list[Observation]:
        """What it knows of each."""
        self._answer()
        return [self.runners.get(attempt, Observation(attempt, RunnerState.UNKNOWN)) for attempt in attempts]

    async def stop(self, attempt: AttemptId) -> bool:
        """The first call asks it to stop, the next one finds it gone."""
        self._answer()
        known = self.runners.get(attempt)
        if known is None or known.state is RunnerState.EXITED:
            return True
        self.exit(attempt, "stopped")
        return False

    async def nodes(self) -> list[NodeReport]:
        """The machines that are up."""
        self._answer()
        return list(self.machines.values())

    def exit(self, attempt: AttemptId, message: str = "") -> None:
        """The runner's process ends."""
        self.runners[attempt] = Observation(attempt, RunnerState.EXITED, message)

    def forget(self) -> None:
        """The head dies and comes back with nothing: no runner, no node."""
        self.runners.clear()
        self.machines.clear()

    def _answer(self) -> None:
        if not self.answers:
            raise Unavailable("the simulated cluster does not answer")
