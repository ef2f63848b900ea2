"""An owner's hand on a job under way: pause, resume, cancel in every state, priority, a cap, tries and durations."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import httpx
import pytest

from quotas import api as quotas
from tests.support.scheduling import City, Firm, later


async def queued(city: City, firm: Firm) -> str:
    return await city.submit(firm)


async def placed(city: City, firm: Firm) -> str:
    job_id = await city.submit(firm)
    await city.step()
    return job_id


async def claimed(city: City, firm: Firm) -> str:
    job_id = await placed(city, firm)
    await (await city.runner(job_id)).plan()
    return job_id


async def running(city: City, firm: Firm, **changes: Any) -> str:
    job_id = await city.submit(firm, **changes)
    await city.step()
    await (await city.runner(job_id)).begin()
    return job_id


async def paused(city: City, firm: Firm) -> str:
    job_id = await queued(city, firm)
    assert (await act(firm, job_id, "pause")).json()["state"] == "paused"
    return job_id


async def backing_off(city: City, firm: Firm) -> str:
    job_id = await claimed(city, firm)
    await (await city.runner(job_id)).finished(ran_ms=0, outcome="failed", cause="setup_failed", message="no bwrap")
    assert (await city.view(firm, job_id))["wait_reason"] == "backoff"
    return job_id


async def pausing(city: City, firm: Firm) -> str:
    job_id = await running(city, firm)
    assert (await act(firm, job_id, "pause")).json()["pausing"] is True
    return job_id


async def succeeded(city: City, firm: Firm) -> str:
    job_id = await running(city, firm)
    await (await city.runner(job_id)).finished(ran_ms=0)
    return job_id


async def failed(city: City, firm: Firm) -> str:
    job_id = await running(city, firm)
    await (await city.runner(job_id)).finished(ran_ms=0, outcome="failed", cause="program_failed", message="3")
    return job_id


async def cancelled(city: City, firm: Firm) -> str:
    job_id = await queued(city, firm)
    await act(firm, job_id, "cancel")
    return job_id


async def act(firm: Firm, job_id: str, verb: str, **body: Any) -> httpx.Response:
    return await firm.http.post(f"/api/jobs/{job_id}/{verb}", json=body or None)


Reach = Callable[[City, Firm], Awaitable[str]]


@pytest.mark.parametrize("reach", [queued, placed, paused, backing_off])
async def test_a_job_nobody_has_claimed_is_cancelled_at_once(city: City, reach: Reach) -> None:
    firm = await city.firm()
    job_id = await reach(city, firm)
    assert (await act(firm, job_id, "cancel")).json()["state"] == "cancelled"
    assert await city.open_holds(job_id) == 0
    await city.step()
    assert (await city.view(firm, job_id))["state"] == "cancelled"


@pytest.mark.parametrize("reach", [claimed, running, pausing])
async def test_a_job_whose_runner_lives_is_cancelled_with_its_grace(city: City, reach: Reach) -> None:
    firm = await city.firm()
    job_id = await reach(city, firm)
    assert (await act(firm, job_id, "cancel")).json()["stopping"] is True
    runner = await city.runner(job_id)
    assert (await runner.heartbeat()).json()["command"] == "stop"
    await runner.finished(ran_ms=0, outcome="stopped", cause="stopped")
    assert (await city.view(firm, job_id))["state"] == "cancelled"
    assert await city.open_holds(job_id) == 0
    await city.assert_ledger()


@pytest.mark.parametrize("reach", [succeeded, failed, cancelled])
@pytest.mark.parametrize("verb", ["cancel", "pause", "resume"])
async def test_what_is_over_cannot_be_moved(city: City, reach: Reach, verb: str) -> None:
    firm = await city.firm()
    answer = await act(firm, await reach(city, firm), verb)
    assert (answer.status_code, answer.json()["code"]) == (409, "job_over")


@pytest.mark.parametrize("reach", [queued, placed, backing_off])
async def test_a_job_that_does_not_run_is_paused_at_once_and_queued_again_when_resumed(
    city: City, reach: Reach
) -> None:
    firm = await city.firm()
    job_id = await reach(city, firm)
    assert (await act(firm, job_id, "pause")).json()["state"] == "paused"
    assert await city.open_holds(job_id) == 0
    await city.pass_time(100)
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["wait_reason"]) == ("paused", None)
    why = (await firm.http.get(f"/api/jobs/{job_id}/why")).json()
    assert "paused by" in why["sentence"] and f"heliu job resume {job_id}" in why["sentence"]
    assert (await act(firm, job_id, "resume")).json()["state"] == "queued"
    await city.step()
    assert (await city.view(firm, job_id))["state"] == "starting"


async def test_a_running_job_keeps_a_checkpoint_is_charged_and_goes_on_from_there(city: City) -> None:
    firm = await city.firm()
    job_id = await pausing(city, firm)
    runner = await city.runner(job_id)
    assert (await runner.heartbeat()).json()["command"] == "stop"
    await city.pass_time(5)
    await runner.keep(b"so far", step=3, ran_ms=5_000)
    await runner.finished(ran_ms=5_000, outcome="stopped", cause="stopped")
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["cause"], seen["charged_micro_yuan"]) == ("paused", "paused", 5_000)
    await act(firm, job_id, "resume")
    await city.step()
    plan = (await (await city.runner(job_id)).plan()).json()
    assert (plan["checkpoint"]["step"], plan["max_runtime_seconds"]) == (3, 95)
    await city.assert_ledger()


async def test_a_resumed_job_is_expected_to_end_when_what_it_had_not_kept_is_done(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm, expected_seconds=60)
    runner = await city.runner(job_id)
    await runner.heartbeat(step=2, total=6)
    await act(firm, job_id, "pause")
    await city.pass_time(10)
    await runner.keep(b"so far", step=2, ran_ms=10_000)
    await runner.finished(ran_ms=10_000, outcome="stopped", cause="stopped")
    await city.pass_time(1000)
    assert (await city.view(firm, job_id))["expected_finish"] is None
    await act(firm, job_id, "resume")
    await city.step()
    await city.pass_time(5)
    await (await city.runner(job_id)).begin()
    await city.pass_time(20)
    seen = await city.view(firm, job_id)
    assert datetime.fromisoformat(seen["expected_finish"]) == later(city, 30), "50 s are left of it, 20 s of them ran"
    assert seen["started_at"] < seen["attempts"][-1]["started_at"]


async def test_a_node_lost_while_a_job_pauses_leaves_it_paused(city: City) -> None:
    firm = await city.firm()
    job_id = await pausing(city, firm)
    await city.pass_time(26)
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["cause"], seen["charged_micro_yuan"]) == ("paused", "lease_lost", 0)


async def test_a_job_resumed_before_it_has_paused_is_queued_again_when_it_has(city: City) -> None:
    firm = await city.firm()
    job_id = await pausing(city, firm)
    await act(firm, job_id, "resume")
    await (await city.runner(job_id)).finished(ran_ms=0, outcome="stopped", cause="stopped")
    assert (await city.view(firm, job_id))["state"] == "queued"
    again = await act(firm, job_id, "resume")
    assert (again.status_code, again.json()["code"]) == (409, "job_not_paused")


async def test_a_priority_moves_a_job_before_its_firms_own_and_another_firm_may_not_touch_it(city: City) -> None:
    firm, other = await city.firm(), await city.firm()
    await running(city, firm, gpus=2)
    first, second = await city.submit(firm, gpus=2), await city.submit(firm, gpus=2)
    assert (await act(firm, second, "priority", priority=5)).json()["priority"] == 5
    order = [entry["id"] for entry in (await firm.http.get("/api/queue")).json()["entries"]]
    assert order == [second, first]
    assert (await act(other, second, "priority", priority=9)).status_code == 404
    assert (await act(firm, second, "priority", priority=1001)).status_code == 422


async def test_a_job_is_stopped_when_it_has_spent_its_cap_and_never_charged_above_it(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm, cap_micro_yuan=30_500)
    runner = await city.runner(job_id)
    assert (await runner.plan()).json()["max_runtime_seconds"] == 30  # a thousand micro-yuan a second
    for _ in range(2):
        await city.pass_time(15)
        await runner.heartbeat()
    await city.pass_time(2)
    await runner.finished(ran_ms=31_900, outcome="failed", cause="time_limit")
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["cause"], seen["charged_micro_yuan"]) == ("failed", "spending_cap", 30_500)
    assert seen["message"] == "it has spent what its cap allows"
    await city.assert_ledger()


async def test_tries_after_errors_of_its_own_are_each_charged_and_end_with_their_number_or_the_cap(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm, retries=2)
    for expected in ("queued", "queued", "failed"):
        runner = await city.runner(job_id)
        await runner.plan()
        await runner.started()
        await city.pass_time(1)
        await runner.finished(ran_ms=1_000, outcome="failed", cause="program_failed", message="exit code 3")
        assert (await city.view(firm, job_id))["state"] == expected
        await city.pass_time(60)
    assert (await city.view(firm, job_id))["charged_micro_yuan"] == 3_000

    capped = await running(city, firm, retries=5, cap_micro_yuan=1_000)
    await city.pass_time(1)
    await (await city.runner(capped)).finished(ran_ms=1_000, outcome="failed", cause="program_failed", message="3")
    seen = await city.view(firm, capped)
    assert (seen["state"], seen["cause"], seen["charged_micro_yuan"]) == ("failed", "spending_cap", 1_000)


async def test_a_duration_is_declared_or_learned_from_jobs_of_that_name(city: City) -> None:
    firm = await city.firm()
    declared = await city.view(firm, await city.submit(firm, expected_seconds=7))
    assert (declared["expected_seconds"], declared["duration_basis"]) == (7, "declared by its submitter")
    await act(firm, declared["id"], "cancel")
    for _ in range(3):
        job_id = await running(city, firm, name="night shots")
        await city.pass_time(10)
        await (await city.runner(job_id)).finished(ran_ms=10_000)
    learned = await city.view(firm, await city.submit(firm, name="night shots"))
    assert learned["expected_seconds"] == 10
    assert "learned from the last 3 jobs named night shots" in learned["duration_basis"]
    other = await city.view(firm, await city.submit(firm, name="day shots"))
    assert other["expected_seconds"] == 50 and "the estimate of script" in other["duration_basis"]
    async with city.db.transaction() as tx:
        assert await quotas.check_ledger(tx) == []


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("pause", None),
        ("resume", None),
        ("cancel", None),
        ("priority", {"priority": 1}),
        ("after", {"after": [{"id": "x"}]}),
    ],
)
async def test_another_firms_job_is_like_one_that_is_not_there(
    city: City, verb: str, body: dict[str, Any] | None
) -> None:
    firm, other = await city.firm(), await city.firm()
    job_id = await queued(city, firm)
    answers = [await other.http.post(f"/api/jobs/{name}/{verb}", json=body) for name in (job_id, job_id[:-4] + "0000")]
    told = [(answer.status_code, answer.text.replace(job_id[:-4] + "0000", job_id)) for answer in answers]
    assert told[0] == told[1] and told[0][0] == 404
    assert (await city.view(firm, job_id))["state"] == "queued"
