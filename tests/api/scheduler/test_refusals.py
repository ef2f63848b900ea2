"""What is refused changes nothing: no job, no hold, no posting, no bytes kept. Rows of every table are counted."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from tests.api.scheduler.test_files import LORE, announced, tune
from tests.support.row_counts import nothing_written
from tests.support.scheduling import City, Firm, job, later

BAD_SUBMISSIONS: list[tuple[dict[str, Any], int, str]] = [
    ({"surprise": 1}, 422, "invalid_input"),
    ({"workers": "2"}, 422, "invalid_input"),
    ({"workers": -1}, 422, "invalid_input"),
    ({"priority": 10**30}, 422, "invalid_input"),
    ({"cap_micro_yuan": -5}, 422, "invalid_input"),
    ({"recipe": "mine-bitcoin"}, 422, "unknown_recipe"),
    ({"params": {"command": []}}, 422, "bad_params"),
    ({"params": {"command": ["true"], "runtime_seconds_max": 10**9}}, 422, "bad_params"),
    ({"params": {"command": ["true"], "shell": True}}, 422, "bad_params"),
    ({"pools": ["moon/h100"]}, 409, "unknown_pool"),
    ({"gpus": 3}, 409, "no_quota"),
    ({"max_runtime_seconds": 8 * 86_400}, 422, "runtime_too_long"),
    ({"workers": 100, "gpus": 1}, 422, "too_many_workers"),
    ({"inputs": [{"name": "../etc/passwd", "source_id": "up_1"}]}, 422, "invalid_input"),
    ({"inputs": [{"name": "a", "source_id": "up_none"}]}, 404, "upload_not_found"),
    ({"quote_id": "quo_none"}, 404, "quote_not_found"),
    ({"deadline": "2026-11-01T00:00:00+08:00"}, 422, "deadline_past"),
    ({"project_id": "prj_none"}, 404, "project_not_found"),
]
BAD_DATA = {
    b"\n\n": "empty_input",
    LORE + b"not json\n": "not_jsonl",
    b'{"prompt": "only"}\n': "missing_field",
}


async def test_bad_submissions_are_refused_with_a_code_and_write_nothing(city: City) -> None:
    firm, poor, unlucky = await city.firm(), await city.firm(paid_in=1), await city.firm(quota=0)
    for known in (firm, poor, unlucky):
        await known.http.get("/api/jobs")  # the key's first use is on record
    cases = [(firm, *case) for case in BAD_SUBMISSIONS]
    cases += [(poor, {}, 402, "no_money"), (unlucky, {}, 409, "no_quota")]
    for who, changes, status, code in cases:
        async with nothing_written(city.db):
            answer = await who.http.post("/api/jobs", json=job(**changes), headers={"Idempotency-Key": "once"})
            assert (answer.status_code, answer.json()["code"]) == (status, code), (changes, answer.text)
            assert answer.json()["detail"] and answer.json()["hint"], "what was wrong, and what to do"
    good = await firm.http.post("/api/jobs", json=job(), headers={"Idempotency-Key": "once"})
    assert good.status_code == 201, "what was refused did not use up the key"


async def test_bad_data_is_refused_at_submission_and_writes_nothing(city: City) -> None:
    firm = await city.firm()
    for content, code in BAD_DATA.items():
        upload = await city.upload(firm, "data", content)
        async with nothing_written(city.db):
            answer = await firm.http.post("/api/jobs", json=tune(upload))
            assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("a", "b", "a"), "two inputs are named a"),
        (("a/b/c", "a"), "input a/b/c would lie in a, which is an input itself"),
        (("outputs",), "an input cannot be named outputs: script has its own outputs and checkpoint"),
        (("checkpoint/state",), "an input cannot be named checkpoint/state: script has its own outputs and checkpoint"),
    ],
)
async def test_names_that_no_folder_could_hold_are_refused_at_submission(
    city: City, names: tuple[str, ...], told: str
) -> None:
    firm = await city.firm()
    upload = await city.upload(firm, "data", b"1")
    body = job(inputs=[{"name": name, "source_id": upload} for name in names])
    for path, more in (("/api/jobs", {}), ("/api/quotes", {}), ("/api/arrays", {"size": 2})):
        async with nothing_written(city.db):
            answer = await firm.http.post(path, json=body | more)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_input_name"), answer.text
        assert answer.json()["detail"] == told


async def test_a_deadline_is_to_come_when_a_job_is_submitted_and_may_pass_before_it_is_sent_again(city: City) -> None:
    firm = await city.firm()
    soon = later(city, 60).isoformat()
    body, key = job(deadline=soon), {"Idempotency-Key": "once"}
    made = await firm.http.post("/api/jobs", json=body, headers=key)
    assert made.status_code == 201, made.text
    array = (await firm.http.post("/api/arrays", json=body | {"size": 3, "at_most": 1})).json()["id"]
    city.clock.advance(timedelta(seconds=60))
    again = await firm.http.post("/api/jobs", json=body, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, made.json()["id"])
    for path, more in (("/api/jobs", {}), ("/api/quotes", {}), ("/api/arrays", {"size": 2})):
        refused = await firm.http.post(path, json=body | more)
        assert (refused.status_code, refused.json()["code"]) == (422, "deadline_past"), refused.text
        assert "is past: it is" in refused.json()["detail"]
    await city.step(2)
    assert (await firm.http.get(f"/api/arrays/{array}")).json()["waiting"] == 2, (
        "its tasks have their turns all the same"
    )


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled"])
async def test_cancel_of_a_job_that_is_over_is_refused_and_changes_nothing(city: City, outcome: str) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    runner = await city.runner(job_id)
    await runner.begin()
    city.clock.advance(timedelta(seconds=5))
    if outcome == "cancelled":
        await firm.http.post(f"/api/jobs/{job_id}/cancel")
        await runner.finished(ran_ms=4_000, outcome="stopped", cause="stopped")
    else:
        await runner.finished(
            ran_ms=4_000, outcome=outcome, cause="done" if outcome == "succeeded" else "program_failed"
        )
    before = await city.view(firm, job_id)
    assert (before["state"], before["charged_micro_yuan"]) == (outcome, 4_000)
    async with nothing_written(city.db):
        answer = await firm.http.post(f"/api/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["code"]) == (409, "job_over")
    await city.step(2)
    assert await city.view(firm, job_id) == before


async def test_two_gigabytes_are_refused_when_announced_and_when_sent_without_being_read(city: City) -> None:
    firm = await city.firm()
    await firm.http.get("/api/jobs")
    async with nothing_written(city.db):
        answer = await firm.http.post("/api/uploads", json=announced(b"x") | {"size_bytes": 2 << 30})
        assert (answer.status_code, answer.json()["code"]) == (413, "file_too_large")
    made = (await firm.http.post("/api/uploads", json=announced(b"x" * 1000))).json()
    for declared in ({"Content-Length": str(2 << 30)}, {}):
        answer, taken = await _send_two_gigabytes(firm, f"/api/uploads/{made['id']}", declared)
        assert answer == 413
        assert taken <= 4 << 20, "it read on after it knew"
    assert (await firm.http.get(f"/api/uploads/{made['id']}")).json()["received_bytes"] == 0


async def _send_two_gigabytes(firm: Firm, path: str, headers: dict[str, str]) -> tuple[int, int]:
    """(status, bytes that were taken) of a body as long as the server will read it."""
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 2 << 30:
            taken += 1 << 20
            yield b"x" * (1 << 20)

    answer = await firm.http.patch(path, content=body(), headers={"Upload-Offset": "0", **headers})
    return answer.status_code, taken
