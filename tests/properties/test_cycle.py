"""The cycle under Hypothesis: S1, S3, S4, and decisions that depend on facts alone."""

from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.units import GpuMilli
from quotas.vocabulary import CohortName, FirmId, PoolName, QoS
from scheduler.bookings import Horizon
from scheduler.cycle import Policy, decide
from scheduler.decision_checks import check_decisions
from scheduler.decisions import told
from scheduler.index import indexed
from scheduler.ordering import in_order
from scheduler.sharing import NO_QUOTA, Member, Quota, Seat
from scheduler.snapshot import (
    Change,
    Node,
    Placed,
    Queued,
    QuotaSet,
    Running,
    State,
    Waiting,
    apply,
    changes_between,
)
from scheduler.stretches import FOREVER
from scheduler.timeline import Timeline
from scheduler.vocabulary import Decision, NodeId, Preempt, Start, Wait, WaitReason, WorkloadId
from tests.support.deciding import decided
from tests.support.states import FIRMS, NOW, POLICIES, POOLS, facts, states, waits


@settings(max_examples=80, deadline=None)
@given(states(), POLICIES)
def test_gangs_are_whole_nodes_are_never_oversold_and_all_waiting_work_is_decided(state: State, policy: Policy) -> None:
    seen, decisions = decide(state, (), policy, now=NOW)
    check_decisions(seen, decisions, now=NOW)
    for decision in told(seen, decisions, now=NOW):
        if isinstance(decision, Wait):
            assert decision.reason.sentence
            assert decision.detail
            assert decision.eta is None or decision.eta > NOW or decision.estimated


@settings(max_examples=60, deadline=None)
@given(states(), POLICIES)
def test_what_starts_was_promised_or_lent_by_somebody(state: State, policy: Policy) -> None:
    """S4, counted without the code under test: above nominal only out of what firms of the same tree do not use."""
    decisions = decided(state, policy, now=NOW)
    starts = [d for d in decisions if isinstance(d, Start)]
    used, reserved = dict.fromkeys(state.quotas, 0), dict.fromkeys(state.quotas, 0)
    for work in state.running.values():
        used[work.firm_id, work.placement.pool] += work.need
    for start in starts:
        work = state.waiting[start.workload_id]
        key = work.firm_id, start.placement.pool
        used[key] += work.need
        reserved[key] += work.need if work.qos is QoS.RESERVED else 0
    in_city = {firm for firm in FIRMS if firm in state.tree}
    for start in starts:
        firm, pool = state.waiting[start.workload_id].firm_id, start.placement.pool
        quota = state.quotas[firm, pool]
        assert reserved[firm, pool] <= quota.nominal, "reserved work never borrows"
        assert quota.borrowing is None or used[firm, pool] <= quota.nominal + quota.borrowing
        tree = in_city if firm in in_city else {firm}
        of = {one: state.quotas[one, pool] for one in tree}
        lendable = sum(q.nominal if q.lending is None else q.lending for q in of.values())
        kept = {one: q.nominal - (q.nominal if q.lending is None else q.lending) for one, q in of.items()}
        taken = sum(max(0, used[one, pool] - kept[one]) for one in tree)
        assert taken <= lendable or used[firm, pool] <= kept[firm]


@settings(max_examples=60, deadline=None)
@given(states(), states(), POLICIES)
def test_deciding_after_changes_equals_deciding_from_scratch(before: State, after: State, policy: Policy) -> None:
    seen, _ = decide(before, (), policy, now=NOW)
    incremental = decide(seen, changes_between(before, after), policy, now=NOW)
    scratch = decide(State(), facts(after), policy, now=NOW)
    assert incremental[1] == scratch[1]


@settings(max_examples=60, deadline=None)
@given(states(), POLICIES, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(state: State, policy: Policy, random: Random) -> None:
    rows = facts(state)
    random.shuffle(rows)
    assert decided(apply(State(), rows), policy, now=NOW) == decided(state, policy, now=NOW)


@settings(max_examples=60, deadline=None)
@given(states(), POLICIES)
def test_the_state_given_is_not_changed(state: State, policy: Policy) -> None:
    copy = apply(State(), facts(state))
    decide(state, [QuotaSet(FIRMS[0], POOLS[0], NO_QUOTA)], policy, now=NOW)
    assert facts(state) == facts(copy)


@settings(max_examples=80, deadline=None)
@given(states())
def test_when_arrivals_stop_every_job_that_could_ever_run_does(state: State) -> None:
    """Replicas are left out: they may rightly hold their GPUs for ever."""
    waiting = {i: w for i, w in state.waiting.items() if w.seconds is not None and w.held is not WaitReason.NO_MONEY}
    running = {i: r for i, r in state.running.items() if r.ends_at is not None}
    state, now = replace(state, waiting=waiting, running=running), NOW
    last: list[Decision] = []
    for _ in range(200):
        last = decisions = decided(state, Policy(overrun_seconds=1), now=now)
        changes: list[Change] = []
        for start in (d for d in decisions if isinstance(d, Start)):
            work = state.waiting[start.workload_id]
            ends = now + timedelta(seconds=work.seconds or 0)
            changes.append(Placed(Running(work.id, work.firm_id, start.placement, ends, False, work.qos, now)))
        stopped = {d.workload_id for d in decisions if isinstance(d, Preempt)}
        changes += [Placed(replace(state.running[id], is_stopping=True, ends_at=now)) for id in stopped]
        state = apply(state, changes)
        moments = [r.ends_at for r in state.running.values() if r.ends_at]
        moments += [w.held_until for w in state.waiting.values() if w.held_until and w.held_until > now]
        if not moments:
            break
        now = max(now, min(moments))
        over = {i for i, r in state.running.items() if r.ends_at and r.ends_at <= now}
        state = replace(state, running={i: r for i, r in state.running.items() if i not in over})
    for decision in last:
        if isinstance(decision, Wait):
            hopeless = (WaitReason.NO_NODE, WaitReason.NO_QUOTA, WaitReason.NOT_LENT)
            assert decision.reason in hopeless, "with nothing running, only these hold"


@settings(max_examples=80, deadline=None)
@given(states(), POLICIES)
def test_work_is_stopped_once_for_a_named_rule_and_never_for_nothing(state: State, policy: Policy) -> None:
    decisions = decided(state, policy, now=NOW)
    preempts = [d for d in decisions if isinstance(d, Preempt)]
    assert len(preempts) == len({d.workload_id for d in preempts})
    waits = {d.workload_id: d for d in decisions if isinstance(d, Wait)}
    for preempt in preempts:
        victim = state.running[preempt.workload_id]
        assert not victim.is_stopping
        if preempt.why == "drain":
            assert any(state.nodes[n].is_draining for n in victim.placement.nodes)
            continue
        assert preempt.by is not None
        by, wait = state.waiting[preempt.by], waits[preempt.by]
        assert (preempt.why == "yield") == (by.firm_id == victim.firm_id)
        assert (wait.reason, wait.eta) == (WaitReason.RECLAIM, NOW + timedelta(seconds=max(1, policy.grace_seconds)))
        assert victim.qos is not QoS.RESERVED
        assert victim.since is None or NOW - victim.since >= timedelta(seconds=policy.minimum_seconds)
        assert state.quotas[by.firm_id, victim.placement.pool].nominal >= by.need


@settings(max_examples=60, deadline=None)
@given(states(), waits(), POLICIES)
def test_later_work_never_delays_earlier_work(state: State, extra: Waiting, policy: Policy) -> None:
    """Conservative backfill: whoever joins the line changes no decision about those before it."""
    new = replace(extra, id=WorkloadId("zz"), firm_id=FirmId("firm_new"), priority=-9)
    seen = apply(state, [Queued(new)])
    line = [turn.workload.id for turn in in_order(seen)]
    ahead = set(line[: line.index(new.id)])
    before = {d.workload_id: d for d in decided(state, policy, now=NOW) if d.workload_id in ahead}
    after = {d.workload_id: d for d in decided(seen, policy, now=NOW) if d.workload_id in ahead}
    assert before == after


@st.composite
def crowded(draw: st.DrawFn, *, gpus: int = 2) -> State:
    return crowd(draw(st.integers(0, 1 << 30)), gpus)


def crowd(seed: int, gpus: int = 2) -> State:
    """One full pool, three firms of one tree that borrow and lend, more work than room; no gang above `gpus`."""
    random = Random(seed)
    pool, sizes = POOLS[0], [random.randint(1, 4) for _ in range(3)]
    nodes = {NodeId(f"n{i}"): Node(NodeId(f"n{i}"), pool, GpuMilli(1000 * size)) for i, size in enumerate(sizes)}
    of: dict[tuple[FirmId, PoolName], Quota] = {}
    left = sum(sizes)
    for firm in FIRMS:
        nominal = random.randint(0, left)
        left -= nominal
        lending = random.choice([None, random.randint(0, nominal)])
        borrowing = random.choice([None, None, random.randint(0, 4)])
        milli = [None if n is None else GpuMilli(n * 1000) for n in (borrowing, lending)]
        of[firm, pool] = Quota(GpuMilli(nominal * 1000), *milli)
    waiting: dict[WorkloadId, Waiting] = {}
    for i in range(random.randint(3, 14)):
        id, need = WorkloadId(f"w{i:02}"), GpuMilli(1000 * random.randint(1, gpus))
        qos, priority = random.choice(list(QoS)), random.randint(-1, 1)
        waiting[id] = Waiting(id, random.choice(FIRMS), (pool,), 1, need, priority, NOW, None, qos=qos)
    tree: dict[Member, Seat] = {CohortName("city"): Seat(None), CohortName("hub"): Seat(CohortName("city"), 500)}
    tree |= {firm: Seat(CohortName(random.choice(["city", "hub"]))) for firm in FIRMS}
    first = dict(random.sample(sorted(waiting.items()), k=random.randint(1, len(waiting))))  # these came earlier
    state = settle(State(nodes, first, {}, of, tree), Policy(minimum_seconds=0))
    return replace(state, waiting={**state.waiting, **{i: w for i, w in waiting.items() if i not in first}})


def settle(state: State, policy: Policy, rounds: int = 100) -> State:
    """Nothing arrives or ends by itself: cycles follow each other, what is stopped is gone at once and waits again.

    Asserts that stopping comes to an end.
    """
    now = NOW
    for _ in range(rounds):
        decisions = decided(state, policy, now=now)
        changes: list[Change] = []
        for decision in decisions:
            if isinstance(decision, Start):
                work = state.waiting[decision.workload_id]
                ran = Running(work.id, work.firm_id, decision.placement, None, False, work.qos, now)
                changes.append(Placed(ran))
            if isinstance(decision, Preempt):
                gone = state.running[decision.workload_id]
                where, width = gone.placement, len(gone.placement.nodes)
                again = Waiting(gone.id, gone.firm_id, (where.pool,), width, where.gpu_milli, 0, NOW, None)
                changes.append(Queued(replace(again, qos=gone.qos)))
        if not changes:
            return state
        state, now = apply(state, changes), now + timedelta(seconds=60)
    raise AssertionError("work is stopped and started for ever")


@settings(max_examples=100, deadline=None)
@given(crowded())
def test_stopping_work_for_other_work_comes_to_an_end(state: State) -> None:
    settle(state, Policy(minimum_seconds=0, grace_seconds=0))


@pytest.mark.parametrize("seed", [1448, 2874, 4645, 4776])
def test_room_cleared_for_promised_work_is_not_lent_again(seed: int) -> None:
    """In these crowds it came after borrowers in the order, behind work of its own firm that did not fit."""
    settle(crowd(seed), Policy(minimum_seconds=0, grace_seconds=0))


@settings(max_examples=100, deadline=None)
@given(crowded(), POLICIES)
def test_in_a_crowd_rules_are_kept_and_nobody_promised_is_stopped(state: State, policy: Policy) -> None:
    decisions = decided(state, replace(policy, minimum_seconds=0), now=NOW + timedelta(hours=1))
    pool, stopped = POOLS[0], {d.workload_id for d in decisions if isinstance(d, Preempt)}
    for firm in FIRMS:
        works = [r for r in state.running.values() if r.firm_id == firm]
        before, after = sum(r.need for r in works), sum(r.need for r in works if r.id not in stopped)
        promised = [d.by for d in decisions if isinstance(d, Preempt) and d.why == "yield"]
        if before > after and not any(state.waiting[by].firm_id == firm for by in promised if by):
            assert before > state.quotas[firm, pool].nominal, "who is within its quota loses nothing to others"


@settings(max_examples=100, deadline=None)
@given(crowded(gpus=1))
def test_reclaim_gives_every_firm_its_nominal_quota_back(state: State) -> None:
    state = settle(state, Policy(minimum_seconds=0))
    for firm in FIRMS:
        used = sum(r.need for r in state.running.values() if r.firm_id == firm)
        if any(w.firm_id == firm for w in state.waiting.values()):
            assert used >= state.quotas[firm, POOLS[0]].nominal


@settings(max_examples=60, deadline=None)
@given(states(), st.lists(waits(), max_size=4))
def test_the_earliest_slot_is_what_looking_at_every_moment_finds(state: State, more: list[Waiting]) -> None:
    horizon = Horizon(NOW, NOW + timedelta(seconds=5))
    timeline = Timeline(indexed(state)[1], (), horizon)
    moments = {NOW, *(horizon.end_of(work) for work in state.running.values())} - {FOREVER}
    for work in (*state.waiting.values(), *more):
        slot = timeline.earliest(work)
        found = ((at, timeline.fits(work, at)) for at in sorted(moments))
        expected = next((at for at, placement in found if placement), None)
        assert (slot.start if slot else None) == expected
        if slot is not None:
            timeline.reserve(work, slot)
            moments |= {slot.start + timedelta(seconds=work.seconds)} if work.seconds else set()
