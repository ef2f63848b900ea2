"""What a firm asks for when it submits, and the hashes that stand for it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kit.errors import InvalidInput
from kit.units import MILLI_PER_GPU, GpuMilli, MicroYuan
from quotas.vocabulary import PoolName, QoS
from scheduler.vocabulary import AfterRule, Shape, Spread

ONE_GPU = GpuMilli(MILLI_PER_GPU)
_ROUNDING = 1e-6  # a decimal fraction as a float


@dataclass(frozen=True, slots=True)
class InputRef:
    """A file by name, from a complete upload or from an artifact of an earlier job."""

    name: str
    source_id: str  # up_… or art_…


@dataclass(frozen=True, slots=True)
class After:
    """Run after that job or array has ended in this way."""

    id: str  # job_… or arr_…
    rule: AfterRule = AfterRule.OK


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a firm asks for. Accelerators, CPU and memory per worker; the first pool is liked best.

    `ranks`, where given, has a number for each pool, rising: pools of one rank are liked equally.
    """

    name: str
    recipe: str
    params: dict[str, Any]
    inputs: tuple[InputRef, ...]
    pools: tuple[PoolName, ...]
    workers: int = 1
    gpu_milli: GpuMilli = ONE_GPU
    cpu_milli: int = 0
    memory_mib: int = 0
    spread: Spread = Spread.SAME_CENTRE
    topology: str | None = None
    qos: QoS = QoS.STANDARD
    priority: int = 0
    max_runtime_seconds: int | None = None
    cap_micro_yuan: MicroYuan | None = None
    deadline: datetime | None = None
    expected_seconds: int | None = None  # declared by the submitter
    retries: int = 0  # after errors of its own
    after: tuple["After", ...] = ()
    workers_min: int | None = None  # elastic: it may start with fewer than `workers`
    ranks: tuple[int, ...] = ()

    @property
    def need_milli(self) -> GpuMilli:
        """Thousandths of the whole gang, as quota and money count them."""
        shape = Shape.of(self.gpu_milli, self.cpu_milli, self.memory_mib)
        return GpuMilli(self.workers * shape.counted_milli)

    def shape_hash(self, project_id: str) -> bytes:
        """Hash of all that its price and time depend on; a quote holds for this."""
        shape = [project_id, self.recipe, self.params, [[i.name, i.source_id] for i in self.inputs], self.pools]
        gpus, share = divmod(self.gpu_milli, MILLI_PER_GPU)
        shape += [self.workers, self.gpu_milli / MILLI_PER_GPU if share else gpus]
        shape += [self.qos, self.priority, self.max_runtime_seconds]
        more = [self.cpu_milli, self.memory_mib, self.spread, self.topology]
        shape += [] if more == [0, 0, Spread.SAME_CENTRE, None] else more
        return content_hash([*shape, list(self.ranks)] if self.ranks else shape)

    def request_hash(self, project_id: str, quote_id: str | None) -> bytes:
        """Hash of the whole request; an idempotency key stands for this."""
        content = [self.shape_hash(project_id).hex(), self.name, self.cap_micro_yuan, quote_id]
        if self.deadline is not None:
            content.append(self.deadline.isoformat())
        after = [[edge.id, edge.rule] for edge in self.after]
        wishes = {"expected": self.expected_seconds, "retries": self.retries, "after": after, "least": self.workers_min}
        asked = {name: value for name, value in wishes.items() if value}
        return content_hash([*content, asked] if asked else content)


def require_to_come(spec: JobSpec, *, now: datetime) -> None:
    """Raises InvalidInput for a deadline that nothing can meet any more."""
    if spec.deadline is not None and spec.deadline <= now:
        raise InvalidInput(
            f"the deadline {spec.deadline:%Y-%m-%d %H:%M:%S %Z} is past: it is {now:%Y-%m-%d %H:%M:%S} UTC",
            code="deadline_past",
            hint="name a time to come, or leave the deadline out",
        )


def ranked(wished: Sequence[str | Sequence[str]]) -> tuple[tuple[PoolName, ...], tuple[int, ...]]:
    """Pools in order of preference, with their ranks; an inner list holds pools that are liked equally.

    Without such a list there are no ranks: the order says it all. A pool counts where it is named first.
    """
    tiers = [[one] if isinstance(one, str) else list(one) for one in wished]
    first: dict[PoolName, int] = {}
    for rank, tier in enumerate(tiers):
        for pool in tier:
            first.setdefault(PoolName(pool), rank)
    ranks = tuple(first.values())
    return tuple(first), ranks if len(set(ranks)) < len(ranks) else ()


def gpu_milli_of(gpus: float, *, cpus: float) -> GpuMilli:
    """Thousandths of what was asked for per worker.

    Raises InvalidInput for what no worker can have: 1.5 accelerators, less than a thousandth, or nothing at all.
    """
    milli = round(gpus * MILLI_PER_GPU)
    if abs(gpus * MILLI_PER_GPU - milli) > _ROUNDING:
        raise InvalidInput(f"{gpus:g} accelerators: shares are whole thousandths", code="bad_shape", hint="write 0.125")
    if milli > MILLI_PER_GPU and milli % MILLI_PER_GPU:
        raise InvalidInput(
            f"a worker has a share of one accelerator, below 1, or whole ones; not {gpus:g}",
            code="bad_shape",
            hint="ask for more workers with a share each, or for whole accelerators",
        )
    if milli == 0 and cpus == 0:
        raise InvalidInput(
            "a worker without accelerators says how many CPUs it needs", code="bad_shape", hint="set cpus"
        )
    return GpuMilli(milli)


def cpu_milli_of(cpus: float) -> int:
    """Thousandths of a CPU. Raises InvalidInput for finer parts."""
    milli = round(cpus * 1000)
    if abs(cpus * 1000 - milli) > _ROUNDING:
        raise InvalidInput(f"{cpus:g} CPUs: they are given in thousandths", code="bad_shape", hint="write 0.5")
    return milli


def content_hash(content: Any) -> bytes:
    """SHA-256 of what JSON can say, whatever the order of its names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True, default=str).encode()).digest()
