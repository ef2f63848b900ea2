"""Staff read the platform's past: as a recording that can be simulated, and as decisions in order."""

from datetime import timedelta

import httpx

from quotas.vocabulary import QoS
from scheduler.cycle import Policy
from scheduler.recording import Recording, scenario_of
from scheduler.simulation import simulate
from tests.support.scheduling import City


async def test_a_recording_of_the_platform_can_be_simulated(city: City, staff: httpx.AsyncClient) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    runner = await city.runner(job_id)
    await runner.begin()
    await city.pass_time(12)
    await runner.finished(ran_ms=12_000)
    waiting = await city.submit(firm, gpus=2)
    city.clock.advance(timedelta(seconds=1))  # a recording ends before now

    answer = await staff.get("/api/recording")
    assert answer.status_code == 200, answer.text
    recorded = Recording.model_validate_json(answer.content)
    assert [(work.id, work.ran_seconds) for work in recorded.work] == [(job_id, 12), (waiting, 50)]
    assert [(node.id, node.gpu_milli) for node in recorded.nodes] == [("n1", 2000)]
    assert {(rate.pool, rate.qos): rate.micro_yuan_per_gpu_hour for rate in recorded.rates} == {
        (recorded.nodes[0].pool, QoS.STANDARD): 3_600_000,
        (recorded.nodes[0].pool, QoS.INTERRUPTIBLE): 1_800_000,
    }
    lives = simulate(scenario_of(recorded), Policy()).lives
    assert all(life.ended_at for life in lives.values())


async def test_a_recording_has_all_that_an_interrupted_job_ran_and_nothing_of_what_never_ran(
    city: City, staff: httpx.AsyncClient
) -> None:
    firm = await city.firm()
    moved, never = await city.submit(firm, gpus=2), await city.submit(firm)
    await city.step()
    runner = await city.runner(moved)
    await runner.begin()
    await city.pass_time(10)
    await runner.keep(b"so far", step=4, ran_ms=8_000)
    await firm.http.post(f"/api/jobs/{never}/cancel")
    await firm.http.post(f"/api/jobs/{moved}/pause")
    await runner.finished(ran_ms=10_000, outcome="stopped", cause="stopped")
    await firm.http.post(f"/api/jobs/{moved}/resume")
    await city.step()
    runner = await city.runner(moved)
    await runner.begin()
    await city.pass_time(5)
    await runner.finished(ran_ms=5_000)
    city.clock.advance(timedelta(seconds=1))

    recorded = Recording.model_validate_json((await staff.get("/api/recording")).content)
    assert [(work.id, work.ran_seconds) for work in recorded.work] == [(moved, 13)]


async def test_decisions_are_shown_in_order_and_continue_at_a_cursor(city: City, staff: httpx.AsyncClient) -> None:
    firm = await city.firm(quota=1)
    first, second = await city.submit(firm), await city.submit(firm)
    await city.step()
    page = (await staff.get("/api/decisions", params={"limit": 1})).json()
    assert [(d["topic"], d["subject"]) for d in page["decisions"]] == [("job.starting", first)]
    rest = (await staff.get("/api/decisions", params={"after": page["cursor"]})).json()["decisions"]
    assert [(d["topic"], d["subject"], d["body"]["reason"]) for d in rest] == [("job.waiting", second, "no_quota")]


async def test_a_firm_sees_neither(city: City) -> None:
    firm = await city.firm()
    for path in ("/api/recording", "/api/decisions"):
        assert (await firm.http.get(path)).status_code == 403
    assert (await city.client().get("/api/recording")).status_code == 401


async def test_a_period_that_is_none_is_refused(staff: httpx.AsyncClient) -> None:
    answer = await staff.get("/api/recording", params={"since": "2026-11-03T00:00Z", "until": "2026-11-02T00:00Z"})
    assert answer.status_code == 422
    assert "up to 92 days" in answer.json()["detail"]
