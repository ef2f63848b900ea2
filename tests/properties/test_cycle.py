"""The cycle under Hypothesis: S1, S3, S4's quota, and decisions that depend on facts alone."""

from datetime import UTC, datetime, timedelta
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from kit.units import GpuMilli
from quotas.vocabulary import FirmId, PoolName
from scheduler.cycle import Policy, check_decisions, decide
from scheduler.snapshot import Change, Node, Placed, Queued, QuotaSet, Running, State, Waiting, apply, changes_between
from scheduler.vocabulary import Decision, NodeId, Placement, Preempt, Start, Wait, WaitReason, WorkloadId

NOW = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
POOLS = [PoolName("a/x"), PoolName("b/x")]
FIRMS = [FirmId("firm_1"), FirmId("firm_2"), FirmId("firm_3")]
POLICIES = st.builds(Policy, reservations=st.integers(0, 6), overrun_seconds=st.integers(1, 60))


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
        placement = Placement(nodes[on].pool, (on,), need)
        running[WorkloadId(f"r{i}")] = Running(WorkloadId(f"r{i}"), draw(st.sampled_from(FIRMS)), placement, ends)
    waiting = {w.id: w for w in draw(st.lists(waits(), max_size=12, unique_by=lambda w: w.id))}
    quotas = st.integers(0, 10).map(lambda n: GpuMilli(n * 1000))
    nominal = {(firm, pool): draw(quotas) for firm in FIRMS for pool in POOLS}
    return State(nodes, waiting, running, nominal)


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
    )


def facts(state: State) -> list[Change]:
    return changes_between(State(), state)


@settings(max_examples=150, deadline=None)
@given(states(), POLICIES)
def test_gangs_are_whole_nodes_are_never_oversold_and_all_waiting_work_is_decided(state: State, policy: Policy) -> None:
    _, decisions = decide(state, (), policy, now=NOW)
    check_decisions(state, decisions)
    for decision in decisions:
        if isinstance(decision, Wait):
            assert decision.reason.sentence
            assert decision.detail
            assert decision.eta is None or decision.eta > NOW or decision.estimated


@settings(max_examples=100, deadline=None)
@given(states(), POLICIES)
def test_starts_stay_within_the_quota(state: State, policy: Policy) -> None:
    _, decisions = decide(state, (), policy, now=NOW)
    used = dict.fromkeys(state.nominal, 0)
    for work in state.running.values():
        used[work.firm_id, work.placement.pool] += work.need
    for start in (d for d in decisions if isinstance(d, Start)):
        work = state.waiting[start.workload_id]
        key = work.firm_id, start.placement.pool
        used[key] += work.need
        assert used[key] <= state.nominal[key]


@settings(max_examples=100, deadline=None)
@given(states(), states(), POLICIES)
def test_deciding_after_changes_equals_deciding_from_scratch(before: State, after: State, policy: Policy) -> None:
    seen, _ = decide(before, (), policy, now=NOW)
    incremental = decide(seen, changes_between(before, after), policy, now=NOW)
    scratch = decide(State(), facts(after), policy, now=NOW)
    assert incremental[1] == scratch[1]


@settings(max_examples=100, deadline=None)
@given(states(), POLICIES, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(state: State, policy: Policy, random: Random) -> None:
    rows = facts(state)
    random.shuffle(rows)
    assert decide(State(), rows, policy, now=NOW)[1] == decide(state, (), policy, now=NOW)[1]


@settings(max_examples=100, deadline=None)
@given(states(), POLICIES)
def test_the_state_given_is_not_changed(state: State, policy: Policy) -> None:
    copy = apply(State(), facts(state))
    decide(state, [QuotaSet(FIRMS[0], POOLS[0], GpuMilli(0))], policy, now=NOW)
    assert facts(state) == facts(copy)


@settings(max_examples=80, deadline=None)
@given(states())
def test_when_arrivals_stop_every_job_that_could_ever_run_does(state: State) -> None:
    """Replicas are left out: they may rightly hold their GPUs for ever."""
    waiting = {i: w for i, w in state.waiting.items() if w.seconds is not None and w.held is not WaitReason.NO_MONEY}
    running = {i: r for i, r in state.running.items() if r.ends_at is not None}
    state, now, started = State(state.nodes, waiting, running, state.nominal), NOW, set[WorkloadId]()
    last: list[Decision] = []
    for _ in range(200):
        state, decisions = decide(state, (), Policy(overrun_seconds=1), now=now)
        last = decisions
        changes: list[Change] = []
        for start in (d for d in decisions if isinstance(d, Start)):
            work = state.waiting[start.workload_id]
            ends = now + timedelta(seconds=work.seconds or 0)
            changes.append(Placed(Running(work.id, work.firm_id, start.placement, ends)))
            started.add(work.id)
        state = apply(state, changes)
        moments = [r.ends_at for r in state.running.values() if r.ends_at]
        moments += [w.held_until for w in state.waiting.values() if w.held_until and w.held_until > now]
        if not moments:
            break
        now = max(now, min(moments))
        over = {i for i, r in state.running.items() if r.ends_at and r.ends_at <= now}
        state = State(
            state.nodes, state.waiting, {i: r for i, r in state.running.items() if i not in over}, state.nominal
        )
    for decision in last:
        if isinstance(decision, Wait):
            assert decision.reason in (WaitReason.NO_NODE, WaitReason.NO_QUOTA), "with nothing running, only these hold"


@settings(max_examples=150, deadline=None)
@given(states(), POLICIES)
def test_preempting_is_for_draining_nodes_only_and_said_once(state: State, policy: Policy) -> None:
    _, decisions = decide(state, (), policy, now=NOW)
    preempted = [d.workload_id for d in decisions if isinstance(d, Preempt)]
    assert len(preempted) == len(set(preempted))
    for name in preempted:
        assert any(state.nodes[n].is_draining for n in state.running[name].placement.nodes)


@settings(max_examples=100, deadline=None)
@given(states(), waits(), POLICIES)
def test_later_work_never_delays_earlier_work(state: State, extra: Waiting, policy: Policy) -> None:
    """Conservative backfill: adding the last in line changes nobody else's decision."""
    last = Waiting(WorkloadId("zz"), extra.firm_id, extra.pools, extra.workers, extra.gpu_milli, -9, NOW, extra.seconds)
    before = decide(state, (), policy, now=NOW)[1]
    after = decide(state, [Queued(last)], policy, now=NOW)[1]
    assert [d for d in after if d.workload_id != "zz"] == before
