"""What a leader remembers is what the database says, whatever happened since it looked last."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import SYSTEM
from quotas import api as quotas
from scheduler import fleet, loop
from scheduler.adapters import versions
from scheduler.facts import load_state
from scheduler.memory import Memory
from scheduler.snapshot import State
from scheduler.vocabulary import WaitReason, WorkloadId
from tests.support.money import POOL
from tests.support.scheduling import City


async def read_whole(city: City) -> State:
    async with city.db.transaction() as tx:
        return await load_state(tx, city.terms, now=city.clock.now())


async def remembered(city: City, memory: Memory) -> State:
    async with city.db.transaction() as tx:
        return await memory.look(tx, city.terms, now=city.clock.now())


async def test_a_leader_that_remembers_sees_what_one_that_reads_everything_sees(city: City) -> None:
    city.add_node("n2", slots=1)
    firm, memory = await city.firm(quota=3), Memory()
    jobs: list[str] = []

    async def submits() -> None:
        jobs.extend([await city.submit(firm) for _ in range(5)])

    async def begins() -> None:
        await (await city.runner(jobs[0])).begin()

    async def beats() -> None:
        await (await city.runner(jobs[0])).heartbeat(step=3)

    async def tells_what_its_node_has() -> None:
        told = {"worker": 0, "files": ["0" * 32], "models": ["small"], "warm": []}
        assert (await (await city.runner(jobs[0])).tells(told)).status_code == 200

    async def has_other_things() -> None:
        told = {"worker": 0, "files": [], "models": ["small"], "warm": ["small"]}
        assert (await (await city.runner(jobs[0])).tells(told)).status_code == 200

    async def fails_and_waits() -> None:
        await (await city.runner(jobs[0])).finished(ran_ms=10, outcome="failed", cause="setup_failed")

    async def is_cancelled() -> None:
        assert (await firm.http.post(f"/api/jobs/{jobs[4]}/cancel")).status_code == 200

    async def closes_a_node() -> None:
        async with city.db.transaction() as tx:
            await fleet.cordon(tx, "n2", "dust", drain=True, now=city.clock.now())

    async def gets_more_quota() -> None:
        async with city.db.transaction() as tx:
            await quotas.set_quota(tx, firm.id, POOL, 5000, by=SYSTEM, now=city.clock.now())

    async def loses_a_node() -> None:
        city.runtime.machines.clear()
        city.clock.advance(timedelta(seconds=60))

    steps: list[Callable[[], Awaitable[None]]] = [
        submits, city.step, begins, beats, tells_what_its_node_has, city.step, has_other_things,
        city.step, fails_and_waits, city.step, is_cancelled, closes_a_node,
        city.step, gets_more_quota, loses_a_node, city.step,
    ]  # fmt: skip
    for happens in steps:
        await happens()
        assert await remembered(city, memory) == await read_whole(city), happens
    assert len((await read_whole(city)).waiting) >= 2, "something is left to remember"


async def test_what_a_leader_wrote_itself_is_not_read_again_unless_somebody_changed_it_since(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, firm, read = city.controller, await city.firm(quota=1), list[str]()
    memory = controller.memory
    await city.submit(firm)
    await loop.step(controller)
    job = WorkloadId(await city.submit(firm))
    workload_rows = versions.workload_rows

    async def heard(tx: AsyncSession, ids: Sequence[str]) -> Sequence[Any]:
        read.extend(ids)
        return await workload_rows(tx, ids)

    monkeypatch.setattr(versions, "workload_rows", heard)
    await loop.step(controller)
    assert memory.told[job].wait_reason == WaitReason.NO_QUOTA
    await loop.step(controller)
    assert read.count(job) == 1, "as it came"
    async with city.db.transaction() as tx:
        await tx.execute(text("UPDATE scheduler.workload SET wait_reason = 'new' WHERE id = :id"), {"id": job})
    await loop.step(controller)
    assert read.count(job) == 2
    assert await remembered(city, memory) == await read_whole(city)


async def test_the_whole_queue_is_read_only_when_somebody_else_took_work_out_of_it(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    firm, controller, asked = await city.firm(quota=2), city.controller, list[int]()
    memory, queued = controller.memory, versions.queued

    async def heard(tx: AsyncSession, *, since: int = 0) -> versions.Queue:
        asked.append(since)
        return await queued(tx, since=since)

    monkeypatch.setattr(versions, "queued", heard)
    jobs = [await city.submit(firm) for _ in range(4)]
    await loop.step(controller)  # reads all there is, starts two
    asked.clear()
    assert await remembered(city, memory) == await read_whole(city)
    assert len(asked) == 1 and asked[0] > 0
    await (await city.runner(jobs[0])).finished(ran_ms=10, outcome="failed", cause="setup_failed")  # is queued again
    assert await remembered(city, memory) == await read_whole(city)
    assert len(asked) == 2
    assert (await firm.http.post(f"/api/jobs/{jobs[3]}/cancel")).status_code == 200
    assert await remembered(city, memory) == await read_whole(city)
    assert asked[2] > 0 and asked[3:] == [0]


async def test_only_what_has_changed_is_read_again(city: City) -> None:
    firm, memory = await city.firm(), Memory()
    first, second = [WorkloadId(await city.submit(firm)) for _ in range(2)]
    await remembered(city, memory)
    before = dict(memory.state.waiting)
    async with city.db.transaction() as tx:
        await tx.execute(text("UPDATE scheduler.workload SET priority = 7 WHERE id = :id"), {"id": second})
    await remembered(city, memory)
    assert memory.state.waiting[first] is before[first]
    assert memory.state.waiting[second].priority == 7
