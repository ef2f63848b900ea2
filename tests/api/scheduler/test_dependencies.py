"""Jobs that run after other jobs: how those end decides, and nobody waits in a circle."""

from typing import Any

import pytest

from scheduler.dependencies import Awaited, Blocked, Hopeless, Ready, Stand, stand
from scheduler.vocabulary import AfterRule
from tests.support.scheduling import City, Firm, job

OK, ANY, FAILED = AfterRule.OK, AfterRule.ANY, AfterRule.FAILED


@pytest.mark.parametrize(
    ("awaited", "expected"),
    [
        ([], Ready),
        ([(OK, None)], Blocked),
        ([(OK, True)], Ready),
        ([(OK, False)], Hopeless),
        ([(ANY, None)], Blocked),
        ([(ANY, True), (ANY, False)], Ready),
        ([(FAILED, True)], Hopeless),
        ([(FAILED, False)], Ready),
        ([(OK, True), (OK, None)], Blocked),
        ([(OK, None), (OK, False)], Hopeless),
    ],
)
def test_how_the_awaited_work_ended_decides(
    awaited: list[tuple[AfterRule, bool | None]], expected: type[Stand]
) -> None:
    assert isinstance(stand([Awaited(f"job_{i}", *one) for i, one in enumerate(awaited)]), expected)


async def finish(city: City, job_id: str, *, fails: bool = False) -> None:
    await city.step()
    runner = await city.runner(job_id)
    await runner.begin()
    ending = {"outcome": "failed", "cause": "program_failed", "message": "3"} if fails else {}
    await runner.finished(ran_ms=0, **ending)


async def after(city: City, firm: Firm, *edges: tuple[str, str], **changes: Any) -> str:
    return await city.submit(firm, after=[{"id": id, "rule": rule} for id, rule in edges], **changes)


async def test_a_job_waits_for_another_says_so_and_starts_when_it_has_succeeded(city: City) -> None:
    firm = await city.firm()
    first = await city.submit(firm)
    second = await after(city, firm, (first, "ok"))
    await city.step(2)
    seen = await city.view(firm, second)
    assert (seen["state"], seen["wait_reason"]) == ("blocked", "after")
    assert seen["after"] == [{"id": first, "rule": "ok", "succeeded": None}]
    why = (await firm.http.get(f"/api/jobs/{second}/why")).json()
    assert why["reason"] == "after" and f"{first} (succeeds)" in why["sentence"]
    assert "the end of the work it waits for" in why["would_start"]
    await finish(city, first)
    await city.step()
    assert (await city.view(firm, second))["state"] == "starting"


async def test_what_was_to_run_after_a_success_is_cancelled_by_a_failure_and_so_is_what_waits_for_it(
    city: City,
) -> None:
    firm = await city.firm()
    first = await city.submit(firm)
    second = await after(city, firm, (first, "ok"))
    third = await after(city, firm, (second, "ok"))
    anyway, cleanup = await after(city, firm, (first, "any")), await after(city, firm, (first, "failed"))
    await finish(city, first, fails=True)
    await city.step(2)
    seen = await city.view(firm, second)
    assert seen["state"] == "cancelled" and f"{first} did not succeed" in seen["message"]
    assert (await city.view(firm, third))["state"] == "cancelled"
    assert [(await city.view(firm, name))["state"] for name in (anyway, cleanup)] == ["starting", "starting"]


async def test_a_job_can_wait_for_a_whole_array(city: City) -> None:
    firm = await city.firm()
    array_id = (await firm.http.post("/api/arrays", json=job(size=2, at_most=2))).json()["id"]
    last = await after(city, firm, (array_id, "ok"))
    await city.step()
    assert (await city.view(firm, last))["state"] == "blocked"
    for task in (await firm.http.get(f"/api/arrays/{array_id}/tasks")).json():
        await finish(city, task["id"])
    await city.step(2)
    assert (await city.view(firm, last))["state"] == "starting"


async def test_a_circle_is_refused_and_so_are_other_firms_jobs(city: City) -> None:
    firm, other = await city.firm(), await city.firm()
    first = await city.submit(firm, gpus=2)
    second = await after(city, firm, (first, "ok"))
    third = await after(city, firm, (second, "ok"))
    for name, on in ((first, third), (first, first), (second, third)):
        circle = await firm.http.post(f"/api/jobs/{name}/after", json={"after": [{"id": on}]})
        assert (circle.status_code, circle.json()["code"]) == (409, "dependency_cycle"), circle.text
    assert (await city.view(firm, first))["after"] == []
    foreign = await other.http.post("/api/jobs", json=job(after=[{"id": first}]))
    assert (foreign.status_code, foreign.json()["code"]) == (404, "job_not_found")
    assert (await other.http.get("/api/jobs")).json() == []


async def test_a_job_that_waits_can_wait_for_more_be_paused_and_be_cancelled(city: City) -> None:
    firm = await city.firm()
    blocker, waiting = await city.submit(firm), await city.submit(firm)
    await firm.http.post(f"/api/jobs/{waiting}/after", json={"after": [{"id": blocker, "rule": "any"}]})
    assert (await city.view(firm, waiting))["state"] == "blocked"
    assert (await firm.http.post(f"/api/jobs/{waiting}/pause")).json()["state"] == "paused"
    assert (await firm.http.post(f"/api/jobs/{waiting}/resume")).json()["state"] == "blocked"
    assert (await firm.http.post(f"/api/jobs/{waiting}/cancel")).json()["state"] == "cancelled"
    await city.step()
    late = await firm.http.post(f"/api/jobs/{blocker}/after", json={"after": [{"id": waiting}]})
    assert (late.status_code, late.json()["code"]) == (409, "job_started")
