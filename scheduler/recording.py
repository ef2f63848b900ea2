"""The platform's own past as a scenario: what was submitted, on which nodes, under which quotas; and other quotas."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from kit.errors import InvalidInput
from kit.units import GpuMilli
from quotas.vocabulary import CohortName, FirmId, PoolName, QoS
from scheduler.sharing import NO_QUOTA, Member, Quota, QuotaKey, Seat
from scheduler.simulation import Arrival, Scenario
from scheduler.snapshot import Node, Waiting
from scheduler.vocabulary import NodeId, Spread, WorkloadId

T = TypeVar("T")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecordedNode(_Part):
    id: str
    pool: str
    gpu_milli: int = Field(ge=0)
    cpu_milli: int = Field(default=0, ge=0)
    memory_mib: int = Field(default=0, ge=0)
    topology: dict[str, str] = {}


class RecordedQuota(_Part):
    firm_id: str
    pool: str
    nominal_milli: int = Field(ge=0)
    borrowing_milli: int | None = None
    lending_milli: int | None = None


class RecordedSeat(_Part):
    node: str
    parent: str | None
    weight_milli: int = Field(default=1000, ge=1)


class RecordedWork(_Part):
    id: str
    firm_id: str
    pools: list[str] = Field(min_length=1)
    workers: int = Field(default=1, ge=1)
    gpu_milli: int = Field(ge=0)
    cpu_milli: int = Field(default=0, ge=0)
    memory_mib: int = Field(default=0, ge=0)
    spread: Spread = Spread.SAME_CENTRE
    topology: str | None = None
    qos: QoS = QoS.STANDARD
    priority: int = 0
    deadline: AwareDatetime | None = None
    submitted_at: AwareDatetime
    expected_seconds: int | None = Field(ge=1)
    ran_seconds: int = Field(ge=0, description="how long it ran in the end, without what was lost")


class RecordedRate(_Part):
    pool: str
    qos: QoS
    micro_yuan_per_gpu_hour: int = Field(ge=0)


class Recording(_Part):
    nodes: list[RecordedNode]
    quotas: list[RecordedQuota]
    tree: list[RecordedSeat]
    work: list[RecordedWork]
    rates: list[RecordedRate] = []
    half_life_seconds: int = Field(default=86_400, ge=1)

    def between(self, since: datetime | None, until: datetime | None) -> "Recording":
        """What was submitted in `[since, until)` of it; None: without a bound."""
        inside = [
            work
            for work in self.work
            if (since is None or since <= work.submitted_at) and (until is None or work.submitted_at < until)
        ]
        return self.model_copy(update={"work": inside})

    def priced(self, micro_yuan_per_gpu_hour: int) -> "Recording":
        """At one price everywhere, whatever was recorded."""
        pools = sorted({node.pool for node in self.nodes})
        rates = [
            RecordedRate(pool=p, qos=q, micro_yuan_per_gpu_hour=micro_yuan_per_gpu_hour) for p in pools for q in QoS
        ]
        return self.model_copy(update={"rates": rates})


def scenario_of(recording: Recording) -> Scenario:
    """The recording as a simulation takes it."""
    return Scenario(
        nodes={NodeId(node.id): _node(node) for node in recording.nodes},
        quotas={
            (FirmId(q.firm_id), PoolName(q.pool)): Quota(
                GpuMilli(q.nominal_milli), _milli(q.borrowing_milli), _milli(q.lending_milli)
            )
            for q in recording.quotas
        },
        tree={_member(seat.node): Seat(_cohort(seat.parent), seat.weight_milli) for seat in recording.tree},
        arrivals=[_arrival(work) for work in recording.work],
        half_life_seconds=recording.half_life_seconds,
        rates={(PoolName(rate.pool), rate.qos): rate.micro_yuan_per_gpu_hour for rate in recording.rates},
    )


def changed(scenario: Scenario, settings: Iterable[str]) -> Scenario:
    """The scenario under other rules, each `quota|borrowing|lending.FIRM.POOL=ACCELERATORS` or `weight.MEMBER=NUMBER`.

    A firm and a pool may be named by any part that only one has. Raises InvalidInput saying what it knows.
    """
    quotas, tree = dict(scenario.quotas), dict(scenario.tree)
    for setting in settings:
        name, equals, value = setting.partition("=")
        what, _, whom = name.partition(".")
        try:
            milli = round(float(value) * 1000)
        except ValueError:
            milli = -1
        if not equals or milli < 0 or what not in ("quota", "borrowing", "lending", "weight"):
            raise InvalidInput(
                f"{setting!r} is no setting", hint="write quota.FIRM.POOL=8, borrowing.…, lending.… or weight.FIRM=2"
            )
        if what == "weight":
            member = _only(whom, {str(member): member for member in tree})
            tree[member] = replace(tree[member], weight_milli=max(1, milli))
            continue
        key = _key(whom, scenario)
        quotas[key] = _quota(quotas.get(key, NO_QUOTA), what, GpuMilli(milli))
    return replace(scenario, quotas=quotas, tree=tree)


def _quota(before: Quota, what: str, milli: GpuMilli) -> Quota:
    match what:
        case "quota":
            return replace(before, nominal=milli)
        case "borrowing":
            return replace(before, borrowing=milli)
        case _:
            return replace(before, lending=milli)


def _key(text: str, scenario: Scenario) -> QuotaKey:
    firm, _, pool = text.partition(".")
    firms = {key[0] for key in scenario.quotas} | {arrival.workload.firm_id for arrival in scenario.arrivals}
    pools = {node.pool for node in scenario.nodes.values()}
    return _only(firm, {str(one): one for one in firms}), _only(pool, {str(one): one for one in pools})


def _only(part: str, known: Mapping[str, T]) -> T:
    found = [part] if part in known else [name for name in sorted(known) if part and part in name]
    if len(found) != 1:
        raise InvalidInput(
            f"{part!r} names {len(found)} of {', '.join(sorted(known)) or 'nothing'}; it has to name one"
        )
    return known[found[0]]


def _node(node: RecordedNode) -> Node:
    return Node(
        NodeId(node.id),
        PoolName(node.pool),
        GpuMilli(node.gpu_milli),
        cpu_milli=node.cpu_milli,
        memory_mib=node.memory_mib,
        topology=node.topology,
    )


def _arrival(work: RecordedWork) -> Arrival:
    waiting = Waiting(
        WorkloadId(work.id),
        FirmId(work.firm_id),
        tuple(PoolName(pool) for pool in work.pools),
        work.workers,
        GpuMilli(work.gpu_milli),
        work.priority,
        work.submitted_at,
        work.expected_seconds,
        qos=work.qos,
        deadline=work.deadline,
        cpu_milli=work.cpu_milli,
        memory_mib=work.memory_mib,
        spread=work.spread,
        topology=work.topology,
    )
    return Arrival(waiting, work.ran_seconds)


def _member(name: str) -> Member:
    return FirmId(name) if name.startswith("firm_") else CohortName(name)


def _cohort(name: str | None) -> CohortName | None:
    return None if name is None else CohortName(name)


def _milli(amount: int | None) -> GpuMilli | None:
    return None if amount is None else GpuMilli(amount)
