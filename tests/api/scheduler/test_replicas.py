"""Replica workloads: the same path as jobs, run again after every end, paid in slices, until they are stopped."""

from dataclasses import replace

import pytest
from sqlalchemy import text

from kit.auth import SYSTEM
from kit.errors import Conflict, NotFound
from kit.units import GpuMilli
from quotas import api as quotas
from quotas.vocabulary import PLATFORM_FIRM, FirmId, ProjectId, QoS
from scheduler.api import stop_workload, submit_replica, workload_states
from scheduler.vocabulary import JobState, ReplicaSpec, WorkloadId, WorkloadStatus
from tests.support.money import POOL, yuan
from tests.support.scheduling import City, Firm


def spec(firm_id: str, project_id: str, **changes: object) -> ReplicaSpec:
    made = ReplicaSpec(
        key="rep_one", name="smollm2", firm_id=FirmId(firm_id), project_id=ProjectId(project_id), pools=(POOL,),
        gpu_milli=GpuMilli(1000), program="serving.node.replica_host", params={"replica_id": "rep_one"},
        qos=QoS.STANDARD,
    )  # fmt: skip
    return replace(made, **changes)  # pyright: ignore[reportArgumentType]


async def replica(city: City, firm: Firm) -> WorkloadId:
    """A replica of a firm whose program has started."""
    async with city.db.transaction() as tx:
        workload_id = await submit_replica(tx, spec(firm.id, firm.project_id), now=city.clock.now())
    await city.step()
    await (await city.runner(workload_id)).begin()
    return workload_id


async def status(city: City, workload_id: WorkloadId) -> WorkloadStatus:
    async with city.db.transaction() as tx:
        return (await workload_states(tx, [workload_id]))[workload_id]


async def live(city: City, workload_id: WorkloadId, seconds: int) -> None:
    """Time passes with a heartbeat every 15 seconds."""
    runner = await city.runner(workload_id)
    for _ in range(seconds // 15):
        await city.pass_time(15)
        await runner.heartbeat()


async def test_asking_twice_with_one_key_is_one_replica_and_other_content_is_refused(city: City) -> None:
    firm = await city.firm()
    async with city.db.transaction() as tx:
        one = await submit_replica(tx, spec(firm.id, firm.project_id), now=city.clock.now())
        assert await submit_replica(tx, spec(firm.id, firm.project_id), now=city.clock.now()) == one
        with pytest.raises(Conflict):
            await submit_replica(tx, spec(firm.id, firm.project_id, name="other"), now=city.clock.now())


async def test_a_replica_has_no_maximum_and_is_paid_in_slices(city: City) -> None:
    firm = await city.firm()
    workload_id = await replica(city, firm)
    plan = (await (await city.runner(workload_id)).plan()).json()
    assert (plan["kind"], plan["max_runtime_seconds"]) == ("replica", None)
    await live(city, workload_id, 330)
    assert (await city.attempt(workload_id)).metered_ms >= 300_000
    assert await city.open_holds(workload_id) == 1
    async with city.db.transaction() as tx:
        await stop_workload(tx, workload_id, "scaled down", now=city.clock.now())
    runner = await city.runner(workload_id)
    assert (await runner.heartbeat()).json()["command"] == "stop"
    await runner.finished(ran_ms=330_000, outcome="stopped", cause="stopped")
    assert (await status(city, workload_id)).state is JobState.CANCELLED
    async with city.db.transaction() as tx:
        charged = [charge.gpu_ms for charge in await quotas.charges_of(tx, workload_id)]
    assert sum(charged) == 330_000, "slice by slice, every millisecond once"
    assert len(charged) == 2
    assert (await city.workload(workload_id)).charged_micro_yuan == 330_000
    assert await city.open_holds(workload_id) == 0
    await city.assert_ledger()


async def test_a_replicas_progress_is_no_jobs(city: City) -> None:
    firm = await city.firm()
    workload_id = await replica(city, firm)
    await (await city.runner(workload_id)).heartbeat(step=3)
    async with city.db.transaction() as tx:
        query = text("SELECT topic FROM kit.event WHERE subject = :id AND topic LIKE '%.progress'")
        assert (await tx.execute(query, {"id": workload_id})).scalars().all() == ["workload.progress"]


async def test_a_replica_comes_back_with_growing_pauses_until_it_is_stopped(city: City) -> None:
    firm = await city.firm()
    workload_id = await replica(city, firm)
    for failures, pause in ((1, 2), (2, 4), (3, 8)):
        runner = await city.runner(workload_id)
        await runner.finished(ran_ms=0, outcome="failed", cause="engine_died", message="exit code 137")
        told = await status(city, workload_id)
        assert (told.state, told.failures, told.last_message) == (JobState.QUEUED, failures, "exit code 137")
        await city.pass_time(pause - 0.5)
        assert (await status(city, workload_id)).attempt_id is None
        await city.pass_time(0.6)
        await (await city.runner(workload_id)).begin()
    await city.assert_ledger()


async def test_a_replica_whose_money_runs_out_pays_what_it_ran_and_waits(city: City) -> None:
    firm = await city.firm(paid_in=yuan(2))  # a hold is for 1,800 seconds: 1.8 yuan
    workload_id = await replica(city, firm)
    await live(city, workload_id, 315)
    runner = await city.runner(workload_id)
    assert (await runner.heartbeat()).json()["command"] == "stop"
    await runner.finished(ran_ms=315_000, outcome="stopped", cause="stopped")
    await city.step()
    told = await status(city, workload_id)
    assert (told.state, told.wait_reason, told.last_cause) == (JobState.QUEUED, "no_money", "unpaid")
    assert (await city.workload(workload_id)).charged_micro_yuan == 315_000
    assert await city.open_holds(workload_id) == 0
    await city.assert_ledger()


async def test_the_platforms_own_replica_needs_quota_but_no_money(city: City) -> None:
    now = city.clock.now()
    async with city.db.transaction() as tx:
        project = await quotas.project_of(tx, None, PLATFORM_FIRM)
        workload_id = await submit_replica(tx, spec(PLATFORM_FIRM, project.id), now=now)
    await city.step()
    assert (await status(city, workload_id)).wait_reason == "no_quota"
    async with city.db.transaction() as tx:
        await quotas.set_quota(tx, PLATFORM_FIRM, POOL, GpuMilli(1000), by=SYSTEM, now=now)
    await city.step()
    assert (await status(city, workload_id)).state is JobState.STARTING


async def test_stopping_a_waiting_replica_ends_it_and_again_changes_nothing(city: City) -> None:
    firm = await city.firm(quota=0)
    async with city.db.transaction() as tx:
        workload_id = await submit_replica(tx, spec(firm.id, firm.project_id), now=city.clock.now())
        for _ in range(2):
            await stop_workload(tx, workload_id, "deleted", now=city.clock.now())
        with pytest.raises(NotFound):
            await stop_workload(tx, WorkloadId("rep_nope"), "deleted", now=city.clock.now())
    assert (await status(city, workload_id)).state is JobState.CANCELLED


async def test_a_replica_is_not_a_job_to_the_jobs_api(city: City) -> None:
    firm = await city.firm()
    workload_id = await replica(city, firm)
    assert (await firm.http.get(f"/api/jobs/{workload_id}")).status_code == 404
    assert (await firm.http.get("/api/jobs")).json() == []
