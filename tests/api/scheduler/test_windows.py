"""Maintenance, advance reservations and drains over HTTP: work runs out, moves or waits, and says for what."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from scheduler.fleet import uncordon
from tests.support.scheduling import City, Firm, later


async def kept(city: City, staff: httpx.AsyncClient, start: float, end: float, **changes: Any) -> str:
    body: dict[str, Any] = {"scope": "node", "target": "n1", "reason": "new fans"}
    body |= {"starts_at": later(city, start).isoformat(), "ends_at": later(city, end).isoformat()} | changes
    answer = await staff.post("/api/windows", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def running(city: City, firm: Firm, **changes: Any) -> str:
    job_id = await city.submit(firm, **changes)
    await city.step()
    await (await city.runner(job_id)).begin()
    return job_id


async def test_a_job_that_would_run_into_a_window_waits_says_so_and_starts_after_it(
    city: City, staff: httpx.AsyncClient
) -> None:
    firm = await city.firm()
    await kept(city, staff, 30, 60)
    job_id = await city.submit(firm)  # about 50 s
    await city.step()
    seen = await city.view(firm, job_id)
    assert (seen["wait_reason"], seen["expected_start"]) == (
        "window",
        later(city, 60).isoformat().replace("+00:00", "Z"),
    )
    why = (await firm.http.get(f"/api/jobs/{job_id}/why")).json()
    assert "node n1 is under maintenance" in why["sentence"] and "new fans" in why["sentence"]
    short = await city.submit(firm, expected_seconds=20)
    await city.step()
    assert (await city.view(firm, short))["state"] == "starting"
    await city.pass_time(61)
    assert (await city.view(firm, job_id))["state"] == "starting"


async def test_what_runs_when_a_window_begins_keeps_its_checkpoint_and_goes_on_elsewhere(
    city: City, staff: httpx.AsyncClient
) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    await kept(city, staff, 30, 60)
    city.add_node("n2")
    await city.pass_time(15)
    runner = await city.runner(job_id)
    assert (await runner.heartbeat()).json()["command"] == "run"
    await city.pass_time(6)
    assert (await runner.heartbeat()).json()["command"] == "stop"
    await runner.keep(b"so far", step=4, ran_ms=20_000)
    await runner.finished(ran_ms=21_000, outcome="stopped", cause="stopped")
    await city.step()
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["attempts"][-1]["nodes"], seen["charged_micro_yuan"]) == ("starting", ["n2"], 20_000)
    assert seen["checkpoint"]["step"] == 4
    assert "(rule: window)" in seen["message"] and "new fans" not in seen["message"]


async def test_a_reserved_node_takes_only_its_firms_work(city: City, staff: httpx.AsyncClient) -> None:
    firm, other = await city.firm(), await city.firm()
    window_id = await kept(city, staff, 0, 600, firm_id=firm.id)
    own, foreign = await city.submit(firm), await city.submit(other)
    await city.step()
    assert (await city.view(firm, own))["state"] == "starting"
    assert (await city.view(other, foreign))["wait_reason"] == "window"
    shown = (await other.http.get("/api/windows")).json()[0]
    assert (shown["firm_id"], shown["reason"]) == ("another firm", "kept for another firm")
    assert (await firm.http.get("/api/windows")).json()[0]["firm_id"] == firm.id
    assert (await staff.post(f"/api/windows/{window_id}/lift")).status_code == 200
    await city.step()
    assert (await city.view(other, foreign))["state"] == "starting"


async def test_a_drain_with_a_time_lets_work_end_and_moves_the_rest_then(city: City, staff: httpx.AsyncClient) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    body = {"reason": "new fans", "drain": True, "finish_by": later(city, 40).isoformat()}
    assert (await staff.post("/api/nodes/n1/cordon", json=body)).status_code == 200
    await city.pass_time(15)
    runner = await city.runner(job_id)
    assert (await runner.heartbeat()).json()["command"] == "run"
    await city.pass_time(16)
    assert (await runner.heartbeat()).json()["command"] == "stop"
    await runner.finished(ran_ms=31_000, outcome="stopped", cause="stopped")
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["cause"], seen["charged_micro_yuan"]) == ("queued", "evicted", 0)
    assert "(rule: window)" in seen["message"]
    assert (await staff.post("/api/nodes/n1/uncordon")).status_code == 200
    await city.step()
    assert (await city.view(firm, job_id))["state"] == "starting"


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"target": "n9"}, 404, "node_not_found"),
        ({"scope": "centre", "target": "mars"}, 404, "centre_not_found"),
        ({"ends_at": "2026-01-01T00:00:00Z"}, 422, "bad_window"),
        ({"scope": "city"}, 422, "invalid_input"),
    ],
)
async def test_a_window_over_nothing_or_never_is_refused(
    city: City, staff: httpx.AsyncClient, changes: dict[str, Any], status: int, code: str
) -> None:
    body = {"scope": "node", "target": "n1", "reason": "new fans", "starts_at": later(city, 0).isoformat()}
    body |= {"ends_at": later(city, 60).isoformat()} | changes
    answer = await staff.post("/api/windows", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_two_firms_cannot_have_one_node_at_one_time_and_firms_set_no_windows(
    city: City, staff: httpx.AsyncClient
) -> None:
    firm, other = await city.firm(), await city.firm()
    await kept(city, staff, 0, 600, firm_id=firm.id)
    body = {"scope": "centre", "target": "optics-valley", "reason": "a film", "firm_id": other.id}
    span = {"starts_at": later(city, 599).isoformat(), "ends_at": later(city, 900).isoformat()}
    taken = await staff.post("/api/windows", json=body | span)
    assert (taken.status_code, taken.json()["code"]) == (409, "window_taken")
    span["starts_at"] = later(city, 600).isoformat()
    assert (await staff.post("/api/windows", json=body | span)).status_code == 201
    assert (await firm.http.post("/api/windows", json=body | span)).status_code == 403


async def test_a_node_where_attempt_after_attempt_cannot_be_prepared_is_closed_with_the_reason(city: City) -> None:
    firm = await city.firm()
    for _ in range(3):
        job_id = await city.submit(firm)
        await city.step()
        runner = await city.runner(job_id)
        await runner.plan()
        await runner.finished(ran_ms=0, outcome="failed", cause="setup_failed", message="no bwrap")
        await firm.http.post(f"/api/jobs/{job_id}/cancel")
    (node,) = (await firm.http.get("/api/nodes")).json()
    assert "3 attempts in a row could not be prepared: no bwrap" in node["cordon_reason"]
    waiting = await city.submit(firm)
    await city.step()
    assert (await city.view(firm, waiting))["wait_reason"] == "no_node"
    async with city.db.transaction() as tx:
        await uncordon(tx, "n1", now=city.clock.now())
    await city.step()
    assert (await city.view(firm, waiting))["state"] == "starting"


async def test_no_firm_can_close_a_node_by_naming_a_model_that_is_not_there(city: City) -> None:
    firm = await city.firm()
    for _ in range(3):
        job_id = await city.submit(firm)
        await city.step()
        runner = await city.runner(job_id)
        await runner.plan()
        await runner.finished(ran_ms=0, outcome="failed", cause="model_missing", message="base model typo is not here")
        await firm.http.post(f"/api/jobs/{job_id}/cancel")
    (node,) = (await firm.http.get("/api/nodes")).json()
    assert node["cordon_reason"] is None


async def test_a_node_where_work_begins_now_and_then_stays_open(city: City) -> None:
    firm = await city.firm()
    for began in (False, False, True, False, False):
        job_id = await city.submit(firm)
        await city.step()
        runner = await city.runner(job_id)
        await runner.plan()
        if began:
            await runner.started()
            await runner.finished(ran_ms=0)
        else:
            await runner.finished(ran_ms=0, outcome="failed", cause="setup_failed", message="once")
            await firm.http.post(f"/api/jobs/{job_id}/cancel")
        city.clock.advance(timedelta(seconds=1))
    assert (await firm.http.get("/api/nodes")).json()[0]["cordon_reason"] is None
