"""Random states of a city, in which what runs fits its nodes, as the database guarantees."""

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from kit.units import GpuMilli
from quotas.vocabulary import CohortName, FirmId, PoolName, QoS
from scheduler.cycle import Policy
from scheduler.sharing import Member, Quota, Seat
from scheduler.snapshot import (
    Change,
    Node,
    Running,
    State,
    Waiting,
    changes_between,
)
from scheduler.vocabulary import NodeId, Placement, WaitReason, WorkloadId
from tests.support.seats import seated

NOW = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
POOLS = [PoolName("a/x"), PoolName("b/x")]
FIRMS = [FirmId("firm_1"), FirmId("firm_2"), FirmId("firm_3")]
MILLI = st.integers(0, 6).map(lambda n: GpuMilli(n * 1000))
POLICIES = st.builds(
    Policy,
    reservations=st.integers(0, 6),
    overrun_seconds=st.integers(1, 60),
    grace_seconds=st.integers(0, 20),
    minimum_seconds=st.sampled_from([0, 60]),
)


@st.composite
def quotas(draw: st.DrawFn) -> Quota:
    nominal = draw(MILLI)
    lending = draw(st.none() | MILLI)
    return Quota(nominal, draw(st.none() | MILLI), None if lending is None else min(lending, nominal))


@st.composite
def trees(draw: st.DrawFn) -> dict[Member, Seat]:
    """A cohort, one below it, and firms anywhere or nowhere."""
    city, district = CohortName("city"), CohortName("district")
    tree: dict[Member, Seat] = {city: Seat(None), district: Seat(city, draw(st.integers(1, 3000)))}
    for firm in FIRMS:
        parent = draw(st.sampled_from([None, city, district]))
        if parent:
            tree[firm] = Seat(parent, draw(st.integers(1, 3000)))
    return tree


@st.composite
def states(draw: st.DrawFn) -> State:
    """A state in which what runs fits its nodes, as the database guarantees."""
    nodes: dict[NodeId, Node] = {}
    for i in range(draw(st.integers(0, 5))):
        is_open = draw(st.booleans()) or draw(st.booleans())
        draining = not is_open and draw(st.booleans())
        size = GpuMilli(1000 * draw(st.integers(1, 4)))
        nodes[NodeId(f"n{i}")] = Node(NodeId(f"n{i}"), draw(st.sampled_from(POOLS)), size, is_open, draining)
    running: dict[WorkloadId, Running] = {}
    left = {node.id: int(node.gpu_milli) for node in nodes.values()}
    for i in range(draw(st.integers(0, 6)) if nodes else 0):
        on, need = draw(st.sampled_from(sorted(nodes))), GpuMilli(1000 * draw(st.integers(1, 2)))
        if left[on] < need:
            continue
        left[on] -= need
        seconds = draw(st.none() | st.integers(-100, 1000))
        ends = None if seconds is None else NOW + timedelta(seconds=seconds)
        placement, id = Placement(nodes[on].pool, (on,), need), WorkloadId(f"r{i}")
        since = draw(st.none() | st.integers(0, 200).map(lambda s: NOW - timedelta(seconds=s)))
        qos, stops = draw(st.sampled_from(QoS)), draw(st.integers(0, 5)) == 0
        running[id] = Running(id, draw(st.sampled_from(FIRMS)), placement, ends, stops, qos, since)
    waiting = {w.id: w for w in draw(st.lists(waits(), max_size=12, unique_by=lambda w: w.id))}
    of = {(firm, pool): draw(quotas()) for firm in FIRMS for pool in POOLS}
    lately = {(firm, pool): draw(st.integers(0, 9000)) for firm in FIRMS for pool in POOLS}
    placed = {work.id: work for work in seated(nodes.values(), running.values())}
    return State(nodes, waiting, placed, of, draw(trees()), lately)


@st.composite
def waits(draw: st.DrawFn) -> Waiting:
    held = draw(st.sampled_from([None, None, None, WaitReason.BACKOFF, WaitReason.NO_MONEY]))
    return Waiting(
        id=WorkloadId(f"w{draw(st.integers(0, 99)):02}"),
        firm_id=draw(st.sampled_from(FIRMS)),
        pools=tuple(draw(st.lists(st.sampled_from([*POOLS, PoolName("moon/x")]), min_size=1, max_size=2, unique=True))),
        workers=draw(st.integers(1, 3)),
        gpu_milli=GpuMilli(1000 * draw(st.integers(1, 3))),
        priority=draw(st.integers(-1, 1)),
        submitted_at=NOW - timedelta(seconds=draw(st.integers(0, 5))),
        seconds=draw(st.none() | st.integers(1, 500)),
        held=held,
        held_until=NOW + timedelta(seconds=draw(st.integers(-5, 50))) if held else None,
        qos=draw(st.sampled_from(QoS)),
        deadline=draw(st.none() | st.integers(0, 900).map(lambda s: NOW + timedelta(seconds=s))),
    )


def facts(state: State) -> list[Change]:
    return changes_between(State(), state)
