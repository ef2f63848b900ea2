"""A suspended firm's work drains: what runs is told to stop and has its grace, what waits is cancelled."""

from kit.auth import SYSTEM
from quotas.applications import review
from quotas.vocabulary import ReviewStep
from tests.support.scheduling import City


async def test_what_runs_is_told_to_stop_and_what_waits_is_cancelled(city: City) -> None:
    firm, other = await city.firm(quota=1), await city.firm(quota=1)
    running, untouched = await city.submit(firm), await city.submit(other)
    await city.step(2)
    runner = await city.runner(running)
    await runner.begin()
    waiting = await city.submit(firm)
    async with city.db.transaction() as tx:
        await review(tx, firm.id, ReviewStep.SUSPEND, by=SYSTEM, now=city.clock.now(), reason="unpaid")
    await city.step()
    told = (await runner.heartbeat()).json()
    assert told["command"] == "stop" and told["grace_seconds"] > 0
    cancelled = await city.workload(waiting)
    assert (cancelled.state, cancelled.last_message) == ("cancelled", "the firm is suspended: unpaid")
    assert (await city.workload(running)).stop_reason == "the firm is suspended: unpaid"
    assert (await city.workload(untouched)).stop_requested_at is None
    await city.step()
    assert (await city.workload(running)).state not in {"cancelled", "failed"}


async def test_a_firm_that_works_again_may_submit_again(city: City) -> None:
    firm = await city.firm()
    first = await city.submit(firm)
    for step in (ReviewStep.SUSPEND, ReviewStep.RESUME):
        async with city.db.transaction() as tx:
            await review(tx, firm.id, step, by=SYSTEM, now=city.clock.now(), reason="unpaid")
    await city.step()
    assert (await city.workload(first)).stop_requested_at is None
