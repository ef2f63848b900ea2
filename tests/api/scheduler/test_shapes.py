"""Shares of accelerators, CPU and memory from the request to the runner's plan, the bill and back."""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from kit.auth import SYSTEM
from kit.db import violated_constraint
from kit.units import GpuMilli
from quotas import api as quotas
from quotas.pricing import Meter, RateKey
from quotas.tariffs import publish_tariff
from quotas.vocabulary import PoolName
from scheduler.ports import NodeReport
from scheduler.vocabulary import NodeId
from tests.support.money import POOL, RATES
from tests.support.scheduling import City, job


def add_node(city: City, name: str = "g1", gpus: int = 2, labels: dict[str, str] | None = None) -> None:
    """A node of the pool with GPUs, 8 CPUs and 64 GiB."""
    told = {"heliu.io/centre": "optics-valley", "heliu.io/accelerator": "cpu-slot", **(labels or {})}
    resource = told.get("heliu.io/resource", "GPU")
    has = {resource: float(gpus), "CPU": 8.0, "memory": float(64 << 30)}
    city.runtime.machines[NodeId(name)] = NodeReport(NodeId(name), name, has, told)


async def devices(city: City) -> list[tuple[str, int, int, str | None]]:
    async with city.db.transaction() as tx:
        rows = await tx.execute(
            text("SELECT node_id, index, placed_milli, firm_id FROM scheduler.device ORDER BY node_id, index")
        )
        return [tuple(row) for row in rows]


@pytest.fixture
async def gpus(city: City) -> City:
    """The city with one node of two GPUs instead of its slots."""
    city.runtime.machines.clear()
    add_node(city)
    await city.step()
    return city


async def test_shares_of_one_firm_lie_on_one_gpu_and_another_firm_gets_the_other(gpus: City) -> None:
    city, red, blue = gpus, await gpus.firm(), await gpus.firm()
    first = await city.submit(red, gpus=0.5, cpus=4, memory_mib=16 << 10)
    second, third = await city.submit(red, gpus=0.25, cpus=1), await city.submit(blue, gpus=0.25, cpus=1)
    await city.step()
    placed = {of: (index, milli) for _, index, milli, of in await devices(city)}
    assert placed[red.id][1] == 750 and placed[blue.id][1] == 250
    assert placed[red.id][0] != placed[blue.id][0]
    lies = [(await city.view(firm, id))["attempts"][0]["devices"] for firm, id in ((red, first), (red, second))]
    assert lies == [[[placed[red.id][0]]]] * 2
    assert (await city.view(blue, third))["state"] == "starting"


async def test_a_whole_gpu_waits_while_each_is_shared_and_starts_when_one_is_free(gpus: City) -> None:
    city, red, blue = gpus, await gpus.firm(quota=3), await gpus.firm()
    shares = [await city.submit(red, gpus=0.1), await city.submit(blue, gpus=0.1)]
    await city.step()
    whole = await city.submit(red, gpus=1)
    await city.step()
    assert (await city.view(red, whole))["wait_reason"] == "no_room"
    assert (await blue.http.post(f"/api/jobs/{shares[1]}/cancel")).status_code == 200
    await city.step()
    assert (await city.view(red, whole))["state"] == "starting"


async def test_the_plan_names_the_devices_and_ray_is_asked_for_cpu_and_memory_but_no_share(gpus: City) -> None:
    city, firm = gpus, await gpus.firm()
    job_id = await city.submit(firm, gpus=0.5, cpus=2, memory_mib=1024)
    await city.step()
    plan = (await (await city.runner(job_id)).plan()).json()
    assert (plan["devices_variable"], plan["devices"]) == ("CUDA_VISIBLE_DEVICES", [[0]])
    assert (plan["gpu_milli"], plan["cpu_milli"], plan["memory_mib"]) == (500, 2000, 1024)
    (order,) = [o for o in city.runtime.orders.values() if o.workload_id == job_id]
    assert order.resources == {"CPU": 2.0, "memory": float(1 << 30)}
    whole = await city.submit(firm, gpus=1)
    await city.step()
    (order,) = [o for o in city.runtime.orders.values() if o.workload_id == whole]
    assert order.resources == {"GPU": 1.0}


async def test_an_accelerator_is_what_its_node_says_it_is(city: City) -> None:
    city.runtime.machines.clear()
    add_node(city, "npu", labels={"heliu.io/resource": "NPU"})
    add_node(city, "dcu", labels={"heliu.io/resource": "DCU", "heliu.io/devices-variable": "HIP_VISIBLE_DEVICES"})
    await city.step()
    firm = await city.firm(quota=4)
    told = set()
    for _ in range(2):
        job_id = await city.submit(firm, gpus=2)
        await city.step()
        plan = (await (await city.runner(job_id)).plan()).json()
        told.add((plan["devices_variable"], tuple(plan["worker_resources"])))
        assert plan["devices"] == [[0, 1]]
    assert told == {("ASCEND_RT_VISIBLE_DEVICES", ("NPU",)), ("HIP_VISIBLE_DEVICES", ("DCU",))}


async def test_half_a_gpu_costs_half_and_everything_comes_back(gpus: City) -> None:
    city, firm = gpus, await gpus.firm()
    charged: dict[float, int] = {}
    for share in (1, 0.5, 0.001):
        job_id = await city.submit(firm, gpus=share, cpus=0.01)
        await city.step()
        runner = await city.runner(job_id)
        await runner.begin()
        await city.pass_time(10)
        assert (await runner.finished(ran_ms=10_000)).status_code == 200
        charged[share] = (await city.view(firm, job_id))["charged_micro_yuan"]
    assert charged[1] == 2 * charged[0.5] == 1000 * charged[0.001] > 0
    assert all((milli, of) == (0, None) for _, _, milli, of in await devices(city))
    (node,) = (await firm.http.get("/api/nodes")).json()
    assert (node["placed_milli"], node["placed_cpu_milli"], node["placed_memory_mib"]) == (0, 0, 0)
    await city.assert_ledger()


async def test_work_without_accelerators_takes_cpus_and_is_counted_for_what_it_keeps_from_others(gpus: City) -> None:
    city, firm = gpus, await gpus.firm()
    job_id = await city.submit(firm, gpus=0, cpus=8)
    await city.step()
    seen = await city.view(firm, job_id)
    assert (seen["state"], seen["need_milli"], seen["attempts"][0]["devices"]) == ("starting", 250, [[]])
    waits = await city.submit(firm, gpus=1, cpus=1)
    await city.step()
    assert (await city.view(firm, waits))["wait_reason"] == "no_room"


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"gpus": 1.5}, 422, "share of one accelerator"),
        ({"gpus": 0.0005}, 422, "whole thousandths"),
        ({"gpus": 0}, 422, "how many CPUs"),
        ({"gpus": 1, "cpus": 9}, 409, "8 CPUs and 64.0 GiB"),
        ({"gpus": 1, "memory_mib": 65 << 10}, 409, "64.0 GiB"),
        ({"gpus": 1, "topology": "rack"}, 409, "on nodes of one rack"),
    ],
)
async def test_a_shape_that_can_never_be_had_is_refused_with_what_there_is(
    gpus: City, asked: dict[str, Any], status: int, words: str
) -> None:
    firm = await gpus.firm(quota=9)
    answer = await firm.http.post("/api/jobs", json=job(**asked))
    assert answer.status_code == status
    assert words in answer.json()["detail"]


async def test_the_database_lets_nobody_share_with_another_firm_or_take_more_than_there_is(gpus: City) -> None:
    firm = await gpus.firm()
    await gpus.submit(firm, gpus=0.5, cpus=1)
    await gpus.step()
    for statement, rule in (
        ("UPDATE scheduler.device SET placed_milli = 1001 WHERE placed_milli > 0", "device_not_oversold"),
        ("UPDATE scheduler.device SET firm_id = NULL WHERE placed_milli > 0", "device_has_one_firm"),
        ("UPDATE scheduler.node SET placed_cpu_milli = cpu_milli + 1", "node_cpu_not_oversold"),
        ("UPDATE scheduler.node SET placed_memory_mib = memory_mib + 1", "node_memory_not_oversold"),
    ):
        with pytest.raises(IntegrityError) as refusal:
            async with gpus.db.transaction() as tx:
                await tx.execute(text(statement))
        assert violated_constraint(refusal.value) == rule


async def test_a_job_runs_in_the_first_of_its_pools_that_has_room_and_else_in_the_next(gpus: City) -> None:
    """`a100 or ascend-910b, this centre first`: an accelerator is a name and what its nodes say."""
    city, ascend = gpus, PoolName("hankou/ascend-910b")
    add_node(
        city, "a1", 1, {"heliu.io/centre": "hankou", "heliu.io/accelerator": "ascend-910b", "heliu.io/resource": "NPU"}
    )
    await city.step()
    firm = await city.firm(quota=2)
    rates = {**RATES, RateKey(Meter.GPU_HOUR, ascend, "standard"): 1_800_000}
    async with city.db.transaction() as tx:
        now = city.clock.now()
        await publish_tariff(tx, name="both", valid_from=now, rates=rates, by="test", now=now)
        await quotas.set_quota(tx, firm.id, ascend, GpuMilli(1000), by=SYSTEM, now=now)
    jobs = [await city.submit(firm, pools=[str(ascend), str(POOL)]) for _ in range(2)]
    await city.step()
    views = [await city.view(firm, job_id) for job_id in jobs]
    assert [view["attempts"][0]["pool"] for view in views] == [str(ascend), str(POOL)]
    offers = (await firm.http.post("/api/quotes", json=job(pools=[str(ascend), str(POOL)]))).json()["offers"]
    assert offers[1]["max_micro_yuan"] == 2 * offers[0]["max_micro_yuan"]
