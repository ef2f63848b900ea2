"""Several workers of one attempt: a Ray placement group pinned to the plan's nodes, one actor per bundle.

Every actor holds its own lease, renewed by the runner's polls: when the runner dies or falls silent, each kernel
kills its actor, and each program dies with its actor. A poll hands over what was left of the runner's lease when the
poll before was answered, counted from the actor's own clock in that answer: however late it comes, it gives no more.
"""

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, TaskCancelledError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from scheduler.node.checkpoints import KEEP_SECONDS_MAX
from scheduler.node.client import ControlPlane
from scheduler.node.environment import CACHE_BYTES
from scheduler.node.folder import WorkFolder, sweep
from scheduler.node.lease import Lease, boottime, exit_now
from scheduler.node.process import Exited, Notice
from scheduler.node.protocol import Cause, Inventory, Plan
from scheduler.node.staging import NotReady, Stopped
from scheduler.node.worker import Worker

READY_SECONDS_MAX = 120
"""How long the placement group may take; the scheduler placed it where there is room."""
_POLL_SECONDS = 0.5
_STAGE_SECONDS_MAX = 3600
_CLOSE_SECONDS_MAX, _LEAVE_SECONDS_MAX = 30, 2
_SAID_MAX = 20_000
_EXIT_LOST = -9
_RAYS_OWN = ("CPU", "GPU", "memory")
_NEXT_TO_NOTHING = {"CPU": 0.001}
"""A bundle has to take something, also of workers that share accelerators and claim no CPU."""
_PASSED_ON = ("PYTHONPATH", "HELIU_HOME", "HELIU_MODELS_DIR", CACHE_BYTES)


class Member:
    """One worker, as an actor on its node. Its methods run in the actor's main thread, one at a time."""

    def __init__(self, plan: dict[str, Any], rank: int, access: dict[str, str]) -> None:
        self._plan = Plan.model_validate(plan)
        self._rank = rank
        self._control = ControlPlane(access["url"], self._plan.attempt_id, access["token"])
        self._notices: deque[Notice | str] = deque(maxlen=_SAID_MAX)
        self._lease: Lease | None = None
        root = Path(access["home"]) / "work"
        sweep(root)
        self._folder = WorkFolder(root, f"{self._plan.attempt_id}-{rank}")
        self._folder.__enter__()
        self._worker = Worker(
            self._control, self._plan, self._folder, self._notices.append, say=self._notices.append, rank=rank
        )

    def stage(self) -> tuple[str, str] | None:
        """Bring the inputs; (cause, message) when that is impossible."""
        try:
            self._worker.stage(threading.Event())
        except NotReady as problem:
            return problem.cause.value, problem.message
        return None

    def inventory(self) -> dict[str, Any]:
        """What this node has now."""
        return self._worker.inventories()[0].model_dump()

    def clock(self) -> float:
        """This node's boottime: what a lease on it is counted from."""
        return boottime()

    def address(self) -> tuple[str, int]:
        """Where the other workers may meet this one: its node's address and a port that is free now."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), int(free.getsockname()[1])

    def launch(self, extra: dict[str, str], asked_at: float, lease_seconds: float) -> None:
        """Start the program under a lease of its own, from `asked_at` on this node's clock."""
        self._lease = Lease(self._lease_over)
        self._lease.renew(asked_at, lease_seconds)
        self._worker.launch(extra)

    def poll(self, asked_at: float, lease_seconds: float) -> tuple[float, list[Notice | str]]:
        """Renew the lease; this node's clock, and what has happened since the last poll."""
        assert self._lease is not None, "a worker is polled once it is launched"
        self._lease.renew(asked_at, lease_seconds)
        return boottime(), [self._notices.popleft() for _ in range(len(self._notices))]

    def terminate(self) -> None:
        self._worker.terminate()

    def kill(self) -> None:
        self._worker.kill()

    def over_limit(self) -> bool:
        return self._worker.over_limit()

    def upload(self) -> tuple[str, str] | None:
        """Send the outputs up; (cause, message) when that is impossible."""
        try:
            self._worker.upload(threading.Event())
        except NotReady as problem:
            return problem.cause.value, problem.message
        return None

    def keep_checkpoint(self) -> None:
        self._worker.keep_checkpoint()

    def close(self) -> None:
        """Remove the folder; the lease guards nothing any more."""
        if self._lease is not None:
            self._lease.close()
        self._folder.__exit__(None, None, None)

    def _lease_over(self) -> None:
        self._worker.kill()
        exit_now(1)


class Gang:
    """The team of an attempt with several workers."""

    def __init__(
        self,
        plan: Plan,
        access: dict[str, str],
        lease: Lease,
        notice: Callable[[Notice], None],
        *,
        say: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._access = access
        self._lease = lease
        self._notice = notice
        self._say = say
        self._members: list[Any] = []
        self._group: Any = None
        self._exited: set[int] = set()
        self._granted: list[tuple[float, float]] = []  # per rank: its clock then, the seconds left then

    def start(self, stop: threading.Event) -> None:
        """Place, stage and launch all workers, or none. Raises NotReady or Stopped."""
        if len(self._plan.nodes) != self._plan.workers:
            raise NotReady(Cause.SETUP_FAILED, "the plan does not name a node for each worker")
        try:
            self._place(stop)
            self._all_or_nothing([member.stage.remote() for member in self._members], stop)
            host, port = ray.get(self._members[0].address.remote())
            self._granted = [(ray.get(member.clock.remote()), self._lease.remaining()) for member in self._members]
            meetings = [self._meeting(rank, host, port) for rank in range(self._plan.workers)]
            calls = zip(self._members, meetings, self._granted, strict=True)
            ray.get([member.launch.remote(meeting, *granted) for member, meeting, granted in calls])
        except RayError as error:
            raise NotReady(Cause.SETUP_FAILED, f"the gang could not start: {type(error).__name__}") from None
        threading.Thread(target=self._poll, name="gang-poll", daemon=True).start()

    def terminate(self) -> None:
        """Ask every program to end."""
        for member in self._members:
            member.terminate.remote()

    def kill(self) -> None:
        """End every program now."""
        for member in self._members:
            member.kill.remote()

    def over_limit(self) -> bool:
        """Whether any worker has filled its folder."""
        try:
            return any(ray.get([member.over_limit.remote() for member in self._members], timeout=30))
        except RayError:
            return False

    def upload(self, stop: threading.Event) -> None:
        """Send all outputs up. Raises NotReady or Stopped."""
        try:
            self._all_or_nothing([member.upload.remote() for member in self._members], stop)
        except RayError as error:
            raise NotReady(Cause.UPLOAD_FAILED, f"a worker was lost: {type(error).__name__}") from None

    def keep_checkpoint(self) -> None:
        """Let worker 0 send its last checkpoint up: it speaks for all."""
        try:
            ray.get(self._members[0].keep_checkpoint.remote(), timeout=KEEP_SECONDS_MAX + 5)
        except RayError:
            pass  # what was kept before stays

    def inventories(self) -> list[Inventory]:
        """What its nodes have now; nothing of one that does not say."""
        try:
            told = ray.get([member.inventory.remote() for member in self._members], timeout=30)
        except RayError:
            return []
        return [Inventory.model_validate(one) for one in told]

    def close(self) -> None:
        """Give the nodes back; workers that were not launched are not waited for, whatever they are still bringing."""
        patience = _CLOSE_SECONDS_MAX if self._granted else _LEAVE_SECONDS_MAX
        try:
            ray.get([member.close.remote() for member in self._members], timeout=patience)
        except RayError:
            pass  # its folder is swept by the next runner there
        for member in self._members:
            ray.kill(member)
        if self._group is not None:
            remove_placement_group(self._group)

    def _place(self, stop: threading.Event) -> None:
        if not ray.is_initialized():
            ours = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place, which tells nobody
            ray.init(address="auto", log_to_driver=False, configure_logging=False)
            signal.signal(signal.SIGTERM, ours)
        resources = self._plan.worker_resources or _NEXT_TO_NOTHING
        self._group = placement_group(
            [dict(resources) for _ in self._plan.nodes],
            strategy="PACK",
            bundle_label_selector=[{"ray.io/node-id": node} for node in self._plan.nodes],
        )
        self._wait([self._group.ready()], stop, READY_SECONDS_MAX)
        actor = ray.remote(Member)
        self._members = [
            actor.options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                memory=resources.get("memory"),
                resources={name: amount for name, amount in resources.items() if name not in _RAYS_OWN},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._group, placement_group_bundle_index=rank
                ),
                max_restarts=0,
                runtime_env={"env_vars": {name: os.environ[name] for name in _PASSED_ON if name in os.environ}},
            ).remote(self._plan.model_dump(mode="json"), rank, self._access)
            for rank in range(self._plan.workers)
        ]

    def _meeting(self, rank: int, host: str, port: int) -> dict[str, str]:
        return {
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(self._plan.workers),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
        }

    def _all_or_nothing(self, calls: list[Any], stop: threading.Event) -> None:
        """Wait for every worker's answer; the first problem is raised."""
        for problem in self._wait(calls, stop, _STAGE_SECONDS_MAX):
            if problem is not None:
                raise NotReady(Cause(problem[0]), problem[1])

    def _wait(self, calls: list[Any], stop: threading.Event, seconds_max: float) -> list[Any]:
        give_up_at = time.monotonic() + seconds_max
        while True:
            try:
                return ray.get(calls, timeout=_POLL_SECONDS)
            except GetTimeoutError:
                if stop.is_set():
                    raise Stopped from None
                if time.monotonic() >= give_up_at:
                    raise NotReady(Cause.SETUP_FAILED, "the workers were not ready in time") from None

    def _poll(self) -> None:
        """Fetch notices and renew leases until every worker is over."""
        while len(self._exited) < len(self._members):
            alive = [rank for rank in range(len(self._members)) if rank not in self._exited]
            calls = {rank: self._members[rank].poll.remote(*self._granted[rank]) for rank in alive}
            for rank, call in calls.items():
                try:
                    clock, notices = ray.get(call, timeout=30)
                    self._granted[rank] = clock, self._lease.remaining()
                    self._pass_on(rank, notices)
                except (RayActorError, TaskCancelledError):
                    self._pass_on(rank, [Exited(rank, _EXIT_LOST, boottime())])
                except RayError:
                    continue  # slow, not gone: its own lease decides
            time.sleep(_POLL_SECONDS)

    def _pass_on(self, rank: int, notices: list[Notice | str]) -> None:
        for notice in notices:
            if isinstance(notice, str):
                self._say(f"[{rank}] {notice}")
            elif rank not in self._exited:
                if isinstance(notice, Exited):
                    self._exited.add(rank)
                self._notice(notice)
