"""Firms of one cohort borrow from each other and get back what they are promised, through the real store and ledger."""

import asyncio

from kit import events
from kit.auth import SYSTEM
from kit.units import GpuMilli
from quotas.cohort_tree import place
from quotas.vocabulary import CohortName
from scheduler.adapters import store
from scheduler.admission import Admitted
from scheduler.batch_admission import admit_many
from scheduler.facts import load_state
from scheduler.sharing import Sharing
from scheduler.vocabulary import NodeId, Placement, Start, WorkloadId
from tests.support.money import POOL, yuan
from tests.support.scheduling import City, Firm


async def cohort(city: City, *firms: Firm) -> None:
    """These firms share."""
    studios, now = CohortName("studios"), city.clock.now()
    async with city.db.transaction() as tx:
        await place(tx, studios, parent=None, by=SYSTEM, now=now)
        for firm in firms:
            await place(tx, firm.id, parent=studios, by=SYSTEM, now=now)


async def running(city: City, firm: Firm) -> str:
    job_id = await city.submit(firm)
    await city.step()
    await (await city.runner(job_id)).begin()
    return job_id


async def told_to_stop(city: City, *jobs: str) -> list[str]:
    """Which of these jobs' runners hear that they have to stop."""
    commands = {job_id: (await (await city.runner(job_id)).heartbeat()).json()["command"] for job_id in jobs}
    return [job_id for job_id in jobs if commands[job_id] == "stop"]


async def test_a_firm_borrows_what_others_of_its_cohort_do_not_use_and_gives_it_back(city: City) -> None:
    red, blue = await city.firm(quota=1), await city.firm(quota=1)
    await cohort(city, red, blue)
    own, borrowed = await running(city, red), await running(city, red)
    await city.pass_time(15)  # too short for work to be stopped for others
    assert await told_to_stop(city, own, borrowed) == []
    mine = await city.submit(blue)
    await city.step()
    assert "stopped once it has run 60 s" in (await blue.http.get(f"/api/jobs/{mine}/why")).json()["sentence"]
    for _ in range(3):
        assert await told_to_stop(city, own, borrowed) == []
        await city.pass_time(15)
    assert await told_to_stop(city, own, borrowed) == [borrowed]
    told = (await blue.http.get(f"/api/jobs/{mine}/why")).json()
    assert told["reason"] == "reclaim"
    own_use = "within quota: with it and what is before it, its firm uses 100% of its own"
    assert told["standing"] == f"{own_use}; the first of its firm"
    stopping = (await red.http.get(f"/api/jobs/{borrowed}/why")).json()["sentence"]
    assert stopping.startswith("It has been told to stop") and "(rule: reclaim)" in stopping
    await city.pass_time(15)
    assert await told_to_stop(city, own, borrowed) == [borrowed], "enough has been told to stop"
    await (await city.runner(borrowed)).finished(ran_ms=70_000, outcome="stopped", cause="stopped")
    await city.step()
    assert (await city.view(blue, mine))["state"] == "starting"
    seen = await city.view(red, borrowed)
    assert (seen["state"], seen["cause"], seen["charged_micro_yuan"]) == ("queued", "evicted", 0)
    assert seen["wait_reason"] == "not_lent"
    why = (await red.http.get(f"/api/jobs/{borrowed}/why")).json()["sentence"]
    for told in (seen["message"], seen["attempts"][-1]["message"], why):
        assert "what it had borrowed goes back" in told and "(rule: reclaim)" in told
        assert blue.id not in told and mine not in told, "who takes it back is nobody's business"
    async with city.db.transaction() as tx:
        preempted = [e for e in await events.read(tx, topics=["job.preempted"]) if e.subject == borrowed]
    assert [dict(event.body)["rule"] for event in preempted] == ["reclaim"]
    await city.assert_ledger()


async def test_nobody_is_stopped_for_work_that_could_not_be_paid(city: City) -> None:
    red, blue = await city.firm(quota=0), await city.firm(quota=2, paid_in=yuan(0.15))
    await cohort(city, red, blue)
    first, borrowed = await running(city, blue), await running(city, red)
    second = await city.submit(blue)
    for _ in range(6):
        await city.pass_time(15)
        assert await told_to_stop(city, first, borrowed) == []
    assert (await city.view(blue, second))["wait_reason"] == "no_money"


async def test_two_leaders_cannot_both_lend_the_last_of_it(city: City) -> None:
    lender = await city.firm(quota=1)
    firms = [await city.firm(quota=0), await city.firm(quota=0)]
    await cohort(city, lender, *firms)
    jobs = [await city.submit(firm) for firm in firms]
    placements = [Placement(POOL, (NodeId("n1"),), GpuMilli(1000), ((device,),)) for device in range(2)]
    starts = [Start(WorkloadId(job_id), placement) for job_id, placement in zip(jobs, placements, strict=True)]

    async def admit_as_leader(start: Start) -> object:
        async with city.db.transaction() as tx:
            state = await load_state(tx, city.terms, now=city.clock.now())
            sharing = Sharing(state.quotas, state.tree)
            (outcome,) = await admit_many(tx, [start], sharing, key=b"key", terms=city.terms, now=city.clock.now())
        return outcome

    outcomes = await asyncio.gather(*map(admit_as_leader, starts))
    assert sum(isinstance(outcome, Admitted) for outcome in outcomes) == 1


async def test_what_a_firm_used_is_remembered_with_a_half_life_and_platform_faults_are_not(city: City) -> None:
    firm = await city.firm()
    job_id = await running(city, firm)
    await city.pass_time(10)
    await (await city.runner(job_id)).heartbeat()
    await (await city.runner(job_id)).finished(ran_ms=10_000)
    key = firm.id, POOL
    assert await _lately(city) == {key: round(1000 * 10 * 0.6931 / city.terms.half_life_seconds)}
    await city.pass_time(city.terms.half_life_seconds)
    lost = await running(city, firm)
    await city.pass_time(10)
    await (await city.runner(lost)).finished(ran_ms=9_000, outcome="failed", cause="engine_died")
    async with city.db.transaction() as tx:
        state = await load_state(tx, city.terms, now=city.clock.now())
    assert state.running == {}
    assert await _usage(city) == [10_000]


async def _lately(city: City) -> object:
    async with city.db.transaction() as tx:
        return (await load_state(tx, city.terms, now=city.clock.now())).lately


async def _usage(city: City) -> list[int]:
    async with city.db.transaction() as tx:
        return [round(row.milli_seconds) for row in await store.usage_lately(tx)]
