"""Elastic gangs over HTTP: what they got is held, charged and told, and the next attempt may have more."""

from tests.support.scheduling import City, job


async def test_a_gang_starts_with_what_fits_is_charged_for_that_and_grows_when_it_starts_again(city: City) -> None:
    firm = await city.firm(quota=8)
    city.add_node("n2", 1)
    await city.step()
    job_id = await city.submit(firm, workers=4, workers_min=2)
    await city.step()
    runner = await city.runner(job_id)
    plan = (await runner.plan()).json()
    assert (plan["workers"], len(plan["nodes"])) == (3, 3)
    assert len(city.runtime.orders) == 1 and next(iter(city.runtime.orders.values())).workers == 3
    await runner.started()
    await city.pass_time(10)
    await runner.keep(b"so far", step=1, ran_ms=10_000)
    assert (await city.view(firm, job_id))["checkpoint"]["gpu_ms"] == 30_000
    await runner.finished(ran_ms=10_000, outcome="stopped", cause="killed")
    seen = await city.view(firm, job_id)
    assert (seen["charged_micro_yuan"], seen["workers"], seen["workers_min"]) == (30_000, 4, 2)
    city.add_node("n3", 4)
    await city.pass_time(3)
    again = await city.runner(job_id)
    assert (await again.plan()).json()["workers"] == 4
    await again.started()
    await city.pass_time(5)
    await again.keep(b"further", step=2, ran_ms=5_000)
    assert (await city.view(firm, job_id))["checkpoint"]["gpu_ms"] == 50_000
    await again.finished(ran_ms=5_000)
    assert (await city.view(firm, job_id))["charged_micro_yuan"] == 50_000
    assert await city.open_holds(job_id) == 0
    await city.assert_ledger()


async def test_a_least_above_the_most_is_refused_and_an_equal_one_is_a_fixed_size(city: City) -> None:
    firm = await city.firm()
    answer = await firm.http.post("/api/jobs", json=job(workers=1, workers_min=2))
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_workers")
    assert (await city.view(firm, await city.submit(firm, workers=2, workers_min=2)))["workers_min"] is None


async def test_a_gang_that_cannot_be_paid_waits_with_all_its_workers(city: City) -> None:
    firm = await city.firm(paid_in=300_000)
    first = await city.submit(firm, workers=1)
    second = await city.submit(firm, workers=2, workers_min=1)
    await city.step()
    assert (await city.view(firm, first))["state"] == "starting"
    assert (await city.view(firm, second))["workers"] in (1, 2)
    await firm.http.post(f"/api/jobs/{second}/pause")
    assert (await city.view(firm, second))["workers"] == 2
