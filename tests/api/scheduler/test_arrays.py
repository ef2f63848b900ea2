"""Job arrays: a row and a cursor, so many tasks at once, each with its own number, log and charge."""

from typing import Any

import pytest
from sqlalchemy import text

from quotas import api as quotas
from scheduler import arrays
from tests.support.scheduling import City, Firm, job


async def submitted(city: City, firm: Firm, *, key: str | None = None, **changes: Any) -> str:
    body = job(size=5, at_most=2) | changes
    answer = await firm.http.post("/api/arrays", json=body, headers={"Idempotency-Key": key} if key else {})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def shown(firm: Firm, array_id: str) -> dict[str, Any]:
    answer = await firm.http.get(f"/api/arrays/{array_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def tasks(firm: Firm, array_id: str, **query: Any) -> list[dict[str, Any]]:
    return (await firm.http.get(f"/api/arrays/{array_id}/tasks", params=query)).json()


async def run_one(city: City, firm: Firm, array_id: str, *, fails: bool = False) -> int:
    """Run the first task that has been placed to its end; its number."""
    task = (await tasks(firm, array_id, state="starting"))[0]
    runner = await city.runner(task["id"])
    await runner.begin()
    await city.pass_time(1)
    ending = {"outcome": "failed", "cause": "program_failed", "message": "exit code 1"} if fails else {}
    assert (await runner.finished(ran_ms=1_000, **ending)).status_code == 200
    await city.step()
    return task["array_index"]


async def test_ten_thousand_tasks_are_one_row_and_a_cursor_and_two_are_jobs_at_once(city: City) -> None:
    firm = await city.firm()
    array_id = await submitted(city, firm, size=10_000)
    await city.step(3)
    async with city.db.transaction() as tx:
        assert (await tx.execute(text("SELECT count(*) FROM scheduler.workload"))).scalar_one() == 2
    seen = await shown(firm, array_id)
    assert (seen["state"], seen["waiting"], seen["counts"]) == ("active", 9_998, {"starting": 2})
    assert [task["array_index"] for task in await tasks(firm, array_id)] == [0, 1]
    assert await run_one(city, firm, array_id) == 0
    assert [task["array_index"] for task in await tasks(firm, array_id)] == [0, 1, 2]
    assert (await shown(firm, array_id))["waiting"] == 9_997


async def test_each_task_has_its_number_in_its_parameters_and_its_plan(city: City) -> None:
    firm = await city.firm()
    params = {"command": ["render", "--shot", "{index}", "shots/{index}.json"], "runtime_seconds_max": 100}
    array_id = await submitted(city, firm, params=params)
    await city.step()
    second = (await tasks(firm, array_id, index=1))[0]
    plan = (await (await city.runner(second["id"])).plan()).json()
    assert plan["params"]["command"] == ["render", "--shot", "1", "shots/1.json"]
    assert plan["task_index"] == 1
    assert arrays.with_index({"a": [{"b": "{index}-{index}"}], "n": 3}, 7) == {"a": [{"b": "7-7"}], "n": 3}


async def test_the_failed_ones_are_run_again_and_every_run_is_charged_exactly(city: City) -> None:
    firm = await city.firm()
    array_id = await submitted(city, firm, size=3)
    await city.step()
    ran = [await run_one(city, firm, array_id, fails=turn == 1) for turn in range(3)]
    assert sorted(ran) == [0, 1, 2]
    await city.step()
    seen = await shown(firm, array_id)
    assert (seen["state"], seen["counts"], seen["charged_micro_yuan"]) == (
        "failed",
        {"succeeded": 2, "failed": 1},
        3_000,
    )
    assert (await firm.http.post(f"/api/arrays/{array_id}/rerun")).json() == {"tasks": 1}
    await city.step(2)
    assert await run_one(city, firm, array_id) == ran[1]
    await city.step()
    seen = await shown(firm, array_id)
    assert (seen["state"], seen["counts"], seen["charged_micro_yuan"]) == ("succeeded", {"succeeded": 3}, 4_000)
    again = await firm.http.post(f"/api/arrays/{array_id}/rerun")
    assert again.json()["code"] == "none_failed"
    async with city.db.transaction() as tx:
        subjects = (await tx.execute(text("SELECT id FROM scheduler.workload"))).scalars().all()
        charges = [charge.amount for subject in subjects for charge in await quotas.charges_of(tx, subject)]
    assert charges == [1_000] * 4
    await city.assert_ledger()


async def test_cancelling_an_array_stops_its_tasks_and_gives_no_further_one_its_turn(city: City) -> None:
    firm = await city.firm()
    array_id = await submitted(city, firm)
    await city.step()
    running = (await tasks(firm, array_id))[0]["id"]
    runner = await city.runner(running)
    await runner.begin()
    told = (await firm.http.post(f"/api/arrays/{array_id}/cancel")).json()
    assert (told["state"], told["waiting"]) == ("cancelled", 0)
    assert (await runner.heartbeat()).json()["command"] == "stop"
    await runner.finished(ran_ms=0, outcome="stopped", cause="stopped")
    await city.step(2)
    seen = await shown(firm, array_id)
    assert seen["counts"] == {"cancelled": 2} and seen["ended_at"] is not None
    refused = await firm.http.post(f"/api/arrays/{array_id}/rerun")
    assert (refused.status_code, refused.json()["code"]) == (409, "array_over")


async def test_the_same_key_is_the_same_array_and_another_firm_sees_none_of_it(city: City) -> None:
    firm, other = await city.firm(), await city.firm()
    array_id = await submitted(city, firm, key="night")
    assert await submitted(city, firm, key="night") == array_id
    different = await firm.http.post("/api/arrays", json=job(size=6, at_most=2), headers={"Idempotency-Key": "night"})
    assert (different.status_code, different.json()["code"]) == (409, "idempotency_conflict")
    for verb, path in (("GET", ""), ("GET", "/tasks"), ("POST", "/cancel"), ("POST", "/rerun")):
        answer = await other.http.request(verb, f"/api/arrays/{array_id}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "array_not_found")
    assert (await other.http.get("/api/arrays")).json() == []


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"size": 0}, 422),
        ({"size": 100_001}, 422),
        ({"at_most": 0}, 422),
        ({"params": {"command": []}}, 422),
        ({"gpus": 9}, 409),
    ],
)
async def test_an_array_is_checked_before_it_is_taken(city: City, changes: dict[str, Any], status: int) -> None:
    firm = await city.firm()
    answer = await firm.http.post("/api/arrays", json=job(size=5) | changes)
    assert answer.status_code == status, answer.text
    assert (await firm.http.get("/api/arrays")).json() == []
