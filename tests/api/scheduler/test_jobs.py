"""A job's life over HTTP, with a real database and ledger and a simulated cluster."""

from datetime import timedelta

from tests.support.money import POOL, yuan
from tests.support.scheduling import City, job


async def test_a_job_runs_from_submission_to_settlement(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    assert (await city.view(firm, job_id))["state"] == "queued"

    await city.step()
    assert (await city.view(firm, job_id))["state"] == "starting"
    assert await city.open_holds(job_id) == 1
    runner = await city.runner(job_id)
    assert runner.attempt_id in city.runtime.orders

    plan = (await runner.plan()).json()
    assert (plan["program"], plan["sandboxed"]) == ("scheduler.node.recipes.script.program", True)
    assert plan["worker_resources"] == {"slot": 1.0}
    await runner.begin()
    assert (await city.view(firm, job_id))["state"] == "running"
    city.clock.advance(timedelta(seconds=10))
    beat = (await runner.heartbeat(step=5, log=["hello", "loss 1.0"])).json()
    assert beat == {"lease_seconds": 20, "command": "run", "grace_seconds": 10}
    stored = await runner.put("result.txt", b"42")
    assert stored.status_code == 200, stored.text
    assert (await runner.finished(ran_ms=9_000)).status_code == 200

    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["cause"], seen["charged_micro_yuan"]) == ("succeeded", "done", 9_000)
    assert [artifact["name"] for artifact in seen["artifacts"]] == ["result.txt"]
    assert await city.open_holds(job_id) == 0
    await city.assert_ledger()


async def test_the_same_key_twice_makes_one_job_and_other_content_is_refused(city: City) -> None:
    firm = await city.firm()
    first = await firm.http.post("/api/jobs", json=job(), headers={"Idempotency-Key": "k"})
    again = await firm.http.post("/api/jobs", json=job(), headers={"Idempotency-Key": "k"})
    other = await firm.http.post("/api/jobs", json=job(name="other"), headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert len((await firm.http.get("/api/jobs")).json()) == 1


async def test_a_waiting_job_names_its_rule_and_a_time(city: City) -> None:
    firm = await city.firm(quota=1)
    first, second = await city.submit(firm), await city.submit(firm)
    await city.step()
    told = (await firm.http.get(f"/api/jobs/{second}/why")).json()
    assert (told["reason"], told["position"], told["waiting"]) == ("no_quota", 1, 1)
    assert "the quota in optics-valley/cpu-slot is 1, 1 in use" in told["sentence"]
    assert told["expected_start"] is not None
    runner = await city.runner(first)
    await runner.begin()
    await runner.finished(ran_ms=0)
    await city.step()
    assert (await city.view(firm, second))["state"] == "starting"


async def test_a_quote_tells_price_and_time_and_caps_the_charge(city: City) -> None:
    firm = await city.firm()
    body = job()
    quote = (await firm.http.post("/api/quotes", json=body)).json()
    assert (quote["min_micro_yuan"], quote["max_micro_yuan"]) == (1_000, 100_000)
    assert (quote["affordable"], quote["wait_detail"]) == (True, "it starts at once")
    job_id = await city.submit(firm, quote_id=quote["id"])
    assert (await city.view(firm, job_id))["cap_micro_yuan"] == 100_000

    other = await firm.http.post("/api/jobs", json=job(quote_id=quote["id"], gpus=2))
    assert (other.status_code, other.json()["code"]) == (409, "quote_mismatch")
    await city.pass_time(901)
    late = await firm.http.post("/api/jobs", json=job(quote_id=quote["id"]))
    assert (late.status_code, late.json()["code"]) == (409, "quote_expired")
    foreign = await (await city.firm()).http.post("/api/jobs", json=job(quote_id=quote["id"]))
    assert (foreign.status_code, foreign.json()["code"]) == (404, "quote_not_found")


async def test_a_quote_behind_other_work_starts_when_that_ends(city: City) -> None:
    firm = await city.firm()
    await city.submit(firm, gpus=2)
    await city.step()
    quote = (await firm.http.post("/api/quotes", json=job())).json()
    assert quote["wait_reason"] == "no_quota"
    assert quote["expected_start"] is not None and quote["expected_finish"] > quote["expected_start"]


async def test_without_money_a_job_is_refused_but_money_held_for_others_makes_it_wait(city: City) -> None:
    poor = await city.firm(paid_in=yuan(0.05))
    refused = await poor.http.post("/api/jobs", json=job())
    assert (refused.status_code, refused.json()["code"]) == (402, "no_money")

    tight = await city.firm(paid_in=yuan(0.15))
    first = await city.submit(tight)
    await city.step()
    second = await city.submit(tight)
    await city.step()
    told = (await tight.http.get(f"/api/jobs/{second}/why")).json()
    assert told["reason"] == "no_money"
    runner = await city.runner(first)
    await runner.begin()
    await runner.finished(ran_ms=0)
    await city.pass_time(16)
    assert (await city.view(tight, second))["state"] == "starting"


async def test_what_even_all_the_firms_money_would_not_pay_is_refused_beside_other_work(city: City) -> None:
    firm = await city.firm(paid_in=yuan(0.15))
    await city.submit(firm)
    await city.step()
    dear = job(max_runtime_seconds=200, params={"command": ["true"], "runtime_seconds_max": 200})
    refused = await firm.http.post("/api/jobs", json=dear)
    assert (refused.status_code, refused.json()["code"]) == (402, "no_money")
    assert refused.json()["detail"] == (
        "This job may cost up to ¥0.20, ¥0.20 of it in cash; the firm has ¥0.05, and ¥0.10 is on hold for other work."
    )
    capped = await city.submit(firm, **dear, cap_micro_yuan=yuan(0.05))
    await city.step()
    assert (await city.view(firm, capped))["state"] == "starting", "it can never cost more than its cap"


async def test_cancel_ends_a_waiting_job_at_once_and_a_finished_one_is_refused(city: City) -> None:
    firm = await city.firm(quota=1)
    await city.submit(firm)
    await city.step()
    waiting = await city.submit(firm)
    answer = await firm.http.post(f"/api/jobs/{waiting}/cancel")
    assert answer.json()["state"] == "cancelled"
    again = await firm.http.post(f"/api/jobs/{waiting}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "job_over")


async def test_cancel_before_a_runner_came_is_free_and_the_runner_that_comes_late_may_not_run(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    runner = await city.runner(job_id)
    assert (await firm.http.post(f"/api/jobs/{job_id}/cancel")).json()["state"] == "cancelled"
    late = await runner.plan()
    assert (late.status_code, late.json()["code"]) == (409, "fence_lost")
    assert await city.open_holds(job_id) == 0
    await city.step(2)
    assert city.runtime.runners[runner.attempt_id].state == "exited"


async def test_cancel_of_a_running_job_asks_its_runner_and_charges_what_ran(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    runner = await city.runner(job_id)
    await runner.begin()
    answer = await firm.http.post(f"/api/jobs/{job_id}/cancel")
    assert (answer.json()["state"], answer.json()["stopping"]) == ("running", True)
    await city.pass_time(5)
    assert (await runner.heartbeat()).json()["command"] == "stop"
    await runner.finished(ran_ms=4_000, outcome="stopped", cause="stopped")
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["charged_micro_yuan"]) == ("cancelled", 4_000)
    await city.assert_ledger()


async def test_another_firms_things_look_like_things_that_are_not_there(city: City) -> None:
    mine, theirs = await city.firm(), await city.firm()
    job_id = await city.submit(mine)
    for method, path in [
        ("GET", ""), ("GET", "/why"), ("GET", "/logs"), ("GET", "/events"), ("GET", "/artifacts"), ("POST", "/cancel"),
    ]:  # fmt: skip
        foreign = await theirs.http.request(method, f"/api/jobs/{job_id}{path}")
        absent = await theirs.http.request(method, f"/api/jobs/job_nope{path}")
        assert (foreign.status_code, foreign.json()["code"]) == (404, "job_not_found"), path
        assert foreign.json()["detail"].replace(job_id, "job_nope") == absent.json()["detail"]
    in_their_project = await theirs.http.post("/api/jobs", json=job(project_id=mine.project_id))
    assert (in_their_project.status_code, in_their_project.json()["code"]) == (404, "project_not_found")
    for_their_firm = await theirs.http.post("/api/jobs", json=job(firm_id=mine.id))
    assert for_their_firm.status_code == 404
    assert (await theirs.http.get("/api/queue")).json()["entries"] == []


async def test_a_job_too_large_for_every_node_is_refused(city: City) -> None:
    firm = await city.firm(quota=8)
    answer = await firm.http.post("/api/jobs", json=job(gpus=3))
    assert answer.json()["code"] == "too_large"


async def test_logs_and_events_are_followed_by_cursor(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    runner = await city.runner(job_id)
    await runner.begin()
    await runner.heartbeat(log=["one", "two", f"secret {runner.token}"])
    await runner.heartbeat(log=["two again", "three", "four"], seq=2)
    page = (await firm.http.get(f"/api/jobs/{job_id}/logs", params={"limit": 2})).json()
    assert [line["text"] for line in page["lines"]] == ["one", "two"]
    rest = (await firm.http.get(f"/api/jobs/{job_id}/logs", params={"after": page["cursor"]})).json()
    assert rest["lines"][1]["text"] == "four" and runner.token not in rest["lines"][0]["text"]
    assert rest["over"] is False
    await runner.finished(ran_ms=0)
    waited = await firm.http.get(f"/api/jobs/{job_id}/logs", params={"after": rest["cursor"], "wait_seconds": 30})
    assert (waited.json()["lines"], waited.json()["over"]) == ([], True)
    topics = [e["topic"] for e in (await firm.http.get(f"/api/jobs/{job_id}/events")).json()["events"]]
    assert topics == ["job.submitted", "job.starting", "job.running", "job.succeeded", "workload.ended"]
    assert (await firm.http.get(f"/api/jobs/{job_id}/logs", params={"after": "x"})).status_code == 422


async def test_pools_show_the_callers_own_quota(city: City) -> None:
    firm = await city.firm()
    await city.submit(firm)
    await city.step()
    assert (await firm.http.get("/api/pools")).json() == [
        {
            "name": POOL, "centre": "optics-valley", "accelerator": "cpu-slot", "nodes": 1, "gpu_milli": 2000,
            "placed_milli": 1000, "quota_milli": 2000, "used_milli": 1000,
        }
    ]  # fmt: skip
    assert [node["id"] for node in (await firm.http.get("/api/nodes")).json()] == ["n1"]
    assert (await firm.http.post("/api/nodes/n1/cordon", json={"reason": "mine now"})).status_code == 403
