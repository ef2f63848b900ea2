"""What dies, is lost, repeated or late: nothing runs twice, nothing hangs, what the platform broke is free."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import text

from kit.auth import SYSTEM
from kit.units import GpuMilli
from quotas import api as quotas
from scheduler import effects, loop
from scheduler.adapters.simulated_runtime import SimulatedRuntime
from scheduler.admission import Admitted, Stale
from scheduler.batch_admission import admit_many
from scheduler.cycle import decide
from scheduler.facts import load_state
from scheduler.fleet import cordon
from scheduler.sharing import Sharing
from scheduler.vocabulary import NodeId, Start, WorkloadId
from tests.support.money import POOL
from tests.support.scheduling import KEY, City, Firm


async def start_of(city: City, job_id: str) -> Start:
    """The start that the present facts lead to."""
    async with city.db.transaction() as tx:
        state = await load_state(tx, city.terms, now=city.clock.now())
    _, decisions = decide(state, (), city.terms.policy, now=city.clock.now())
    return next(d for d in decisions.made if isinstance(d, Start) and d.workload_id == job_id)


async def admit_as_leader(city: City, start: Start) -> Admitted | object:
    """One leader records one start."""
    async with city.db.transaction() as tx:
        state = await load_state(tx, city.terms, now=city.clock.now())
        sharing = Sharing(state.quotas, state.tree)
        (outcome,) = await admit_many(tx, [start], sharing, key=KEY, terms=city.terms, now=city.clock.now())
    return outcome


async def running(city: City, firm: Firm) -> str:
    """A job whose runner has started."""
    job_id = await city.submit(firm)
    await city.step()
    await (await city.runner(job_id)).begin()
    return job_id


async def test_a_runner_that_was_told_to_give_way_and_falls_silent_was_evicted_and_has_not_failed(city: City) -> None:
    """A gang that was still starting may be gone before it could say so: that is no failure, and needs no pause."""
    firm = await city.firm()
    job_id = await running(city, firm)
    async with city.db.transaction() as tx:
        await cordon(tx, "n1", "new fans", drain=True, now=city.clock.now())
    await city.step()
    assert (await (await city.runner(job_id)).heartbeat()).json()["command"] == "stop"
    await city.pass_time(26)
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["cause"], seen["charged_micro_yuan"]) == ("queued", "evicted", 0)
    assert "(rule: drain)" in seen["message"], "that it fell silent is no news to its owner"
    row = await city.workload(job_id)
    assert (row.failures, row.held_until) == (0, None)


async def test_a_silent_runner_is_given_up_only_after_lease_end_and_margin_and_costs_nothing(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    old = await city.runner(job_id)
    await city.pass_time(24)  # lease 20, margin 5
    assert (await city.view(firm, job_id))["state"] == "running"
    await city.pass_time(2)
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["wait_reason"], seen["cause"]) == ("queued", "backoff", "lease_lost")
    for late in (await old.heartbeat(), await old.started(), await old.put("x", b"x"), await old.finished(ran_ms=1)):
        assert (late.status_code, late.json()["code"]) == (409, "fence_lost")
    await city.pass_time(3)
    new = await city.runner(job_id)
    assert new.attempt_id != old.attempt_id
    await new.begin()
    await city.pass_time(5)
    await new.finished(ran_ms=5_000)
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["charged_micro_yuan"], len(seen["attempts"])) == ("succeeded", 5_000, 2)
    assert await city.open_holds(job_id) == 0
    await city.assert_ledger()


async def test_heartbeats_keep_a_lease_alive(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    runner = await city.runner(job_id)
    for _ in range(5):
        await city.pass_time(15)
        assert (await runner.heartbeat()).status_code == 200
    assert (await city.view(firm, job_id))["state"] == "running"


async def test_the_first_runner_of_an_attempt_wins(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    runner = await city.runner(job_id)
    assert (await runner.plan()).status_code == 200
    assert (await runner.plan()).status_code == 200  # its answer may have been lost
    second = await runner.again("runner-2").plan()
    assert (second.status_code, second.json()["code"]) == (409, "fence_lost")


async def test_a_token_of_another_attempt_opens_nothing(city: City) -> None:
    firm = await city.firm()
    one, two = await running(city, firm), await running(city, firm)
    mixed = replace(await city.runner(one), token=(await city.runner(two)).token)
    assert (await mixed.heartbeat()).status_code == 404
    forged = replace(await city.runner(one), token="ha_" + (await city.attempt(one)).id + "_" + "0" * 64)
    assert (await forged.heartbeat()).status_code == 401


async def test_finishing_twice_charges_once(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    runner = await city.runner(job_id)
    await city.pass_time(4)
    for _ in range(2):
        assert (await runner.finished(ran_ms=3_000)).status_code == 200
    assert (await city.view(firm, job_id))["charged_micro_yuan"] == 3_000
    await city.assert_ledger()


async def test_a_runner_cannot_bill_more_time_than_has_passed_or_was_held(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    runner = await city.runner(job_id)
    await city.pass_time(2)
    await runner.finished(ran_ms=10**12)
    assert (await city.view(firm, job_id))["charged_micro_yuan"] == 2_000


async def test_a_program_error_is_charged_and_not_tried_again_a_setup_failure_is_free_and_is(city: City) -> None:
    firm = await city.firm()
    broken = await running(city, firm)
    await city.pass_time(1)
    failure = {"outcome": "failed", "cause": "program_failed", "message": "exit code 3"}
    await (await city.runner(broken)).finished(ran_ms=1_000, **failure)
    seen = await city.view(firm, broken)
    assert (seen["state"], seen["message"], seen["charged_micro_yuan"]) == ("failed", "exit code 3", 1_000)

    unlucky = await city.submit(firm)
    for attempt in range(3):
        await city.pass_time(60)
        runner = await city.runner(unlucky)
        await runner.plan()
        assert (await city.workload(unlucky)).failures == attempt
        await runner.finished(ran_ms=0, outcome="failed", cause="setup_failed", message="no bwrap")
    seen = await city.view(firm, unlucky)
    assert (seen["state"], seen["charged_micro_yuan"], len(seen["attempts"])) == ("failed", 0, 3)
    assert await city.open_holds(unlucky) == 0


async def test_outputs_of_an_attempt_that_was_lost_are_never_seen(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    await (await city.runner(job_id)).put("half.bin", b"half")
    await city.pass_time(26)
    assert (await city.view(firm, job_id))["artifacts"] == []
    assert (await firm.http.get("/api/artifacts")).json() == []
    await loop.tidy(city.controller)
    async with city.db.transaction() as tx:
        assert (await tx.execute(text("SELECT count(*) FROM scheduler.artifact"))).scalar_one() == 0


async def test_a_start_that_was_answered_and_lost_is_repeated(city: City) -> None:
    firm = await city.firm()
    city.runtime.lose_starts = 1
    job_id = await city.submit(firm)
    await city.step()
    attempt = await city.attempt(job_id)
    assert attempt.id not in city.runtime.runners
    await city.pass_time(6)
    assert attempt.id in city.runtime.runners
    assert (await city.attempt(job_id)).id == attempt.id


async def test_a_controller_killed_between_commit_and_act_is_followed_by_one_that_acts(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await loop.cycle(city.controller)  # it dies here: recorded, nothing started
    assert city.runtime.runners == {}
    await city.step()
    assert list(city.runtime.runners) == [(await city.attempt(job_id)).id]


async def test_a_controller_killed_after_the_start_but_before_noting_it_starts_nothing_twice(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    async with city.db.transaction() as tx:
        await tx.execute(text("UPDATE scheduler.attempt SET ordered_at = NULL"))
    order = city.runtime.orders[(await city.runner(job_id)).attempt_id]
    await city.step()
    assert city.runtime.orders == {order.attempt_id: order}


async def test_two_leaders_with_the_same_facts_start_a_job_once(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    start = await start_of(city, job_id)
    outcomes = await asyncio.gather(admit_as_leader(city, start), admit_as_leader(city, start))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Admitted", "Stale"]
    assert await city.open_holds(job_id) == 1


async def test_two_leaders_cannot_oversell_a_node_or_a_quota(city: City) -> None:
    firms = [await city.firm(quota=2), await city.firm(quota=2)]
    jobs = [await city.submit(firm, gpus=2) for firm in firms]
    starts = [replace(await start_of(city, jobs[0]), workload_id=WorkloadId(job_id)) for job_id in jobs]
    outcomes = [await admit_as_leader(city, start) for start in starts]
    assert isinstance(outcomes[0], Admitted) and isinstance(outcomes[1], Stale)
    assert await city.open_holds(jobs[1]) == 0

    city.add_node("n2", 8)
    await loop.look_at_nodes(city.controller)
    third = await city.submit(firms[0])
    placement = replace(starts[0].placement, nodes=(NodeId("n2"),), gpu_milli=GpuMilli(1000))
    assert isinstance(await admit_as_leader(city, Start(WorkloadId(third), placement)), Stale), (
        "the quota of 2 is used up"
    )


async def test_a_start_that_nobody_claims_is_given_up_and_the_job_runs_elsewhere(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    first = await city.attempt(job_id)
    await city.pass_time(181)
    assert (await city.view(firm, job_id))["cause"] == "node_lost"
    await city.pass_time(5)
    assert (await city.attempt(job_id)).id != first.id
    assert city.runtime.runners[(await city.runner(job_id)).attempt_id].state == "running"


async def test_a_runner_that_exits_before_it_claims_is_a_setup_failure(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    city.runtime.exit((await city.runner(job_id)).attempt_id, "No module named scheduler")
    await city.step()
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["cause"]) == ("queued", "setup")
    assert "No module named scheduler" in seen["message"]


async def test_an_attempt_ended_by_its_node_is_run_again_and_is_neither_the_owners_stop_nor_done(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    await city.pass_time(3)
    await (await city.runner(job_id)).finished(ran_ms=3_000, outcome="stopped", cause="killed")
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["cause"], seen["charged_micro_yuan"]) == ("queued", "platform", 0)
    assert seen["artifacts"] == []
    await city.pass_time(5)
    again = await city.runner(job_id)
    await again.plan()
    await again.started()
    await city.pass_time(3)
    await again.finished(ran_ms=3_000)
    seen = await city.view(firm, job_id)
    assert (seen["state"], [attempt["cause"] for attempt in seen["attempts"]]) == ("succeeded", ["platform", "done"])
    assert seen["charged_micro_yuan"] == 3_000
    await city.assert_ledger()


async def test_a_cluster_that_comes_back_with_nothing_makes_its_work_queue_again(city: City) -> None:
    firm = await city.firm()
    unclaimed, claimed = await city.submit(firm), await running(city, firm)
    runner = await city.runner(claimed)
    city.runtime.forget()
    city.add_node("n9", 2, address="n1")  # the same machine under a new id
    await city.step()
    assert (await city.view(firm, unclaimed))["cause"] == "node_lost"
    assert (await runner.heartbeat()).json()["command"] == "stop"  # it may be alive, its node is not
    await city.pass_time(3)
    assert (await city.view(firm, unclaimed))["state"] == "queued", "nothing runs where the old runner may still be"
    await city.pass_time(23)
    assert (await city.view(firm, claimed))["cause"] == "lease_lost"
    await city.pass_time(10)
    for job_id in (unclaimed, claimed):
        assert (await city.view(firm, job_id))["state"] == "starting"
        assert (await city.view(firm, job_id))["attempts"][-1]["nodes"] == ["n9"]
    assert await city.open_holds(claimed) == 1


async def test_a_cluster_that_does_not_answer_stops_nothing_that_runs(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    waiting = await city.submit(firm, gpus=2)
    city.runtime.answers = False
    runner = await city.runner(job_id)
    for _ in range(3):
        await city.pass_time(10)
        assert (await runner.heartbeat()).json()["command"] == "run"
    assert (await city.view(firm, waiting))["wait_reason"] == "no_node"
    await runner.finished(ran_ms=30_000)
    assert (await city.view(firm, job_id))["state"] == "succeeded"
    city.runtime.answers = True
    await city.pass_time(1)
    assert (await city.view(firm, waiting))["state"] == "starting"


async def test_draining_a_node_moves_its_work_at_no_charge(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    async with city.db.transaction() as tx:
        await cordon(tx, "n1", "new fans", drain=True, now=city.clock.now())
    city.add_node("n2")
    await city.pass_time(3)
    runner = await city.runner(job_id)
    assert (await runner.heartbeat()).json()["command"] == "stop"
    await runner.finished(ran_ms=3_000, outcome="stopped", cause="stopped")
    await city.step()
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["charged_micro_yuan"]) == ("starting", 0)
    assert seen["attempts"][-1]["nodes"] == ["n2"]


async def test_work_over_its_maximum_is_stopped_even_if_its_runner_forgets(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    runner = await city.runner(job_id)
    commands: list[str] = []
    for _ in range(8):
        await city.pass_time(15)
        commands.append((await runner.heartbeat()).json()["command"])
    assert commands == ["run"] * 7 + ["stop"]
    await runner.finished(ran_ms=119_000, outcome="stopped", cause="stopped")
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["cause"], seen["charged_micro_yuan"]) == ("failed", "time_limit", 100_000)
    await city.assert_ledger()


async def test_a_lowered_quota_lets_work_run_on_and_holds_what_waits(city: City) -> None:
    firm = await city.firm(quota=2)
    job_id = await running(city, firm)
    async with city.db.transaction() as tx:
        await quotas.set_quota(tx, firm.id, POOL, 0, by=SYSTEM, now=city.clock.now())
    city.clock.advance(timedelta(seconds=1))
    await city.step()
    assert (await city.view(firm, job_id))["state"] == "running"


async def test_the_simulated_cluster_is_cleared_of_what_is_over(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    runner = await city.runner(job_id)
    await runner.finished(ran_ms=0)
    await city.pass_time(11)
    await city.step()
    assert city.runtime.runners[runner.attempt_id].state == "exited"
    async with city.db.transaction() as tx:
        assert (await tx.execute(text("SELECT count(*) FROM scheduler.attempt WHERE cleared_at IS NULL"))).scalar() == 0


async def test_stopping_what_the_cluster_never_knew_is_done_at_once(city: City) -> None:
    """A second, empty cluster in place of the first: stopping what it never knew is done at once."""
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    await firm.http.post(f"/api/jobs/{job_id}/cancel")
    await effects.drive(city.db, SimulatedRuntime(), city.terms, city.clock, KEY)
    async with city.db.transaction() as tx:
        assert (await tx.execute(text("SELECT count(*) FROM scheduler.attempt WHERE cleared_at IS NULL"))).scalar() == 0
