"""What every cluster runtime promises, the simulated one and a real Ray alike."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import pytest

from kit.errors import Unavailable
from kit.ids import new_id
from scheduler.adapters.ray_runtime import RayCluster, RayRuntime
from scheduler.adapters.simulated_runtime import SimulatedRuntime
from scheduler.ports import ClusterRuntime, NodeDirectory, NodeReport, RunnerState, StartOrder
from scheduler.vocabulary import AttemptId, NodeId, WorkloadId
from tests.support.real_ray import ACCELERATOR, CENTRE, RealRay, real_ray
from tests.support.until import until_async

ON_RAY = [pytest.mark.ray, pytest.mark.timeout(400, func_only=True)]

# Stands for the node environment's interpreter: notes its start, ends when told to, dies of SIGTERM like any process.
RUNNER = """#!/bin/sh
echo "$HELIU_CONTROL_URL $HELIU_ATTEMPT_TOKEN $*" >> "{folder}/$HELIU_ATTEMPT_ID.started"
while [ ! -e "{folder}/$HELIU_ATTEMPT_ID.exit" ]; do sleep 0.1; done
exit 3
"""


class Runtime(ClusterRuntime, NodeDirectory, Protocol):
    """Both ports, as both adapters have them."""


class Cluster:
    """A cluster under test: what a test may do to it beside the port."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    async def order(self) -> StartOrder:
        """An order for one slot of the cluster's node."""
        (node,) = await self.runtime.nodes()
        attempt = AttemptId(new_id("att"))
        return StartOrder(attempt, WorkloadId(new_id("job")), f"ha_{attempt}_secret", node.id, {"slot": 1.0}, 1)

    async def state(self, attempt: AttemptId) -> RunnerState:
        """Where its runner stands."""
        (seen,) = await self.runtime.observe([attempt])
        assert seen.attempt_id == attempt
        return seen.state

    async def becomes(self, attempt: AttemptId, state: RunnerState) -> None:
        """Wait for a state."""

        async def is_so() -> bool:
            return await self.state(attempt) is state

        await until_async(is_so, seconds=60, what=f"{attempt} being {state}")

    def starts(self, attempt: AttemptId) -> int:
        raise NotImplementedError

    def end_runner(self, attempt: AttemptId) -> None:
        raise NotImplementedError

    async def lose_everything(self) -> None:
        raise NotImplementedError

    def silent(self) -> Runtime:
        """The same runtime, of a cluster that does not answer."""
        raise NotImplementedError


class Simulated(Cluster):
    def __init__(self) -> None:
        self.fake = SimulatedRuntime()
        self._add_node()
        super().__init__(self.fake)

    def starts(self, attempt: AttemptId) -> int:
        return int(attempt in self.fake.orders)

    def end_runner(self, attempt: AttemptId) -> None:
        self.fake.exit(attempt, "exit code 3")

    async def lose_everything(self) -> None:
        self.fake.forget()
        self._add_node()

    def silent(self) -> Runtime:
        return SimulatedRuntime(answers=False)

    def _add_node(self) -> None:
        labels = {"heliu.io/centre": CENTRE, "heliu.io/accelerator": ACCELERATOR}
        node_id = NodeId(new_id("node"))
        self.fake.machines[node_id] = NodeReport(node_id, "127.0.0.1", {"slot": 2.0}, labels)


class Real(Cluster):
    def __init__(self, ray: RealRay, folder: Path) -> None:
        self.ray, self.folder = ray, folder
        runner = folder / "python"
        runner.write_text(RUNNER.format(folder=folder))
        runner.chmod(0o755)
        cluster = RayCluster(ray.url, ray.token, str(runner), {"HELIU_CONTROL_URL": "http://control"})
        self.ray_runtime = RayRuntime(cluster)
        super().__init__(self.ray_runtime)

    def noted(self) -> list[AttemptId]:
        """Attempts whose runners have started."""
        return [AttemptId(note.stem) for note in self.folder.glob("*.started")]

    def starts(self, attempt: AttemptId) -> int:
        note = self.folder / f"{attempt}.started"
        return len(note.read_text().splitlines()) if note.exists() else 0

    def end_runner(self, attempt: AttemptId) -> None:
        (self.folder / f"{attempt}.exit").touch()

    async def lose_everything(self) -> None:
        await asyncio.to_thread(self.ray.kill)
        await asyncio.to_thread(self.ray.start)

    def silent(self) -> Runtime:
        return RayRuntime(RayCluster("http://127.0.0.1:9", self.ray.token, "python", {}))


@pytest.fixture(scope="module")
def ray_head() -> Iterator[RealRay]:
    with real_ray() as head:
        yield head


@pytest.fixture(params=["simulated", pytest.param("ray", marks=ON_RAY)])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    """One suite, both adapters."""
    if request.param == "simulated":
        yield Simulated()
        return
    async with real_cluster(cast("RealRay", request.getfixturevalue("ray_head")), tmp_path) as real:
        yield real


@asynccontextmanager
async def real_cluster(head: RealRay, folder: Path) -> AsyncIterator[Cluster]:
    """Heliu's adapter on a head; afterwards no runner is left."""
    real = Real(head, folder)
    yield real
    for attempt in real.noted():
        real.end_runner(attempt)
    await real.ray_runtime.close()


async def test_nodes_are_listed_with_their_labels_and_accelerators(cluster: Cluster) -> None:
    (node,) = await cluster.runtime.nodes()
    assert node.resources["slot"] == 2
    assert (node.labels["heliu.io/centre"], node.labels["heliu.io/accelerator"]) == (CENTRE, ACCELERATOR)
    assert node.id and node.address


async def test_an_attempt_nobody_started_is_unknown_and_stopping_it_is_done_at_once(cluster: Cluster) -> None:
    attempt = AttemptId(new_id("att"))
    assert await cluster.state(attempt) is RunnerState.UNKNOWN
    assert await cluster.runtime.stop(attempt) is True


async def test_starting_twice_runs_once_and_stopping_is_confirmed(cluster: Cluster) -> None:
    order = await cluster.order()
    await asyncio.gather(*(cluster.runtime.start(order) for _ in range(3)))
    await cluster.becomes(order.attempt_id, RunnerState.RUNNING)
    await cluster.runtime.start(order)
    await until_async(lambda: _now(cluster.starts(order.attempt_id)), seconds=60, what="the runner's note")
    assert cluster.starts(order.attempt_id) == 1

    async def gone() -> bool:
        return await cluster.runtime.stop(order.attempt_id)

    await until_async(gone, seconds=60, what="the stop being confirmed")
    assert await cluster.state(order.attempt_id) is RunnerState.EXITED
    await cluster.runtime.start(order)
    assert await cluster.state(order.attempt_id) is RunnerState.EXITED, "what was started once is not started again"


async def test_a_runner_that_ends_by_itself_is_seen_to_have_exited(cluster: Cluster) -> None:
    order = await cluster.order()
    await cluster.runtime.start(order)
    await cluster.becomes(order.attempt_id, RunnerState.RUNNING)
    cluster.end_runner(order.attempt_id)
    await cluster.becomes(order.attempt_id, RunnerState.EXITED)
    (seen,) = await cluster.runtime.observe([order.attempt_id])
    assert seen.message


async def test_runners_side_by_side_are_observed_in_the_order_asked_and_stopped_one_by_one(cluster: Cluster) -> None:
    first, second = await cluster.order(), await cluster.order()
    for order in (first, second):
        await cluster.runtime.start(order)
        await cluster.becomes(order.attempt_id, RunnerState.RUNNING)
    stranger = AttemptId(new_id("att"))
    asked = [second.attempt_id, stranger, first.attempt_id]
    seen = await cluster.runtime.observe(asked)
    assert [one.attempt_id for one in seen] == asked
    assert [one.state for one in seen] == [RunnerState.RUNNING, RunnerState.UNKNOWN, RunnerState.RUNNING]
    assert await cluster.runtime.observe([]) == []

    async def gone() -> bool:
        return await cluster.runtime.stop(first.attempt_id)

    await until_async(gone, seconds=60, what="the stop being confirmed")
    assert await cluster.runtime.stop(first.attempt_id) is True, "a stop may be repeated at will"
    assert await cluster.state(second.attempt_id) is RunnerState.RUNNING


async def test_a_cluster_that_does_not_answer_says_so_whatever_it_is_asked(cluster: Cluster) -> None:
    order, silent = await cluster.order(), cluster.silent()
    with pytest.raises(Unavailable):
        await silent.start(order)
    with pytest.raises(Unavailable):
        await silent.observe([order.attempt_id])
    with pytest.raises(Unavailable):
        await silent.stop(order.attempt_id)
    with pytest.raises(Unavailable):
        await silent.nodes()
    if isinstance(silent, RayRuntime):
        await silent.close()


async def test_a_cluster_that_dies_and_comes_back_knows_nothing_and_takes_work(cluster: Cluster) -> None:
    order = await cluster.order()
    await cluster.runtime.start(order)
    await cluster.becomes(order.attempt_id, RunnerState.RUNNING)
    await cluster.lose_everything()
    assert await cluster.state(order.attempt_id) is RunnerState.UNKNOWN
    (node,) = await cluster.runtime.nodes()
    assert node.id != order.node_id
    again = await cluster.order()
    await cluster.runtime.start(again)
    await cluster.becomes(again.attempt_id, RunnerState.RUNNING)


@pytest.mark.ray
@pytest.mark.timeout(400, func_only=True)
async def test_ray_gets_the_entry_point_and_environment_of_the_runner(ray_head: RealRay, tmp_path: Path) -> None:
    async with real_cluster(ray_head, tmp_path) as cluster:
        order = await cluster.order()
        await cluster.runtime.start(order)
        await until_async(lambda: _now(cluster.starts(order.attempt_id)), seconds=60, what="the runner's note")
    note = (tmp_path / f"{order.attempt_id}.started").read_text()
    assert note == f"http://control {order.token} -m scheduler.node.runner\n"


@pytest.mark.ray
@pytest.mark.timeout(400, func_only=True)
async def test_ray_does_not_run_what_is_pinned_to_a_node_it_does_not_have(ray_head: RealRay, tmp_path: Path) -> None:
    async with real_cluster(ray_head, tmp_path) as cluster:
        order = replace(await cluster.order(), node_id=NodeId("0" * 56))
        await cluster.runtime.start(order)
        assert await cluster.state(order.attempt_id) in (RunnerState.PENDING, RunnerState.EXITED)
        assert cluster.starts(order.attempt_id) == 0
        await cluster.runtime.stop(order.attempt_id)


@pytest.mark.ray
@pytest.mark.timeout(400, func_only=True)
async def test_a_wrong_token_is_told_apart_from_an_answer(ray_head: RealRay) -> None:
    runtime = RayRuntime(RayCluster(ray_head.url, "f" * 64, "python", {}))
    with pytest.raises(Unavailable):
        await runtime.nodes()
    with pytest.raises(Unavailable):
        await runtime.stop(AttemptId("att_x"))
    await runtime.close()


def test_an_order_never_shows_its_token() -> None:
    order = StartOrder(AttemptId("att_1"), WorkloadId("job_1"), "ha_att_1_s3cret", NodeId("n"), {"GPU": 1.0}, 1)
    assert "s3cret" not in repr(order)
    assert "t0ken" not in repr(RayCluster("http://x", "t0ken", os.devnull, {}))


def _now(value: int) -> Awaitable[bool]:
    async def answer() -> bool:
        return value > 0

    return answer()
