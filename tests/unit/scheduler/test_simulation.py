"""The simulator: the production cycle in virtual time, other quotas, numbers."""

from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from kit.errors import InvalidInput
from quotas.vocabulary import QoS
from scheduler.cycle import Policy
from scheduler.outcomes import course, jain, outcome, percentile
from scheduler.recording import RecordedNode, RecordedQuota, RecordedSeat, RecordedWork, Recording, changed, scenario_of
from scheduler.simulation import simulate
from scheduler.vocabulary import WorkloadId

NOW = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
POOL = "optics-valley/a100"


# fmt: off
def work(
    name: str, firm: str, *, at: int = 0, ran: int = 100, gpus: int = 1, expected: int | None = None,
    qos: QoS = QoS.STANDARD,
) -> RecordedWork:
    submitted = NOW + timedelta(seconds=at)
    return RecordedWork(
        id=name, firm_id=firm, pools=[POOL], gpu_milli=gpus * 1000, submitted_at=submitted,
        expected_seconds=expected or ran, ran_seconds=ran, qos=qos,
    )
# fmt: on


def recording(*works: RecordedWork, gpus: int = 4, **nominal: int) -> Recording:
    firms = nominal or {"red": gpus, "blue": gpus}
    return Recording(
        nodes=[RecordedNode(id="n1", pool=POOL, gpu_milli=gpus * 1000)],
        quotas=[RecordedQuota(firm_id=f"firm_{name}", pool=POOL, nominal_milli=n * 1000) for name, n in firms.items()],
        tree=[RecordedSeat(node="city", parent=None)]
        + [RecordedSeat(node=f"firm_{name}", parent="city") for name in firms],
        work=list(works),
    )


def test_work_runs_as_long_as_it_did_whatever_was_expected_and_waits_for_room() -> None:
    of = recording(work("a", "firm_red", gpus=4, ran=100, expected=10), work("b", "firm_red", gpus=4, ran=50))
    lives = simulate(scenario_of(of), Policy()).lives
    assert (lives[WorkloadId("a")].waited, lives[WorkloadId("b")].waited) == (0, 100)
    assert lives[WorkloadId("b")].slowdown == 3


def test_borrowed_work_that_is_stopped_loses_what_it_did_and_runs_again() -> None:
    of = recording(
        work("borrows", "firm_red", gpus=4, ran=500), work("owns", "firm_blue", at=200, ran=100), red=0, blue=4
    )
    run = simulate(scenario_of(of), Policy(grace_seconds=10))
    borrows, owns = run.lives[WorkloadId("borrows")], run.lives[WorkloadId("owns")]
    assert (borrows.evictions, borrows.lost_milli_seconds) == (1, 210 * 4000)
    assert (owns.waited, borrows.waited) == (10, 310)
    told = outcome(run)
    (of_red,) = (group for group in told.groups if group.firm_id == borrows.firm_id)
    assert of_red.lost_gpu_hours == told.lost_gpu_hours == pytest.approx(210 * 4 / 3600)
    assert of_red.gpu_hours == pytest.approx(500 * 4 / 3600), "what was lost is not what was used"
    used = 4000 * (210 + 500) + 1000 * 100  # the grace counts, nothing is free before
    assert told.use == pytest.approx(used / (4000 * told.seconds), rel=0.01)
    assert [moment.used_milli for moment in run.moments][-1] == 0


def test_borrowed_work_is_stopped_as_soon_as_it_is_old_enough_although_nothing_happens_then() -> None:
    of = recording(
        work("borrows", "firm_red", gpus=4, ran=500), work("owns", "firm_blue", at=5, ran=100), red=0, blue=4
    )
    lives = simulate(scenario_of(of), Policy(grace_seconds=10, minimum_seconds=60)).lives
    assert lives[WorkloadId("owns")].waited == 60 + 10 - 5


def test_what_can_never_run_is_refused_and_does_not_keep_the_simulation_going() -> None:
    moon = work("moon", "firm_red").model_copy(update={"pools": ["moon/a100"]})
    run = simulate(scenario_of(recording(moon, work("a", "firm_red"))), Policy())
    assert run.lives[WorkloadId("moon")].ended_at is None
    assert run.moments[-1].waiting == 0
    (group,) = outcome(run).groups
    assert (group.works, group.ended) == (2, 1)


def test_work_costs_what_its_class_costs_where_it_ran_for_as_long_as_it_counted() -> None:
    of = recording(
        work("a", "firm_red", gpus=2, ran=1800), work("b", "firm_red", ran=3600, qos=QoS.INTERRUPTIBLE)
    ).priced(20_000_000)
    scenario = scenario_of(of)
    costs = {group.qos: group.cost_micro_yuan for group in outcome(simulate(scenario, Policy())).groups}
    assert costs == {QoS.STANDARD: 20_000_000, QoS.INTERRUPTIBLE: 20_000_000}


def test_a_period_of_a_recording_has_what_was_submitted_in_it() -> None:
    of = recording(*(work(f"w{i}", "firm_red", at=i) for i in range(5)))
    since, until = NOW + timedelta(seconds=1), NOW + timedelta(seconds=3)
    assert [one.id for one in of.between(since, until).work] == ["w1", "w2"]
    assert of.between(None, None) == of


def test_another_quota_changes_who_waits() -> None:
    busy = [work(f"r{i}", "firm_red", ran=100) for i in range(8)] + [
        work(f"b{i}", "firm_blue", ran=100) for i in range(8)
    ]
    of = scenario_of(recording(*busy, red=1, blue=3))
    before = {g.firm_id[5:]: g.wait_p50 for g in outcome(simulate(of, Policy())).groups}
    other = changed(of, ["quota.red.a100=3", "quota.blue.a100=1"])
    after = {g.firm_id[5:]: g.wait_p50 for g in outcome(simulate(other, Policy())).groups}
    assert before["red"] > before["blue"] and after["red"] < after["blue"]


def test_the_same_scenario_gives_the_same_run_and_every_piece_of_work_ends() -> None:
    random = Random(4)
    works = [
        work(f"w{i:03}", f"firm_{random.choice(['red', 'blue'])}", at=random.randint(0, 900), gpus=random.randint(1, 4),
             ran=random.randint(1, 200), expected=random.randint(1, 300))
        for i in range(60)
    ]  # fmt: skip
    of = scenario_of(recording(*works, red=1, blue=3))
    one, two = simulate(of, Policy(minimum_seconds=5)), simulate(of, Policy(minimum_seconds=5))
    assert (one.lives, one.moments) == (two.lives, two.moments)
    assert all(life.ended_at for life in one.lives.values())
    assert 0.5 < outcome(one).use <= 1


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("quota.red.a100", "is no setting"),
        ("quota.red.a100=-1", "is no setting"),
        ("price.red.a100=1", "is no setting"),
        ("quota.green.a100=1", "'green' names 0 of firm_blue, firm_red"),
        ("quota.firm.a100=1", "'firm' names 2 of firm_blue, firm_red"),
        ("weight.nobody=2", "'nobody' names 0 of city, firm_blue, firm_red"),
    ],
)
def test_a_setting_that_names_nothing_says_what_there_is(setting: str, what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        changed(scenario_of(recording(work("a", "firm_red"))), [setting])


def test_borrowing_lending_and_weights_can_be_changed() -> None:
    of = changed(scenario_of(recording()), ["borrowing.red.a100=1.5", "lending.blue.a100=0", "weight.firm_red=2"])
    quotas = {key[0]: quota for key, quota in of.quotas.items()}
    assert [quota.borrowing for quota in quotas.values()] == [1500, None]
    assert [quota.lent for quota in quotas.values()] == [4000, 0]
    assert {str(member): seat.weight_milli for member, seat in of.tree.items()}["firm_red"] == 2000


def test_a_course_is_the_mean_of_each_span_and_loses_nothing() -> None:
    of = recording(work("a", "firm_red", gpus=3, ran=100), work("b", "firm_red", at=10, gpus=3, ran=50))
    run = simulate(scenario_of(of), Policy())
    told = course(run, spans=7)
    width = 150 / 7
    assert sum(told.in_use) * width == pytest.approx(3 * 150)
    assert sum(told.waiting) * width == pytest.approx(90)
    assert told.in_use == pytest.approx([3] * 7)
    assert told.hours[1] == pytest.approx(width / 3600)
    assert course(simulate(scenario_of(recording()), Policy())).hours == ()


@pytest.mark.parametrize(("percent", "value"), [(1, 1), (50, 2), (51, 3), (90, 4), (100, 4)])
def test_a_percentile_is_the_value_at_its_nearest_rank(percent: int, value: float) -> None:
    assert percentile([1, 2, 3, 4], percent) == value
    assert percentile([], percent) == 0


def test_jain_is_one_for_equals_and_one_of_n_when_one_has_all() -> None:
    assert (jain([3, 3, 3]), jain([5, 0, 0, 0]), jain([])) == (1, 0.25, 1)
