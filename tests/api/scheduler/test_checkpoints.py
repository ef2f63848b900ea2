"""A checkpoint: what is kept is paid for and given to the next attempt, what the platform loses after it is not."""

from collections.abc import AsyncIterator
from typing import Any

import obstore
import pytest

from quotas import api as quotas
from quotas.statements import period_of
from scheduler import loop
from scheduler.artifacts import stored_bytes
from scheduler.fleet import cordon
from tests.support.scheduling import City, Firm, Runner


async def begun(city: City, firm: Firm, **changes: Any) -> tuple[str, Runner]:
    """A job whose runner has started."""
    job_id = await city.submit(firm, **changes)
    await city.step()
    runner = await city.runner(job_id)
    await runner.begin()
    return job_id, runner


async def lines_of(city: City, firm: Firm, job_id: str) -> list[tuple[int, int, str]]:
    """(amount, GPU milliseconds, note) of a job on the statement."""
    async with city.db.transaction() as tx:
        now = city.clock.now()
        month = await quotas.statement(tx, firm.id, period_of(now), now=now)
    return [(line.amount, line.quantities["gpu_ms"], line.note) for line in month.lines if line.subject == job_id]


async def test_the_next_attempt_gets_the_folder_back_and_the_time_that_is_left(city: City) -> None:
    firm = await city.firm()
    job_id, first = await begun(city, firm)
    await city.pass_time(10)
    assert (await first.keep(b"half of it", step=5, ran_ms=9_000)).status_code == 200
    await city.pass_time(26)  # its lease and the margin are over
    await city.pass_time(3)
    second = await city.runner(job_id)
    plan = (await second.plan()).json()
    assert plan["checkpoint"]["step"] == 5 and plan["max_runtime_seconds"] == 91
    assert (await second.call("GET", "/checkpoint")).content == b"half of it"
    part = await second.call("GET", "/checkpoint", headers={"Range": "bytes=8-"})
    assert (part.status_code, part.content) == (206, b"it")
    assert (await city.attempt(job_id)).held_seconds == 91
    seen = (await city.view(firm, job_id))["checkpoint"]
    assert (seen["step"], seen["gpu_ms"], seen["size_bytes"]) == (5, 9_000, 10)


async def test_what_a_lost_node_takes_after_the_checkpoint_is_not_charged_and_the_statement_says_so(city: City) -> None:
    firm = await city.firm()
    job_id, first = await begun(city, firm)
    await city.pass_time(12)
    await first.keep(b"x", step=1, ran_ms=8_000)
    await city.pass_time(3)
    await first.heartbeat()  # last heard of 15 s after its start
    await city.pass_time(26)
    seen = await city.view(firm, job_id)
    assert (seen["cause"], seen["charged_micro_yuan"], seen["lost_gpu_ms"]) == ("lease_lost", 8_000, 7_000)
    await city.pass_time(3)
    second = await city.runner(job_id)
    await second.begin()
    await city.pass_time(5)
    await second.finished(ran_ms=5_000)
    assert await lines_of(city, firm, job_id) == [
        (8_000, 8_000, "7.0 GPU-s after its last checkpoint are not charged: lease_lost"),
        (5_000, 5_000, ""),
    ]
    assert (await city.view(firm, job_id))["charged_micro_yuan"] == 13_000
    assert await city.open_holds(job_id) == 0
    await city.assert_ledger()


async def test_an_eviction_without_a_checkpoint_is_a_line_of_nothing_on_the_statement(city: City) -> None:
    firm = await city.firm()
    job_id, first = await begun(city, firm)
    async with city.db.transaction() as tx:
        await cordon(tx, "n1", "new fans", drain=True, now=city.clock.now())
    await city.pass_time(6)
    await first.finished(ran_ms=6_000, outcome="stopped", cause="stopped")
    assert await lines_of(city, firm, job_id) == [(0, 0, "6.0 GPU-s are not charged: evicted")]
    assert (await city.view(firm, job_id))["charged_micro_yuan"] == 0
    await city.assert_ledger()


async def test_a_program_that_fails_is_charged_in_full_whatever_it_kept(city: City) -> None:
    firm = await city.firm()
    job_id, first = await begun(city, firm)
    await city.pass_time(10)
    await first.keep(b"x", step=1, ran_ms=4_000)
    await first.finished(ran_ms=10_000, outcome="failed", cause="program_failed", message="exit code 3")
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["charged_micro_yuan"], seen["lost_gpu_ms"]) == ("failed", 10_000, 0)


async def test_a_job_that_is_evicted_again_and_again_never_costs_more_than_its_whole_length(city: City) -> None:
    firm = await city.firm()
    job_id, runner = await begun(city, firm)
    for _ in range(3):
        await city.pass_time(15)
        await runner.heartbeat()
        await city.pass_time(15)
        await runner.keep(b"x", step=1, ran_ms=30_000)
        await runner.finished(ran_ms=30_000, outcome="stopped", cause="killed")
        await city.pass_time(20)
        runner = await city.runner(job_id)
        await runner.begin()
    assert (await city.attempt(job_id)).held_seconds == 10
    await city.pass_time(10)
    await runner.finished(ran_ms=99_000)
    assert (await city.view(firm, job_id))["charged_micro_yuan"] == 100_000
    await city.assert_ledger()


async def test_a_checkpoint_replaces_the_one_before_and_goes_when_the_job_is_over(city: City) -> None:
    firm = await city.firm()
    job_id, runner = await begun(city, firm)
    for step in (1, 2, 2):
        assert (await runner.keep(b"step %d" % step, step=step, ran_ms=0)).status_code == 200
    kept = [path async for path in stored(city)]
    assert len(kept) == 1 and f"/checkpoints/{job_id}/" in kept[0]
    await runner.finished(ran_ms=0)
    await loop.tidy(city.controller)
    assert [path async for path in stored(city)] == []
    assert (await city.view(firm, job_id))["checkpoint"] is None


async def stored(city: City) -> AsyncIterator[str]:
    """The checkpoints in the object store."""
    async for page in obstore.list(city.blobs._store):  # pyright: ignore[reportPrivateUsage]
        for entry in page:
            if "/checkpoints/" in entry["path"]:
                yield entry["path"]


@pytest.mark.parametrize(("step", "ran_ms"), [("-1", "0"), ("x", "0"), ("1", "9" * 40)])
async def test_a_checkpoint_without_a_step_and_a_time_is_refused(city: City, step: str, ran_ms: str) -> None:
    firm = await city.firm()
    _, runner = await begun(city, firm)
    headers = {"X-Sha256": "0" * 64, "X-Step": step, "X-Ran-Ms": ran_ms}
    answer = await runner.call("PUT", "/checkpoint", content=b"x", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_number")


async def test_an_attempt_that_is_over_keeps_nothing_more(city: City) -> None:
    firm = await city.firm()
    job_id, runner = await begun(city, firm)
    await city.pass_time(26)
    late = await runner.keep(b"late", step=9, ran_ms=1)
    assert (late.status_code, late.json()["code"]) == (409, "fence_lost")
    assert (await city.view(firm, job_id))["checkpoint"] is None


async def test_a_checkpoint_counts_into_the_firms_storage(city: City) -> None:
    firm = await city.firm()
    _, runner = await begun(city, firm)
    await runner.keep(b"12345", step=1, ran_ms=0)
    async with city.db.transaction() as tx:
        assert await stored_bytes(tx, firm.id) == 5
