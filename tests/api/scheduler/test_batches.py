"""Starts and ends go many in one transaction; what is wrong with one of them is its own."""

import asyncio

from scheduler import loop
from tests.support.conflicts import BROKEN, refuse_writes
from tests.support.money import yuan
from tests.support.scheduling import City


async def test_of_starts_recorded_together_only_what_cannot_be_paid_waits(city: City) -> None:
    city.add_node("n2", slots=6)
    rich, poor = await city.firm(quota=3), await city.firm(quota=3, paid_in=yuan(0.25))
    jobs = [(firm, await city.submit(firm)) for _ in range(3) for firm in (poor, rich)]
    await city.step()
    states = [(firm is rich, (await city.view(firm, job))["state"]) for firm, job in jobs]
    assert [state for is_rich, state in states if is_rich] == ["starting"] * 3
    assert sorted(state for is_rich, state in states if not is_rich) == ["queued", "starting", "starting"]
    waits = [await city.view(firm, job) for firm, job in jobs if firm is poor]
    assert [view["wait_reason"] for view in waits if view["state"] == "queued"] == ["no_money"]
    await city.assert_ledger()


async def test_a_start_that_the_database_refuses_does_not_take_the_others_with_it(city: City) -> None:
    firm = await city.firm(quota=2)
    bad, good = [await city.submit(firm) for _ in range(2)]
    await refuse_writes(city.db, "scheduler.attempt", code=BROKEN, times=99, where=f"NEW.workload_id = '{bad}'")
    await city.step()
    assert (await city.view(firm, good))["state"] == "starting"
    assert (await city.view(firm, bad))["state"] == "queued"
    assert (await city.open_holds(bad), await city.open_holds(good)) == (0, 1)
    await city.assert_ledger()


async def test_why_work_waits_is_written_at_the_pace_of_the_loop_and_not_at_every_message(city: City) -> None:
    firm = await city.firm(quota=1)
    jobs = [await city.submit(firm) for _ in range(2)]
    controller = city.controller
    await loop.step(controller, tick=False)
    states = {(view["state"], view["wait_reason"]) for view in [await city.view(firm, job) for job in jobs]}
    assert states == {("starting", None), ("queued", "new")}
    await loop.step(controller)
    assert {(await city.view(firm, job))["wait_reason"] for job in jobs} == {None, "no_quota"}


async def test_ends_that_are_reported_at_once_are_each_charged_once(city: City) -> None:
    city.add_node("n2", slots=4)
    firm = await city.firm(quota=6)
    jobs = [await city.submit(firm) for _ in range(4)]
    await city.step()
    runners = [await city.runner(job) for job in jobs]
    for runner in runners:
        await runner.begin()
    await city.pass_time(3)
    for _ in range(2):  # saying so again changes nothing
        answers = await asyncio.gather(*(runner.finished(ran_ms=1000 + n) for n, runner in enumerate(runners)))
        assert {answer.status_code for answer in answers} == {200}
    views = [await city.view(firm, job) for job in jobs]
    charged = [(view["state"], view["charged_micro_yuan"]) for view in views]
    assert charged == [("succeeded", 1000 + n) for n in range(4)]
    await city.assert_ledger()
