"""Jobs beyond their firm's limits are refused by name, also when many come at once."""

import asyncio

import pytest

from kit.auth import SYSTEM
from quotas import api
from quotas.budgets import BudgetSpec, set_budget
from quotas.ceilings import set_ceilings
from quotas.vocabulary import Ceilings, ProjectId
from tests.support.scheduling import City, Firm, job


async def limit(city: City, firm: Firm, ceilings: Ceilings, *, project: bool = False) -> None:
    async with city.db.transaction() as tx:
        whose = ProjectId(firm.project_id) if project else None
        await set_ceilings(tx, firm.id, whose, ceilings, by=SYSTEM, now=city.clock.now())


@pytest.mark.parametrize(
    ("ceilings", "code"),
    [
        (Ceilings(jobs_at_once=1), "limit_jobs_at_once"),
        (Ceilings(gpu_milli_at_once=1500), "limit_gpus_at_once"),
        (Ceilings(gpu_ms_per_period=150_000), "limit_gpu_time"),
    ],
)
async def test_a_job_beyond_a_limit_is_refused_by_name_until_the_first_is_over(
    city: City, ceilings: Ceilings, code: str
) -> None:
    firm = await city.firm()
    await limit(city, firm, ceilings)
    first = await city.submit(firm)
    answer = await firm.http.post("/api/jobs", json=job())
    assert (answer.status_code, answer.json()["code"]) == (409, code), answer.text
    assert (await firm.http.post(f"/api/jobs/{first}/cancel")).status_code == 200
    await city.submit(firm)


async def test_of_many_jobs_at_once_only_as_many_as_the_limit_are_taken(city: City) -> None:
    firm = await city.firm()
    await limit(city, firm, Ceilings(jobs_at_once=3))
    answers = await asyncio.gather(*(firm.http.post("/api/jobs", json=job()) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [409] * 5


async def test_without_limits_nothing_is_refused(city: City) -> None:
    firm = await city.firm()
    for _ in range(4):
        await city.submit(firm)


async def test_a_job_waits_for_its_budget_by_name_and_one_that_never_fits_is_refused(city: City) -> None:
    firm = await city.firm()
    first = await city.submit(firm)
    await city.step()
    async with city.db.transaction() as tx:
        held = next(one.amount for one in await api.open_holds(tx) if one.subject == first)
        await set_budget(tx, BudgetSpec(firm.id, 2 * held - 1, (100,), True), by=SYSTEM, now=city.clock.now())
    second = await city.submit(firm)
    await city.step()
    waiting = await city.workload(second)
    assert (waiting.state, waiting.wait_reason) == ("queued", "no_money")
    assert waiting.wait_detail is not None and "firm's budget" in waiting.wait_detail
    dear = await firm.http.post("/api/jobs", json=job(max_runtime_seconds=3 * 3600))
    assert (dear.status_code, dear.json()["code"]) == (402, "budget_reached"), dear.text
