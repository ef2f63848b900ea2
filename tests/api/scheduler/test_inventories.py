"""What runners say of their nodes becomes facts of the nodes, and what a job can use of it facts of the job."""

from kit import events
from kit.auth import SYSTEM
from kit.units import GpuMilli
from quotas import api as quotas
from quotas.api import Meter, RateKey
from quotas.vocabulary import PoolName
from scheduler.adapters.tables import InventoryRow
from scheduler.facts import load_state
from scheduler.node.protocol import held_as
from scheduler.ports import NodeReport
from scheduler.preferences import USUAL
from scheduler.snapshot import NOTHING, State
from scheduler.vocabulary import NodeId, WorkloadId
from tests.support.attempts import sha256
from tests.support.money import POOL, RATES
from tests.support.scheduling import City

LARGE = b"frames " * 1000


async def seen(city: City) -> State:
    async with city.db.transaction() as tx:
        return await load_state(tx, city.terms, now=city.clock.now())


async def test_a_node_has_what_its_last_runner_said(city: City) -> None:
    firm = await city.firm()
    job_id = await city.submit(firm)
    await city.step()
    runner = await city.runner(job_id)
    await runner.begin()
    assert (await seen(city)).nodes[NodeId("n1")].holds is NOTHING
    first = {"worker": 0, "files": ["a" * 32], "models": ["small", "large"], "warm": ["small"]}
    elsewhere = {"worker": 1, "files": ["b" * 32], "models": [], "warm": []}
    assert (await runner.tells(first, elsewhere)).status_code == 200
    holds = (await seen(city)).nodes[NodeId("n1")].holds
    assert (holds.files, holds.models, holds.warm) == ({"a" * 32}, {"small", "large"}, {"small"})
    assert (await runner.tells(first | {"files": []})).status_code == 200
    assert (await seen(city)).nodes[NodeId("n1")].holds.files == frozenset()


async def test_a_job_says_what_it_reads_and_its_checkpoint_follows_it(city: City) -> None:
    firm = await city.firm()
    upload = await city.upload(firm, "frames", LARGE)
    job_id = await city.submit(firm, inputs=[{"name": "frames", "source_id": upload}])
    frames = held_as(firm.id, sha256(LARGE)), len(LARGE)
    assert (await seen(city)).waiting[WorkloadId(job_id)].files == (frames,)
    await city.step()
    runner = await city.runner(job_id)
    await runner.begin()
    assert (await runner.plan()).json()["firm_id"] == firm.id
    for content in (b"one", b"three"):
        await city.pass_time(2)
        assert (await runner.keep(content, step=1, ran_ms=1_000)).status_code == 200
    await runner.finished(ran_ms=3_000, outcome="failed", cause="killed")
    kept = held_as(firm.id, sha256(b"three")), 5
    assert (await seen(city)).waiting[WorkloadId(job_id)].files == tuple(sorted([frames, kept]))


async def test_a_job_goes_where_its_model_is_and_its_owner_and_the_log_see_why(city: City) -> None:
    city.add_node("n2")
    firm = await city.firm(quota=4)
    await city.step()
    async with city.db.transaction() as tx:
        tx.add(InventoryRow(node_id="n2", files=[], models=["small"], warm=["small"], told_at=city.clock.now()))
    prompts = await city.upload(firm, "prompts.csv", b"prompt\nWho?\n")
    inputs = [{"name": "prompts.csv", "source_id": prompts}]
    job_id = await city.submit(firm, recipe="text-batch", params={"model": "small"}, inputs=inputs)
    await city.step()
    why = (await firm.http.get(f"/api/jobs/{job_id}/why")).json()
    best, second = why["score"]["best"], why["score"]["second"]
    assert (best["node"], best["model"], second["node"], second["model"]) == ("n2", 1.0, "n1", 0.0)
    assert best["total"] - second["total"] == USUAL.model and best["packing"] == second["packing"]
    assert why["pool"] == POOL and why["sentence"] == "It is placed; its node prepares, free of charge."
    async with city.db.transaction() as tx:
        [started] = await events.read(tx, subject=job_id, topics=["job.starting"])
    assert started.body["score"] == why["score"]
    assert (await (await city.runner(job_id)).plan()).json()["model"] == "small"


async def test_of_pools_that_are_liked_equally_the_cheaper_one_is_taken(city: City) -> None:
    dear = PoolName("east-lake/cpu-slot")
    labels = {"heliu.io/centre": "east-lake", "heliu.io/accelerator": "cpu-slot"}
    city.runtime.machines[NodeId("n0")] = NodeReport(NodeId("n0"), "n0", {"slot": 2}, labels)
    firm = await city.firm(quota=4)
    now = city.clock.now()
    async with city.db.transaction() as tx:
        await quotas.set_quota(tx, firm.id, dear, GpuMilli(4000), by=SYSTEM, now=now)
        rates = RATES | {RateKey(Meter.GPU_HOUR, dear, "standard"): 4_000_000}
        await quotas.publish_tariff(tx, name="two pools", valid_from=now, rates=rates, by="test", now=now)
    await city.step()
    taken: list[str] = []
    for pools in ([dear, POOL], [[dear, POOL]], [[POOL, dear]]):
        job_id = await city.submit(firm, pools=pools)
        await city.step()
        taken.append((await city.attempt(job_id)).pool)
        assert (await city.view(firm, job_id))["pool_ranks"] == ([0, 0] if isinstance(pools[0], list) else None)
    assert taken == [dear, POOL, POOL]
