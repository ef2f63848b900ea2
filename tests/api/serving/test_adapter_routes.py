"""Adapters over HTTP: from a finished job to a loaded adapter, for its firm and nobody else."""

import httpx
import pytest

from quotas.api import project_of
from quotas.vocabulary import FirmId
from tests.api.quotas.conftest import Studio
from tests.api.serving.conftest import City
from tests.support.adapters import BASE, weights_file
from tests.support.artifacts import finished_training


async def trained(city: City, studio: Studio, **made: object) -> str:
    """A finished fine-tune of the studio; returns the job."""
    async with city.db.transaction() as tx:
        project = await project_of(tx, None, FirmId(studio.firm_id))
        return await finished_training(tx, city.blobs, studio.firm_id, project.id, now=city.clock.now(), **made)  # type: ignore[arg-type]


async def test_a_finished_job_ends_as_an_adapter_loaded_on_the_replica(city: City) -> None:
    studio = await city.world.studio()
    await city.deploy()
    await trained(city, studio)
    await city.pass_time()
    (adapter,) = (await studio.owner.get("/api/adapters")).json()
    assert (adapter["name"], adapter["state"], adapter["replicas_ready"]) == ("lore", "active", 0)
    (host,) = await city.hosts()
    (order,) = (await host.sync("ready"))["adapters"]
    assert (order["id"], order["lora_name"], order["sha256"]) == (adapter["id"], adapter["id"], adapter["sha256"])
    config = await host.http.get(order["url"] + "/adapter_config.json")
    assert config.status_code == 200 and config.json()["base_model_name_or_path"] == BASE
    weights = await host.http.get(order["url"] + "/adapter_model.safetensors")
    assert weights.content == weights_file() and len(weights.content) == order["bytes"]
    assert (await host.http.get(order["url"] + "/other.bin")).status_code == 422
    assert (await studio.owner.get(order["url"] + "/adapter_config.json")).status_code == 401
    await host.sync("ready", adapters_loaded=[adapter["id"]])
    assert (await studio.owner.get("/api/adapters/lore")).json()["replicas_ready"] == 1
    (replica,) = await city.replicas()
    assert replica["adapters"] == [{"adapter_id": adapter["id"], "state": "ready", "reason": None}]


async def test_a_deleted_adapter_is_gone_for_its_firm_and_then_for_the_engine(city: City) -> None:
    studio = await city.world.studio()
    await city.deploy()
    await trained(city, studio)
    await city.pass_time()
    (host,) = await city.hosts()
    (order,) = (await host.sync("ready"))["adapters"]
    await host.sync("ready", adapters_loaded=[order["id"]])
    assert (await studio.owner.delete("/api/adapters/lore")).status_code == 204
    await city.pass_time(6)
    assert (await host.sync("ready", adapters_loaded=[order["id"]]))["adapters"] == []
    assert (await studio.owner.get("/api/adapters/lore")).json()["state"] == "retiring"
    await host.sync("ready")
    await city.pass_time()
    assert (await studio.owner.get("/api/adapters/lore")).status_code == 404
    assert (await studio.owner.delete(f"/api/adapters/{order['id']}")).status_code == 404


async def test_a_refused_adapter_says_why_and_takes_another_name(city: City) -> None:
    studio = await city.world.studio()
    job = await trained(city, studio, adapter_name=BASE)
    await city.pass_time()
    (adapter,) = (await studio.owner.get("/api/adapters")).json()
    assert adapter["state"] == "refused" and "taken" in adapter["reason"]
    answer = await studio.owner.post("/api/adapters", json={"job_id": job, "name": "lore"})
    assert (answer.status_code, answer.json()["state"]) == (201, "active")
    answer = await studio.owner.post("/api/adapters", json={"job_id": job, "name": "BAD NAME"})
    assert answer.status_code == 422


@pytest.mark.parametrize("who", ["rival", "rival key", "anonymous"])
async def test_another_firm_cannot_tell_that_an_adapter_exists(city: City, who: str) -> None:
    studio, rival = await city.world.studio(), await city.world.studio()
    job = await trained(city, studio)
    await city.pass_time()
    (adapter,) = (await studio.owner.get("/api/adapters")).json()
    if who == "rival":
        caller = rival.owner
    elif who == "rival key":
        made = await city.world.key(rival, scopes=["inference", "deployments:write", "models:read"])
        caller = city.world.as_token(made["secret"] if "secret" in made else made["token"])
    else:
        caller = city.world.anonymous
    mine = await _ask(caller, adapter["id"], job, studio.firm_id)
    absent = await _ask(caller, "adp_00000000000000000000000000", "job_0000", "firm_0000")
    for seen, nothing in zip(mine, absent, strict=True):
        assert seen.status_code == nothing.status_code
        assert seen.status_code in ((401,) if who == "anonymous" else (200, 404))
        assert studio.firm_id not in seen.text or seen.status_code == 404
        assert adapter["sha256"] not in seen.text and "lore" not in seen.text
    assert [one["state"] for one in (await studio.owner.get("/api/adapters")).json()] == ["active"]


async def _ask(caller: httpx.AsyncClient, adapter: str, job: str, firm: str) -> list[httpx.Response]:
    return [
        await caller.get("/api/adapters"),
        await caller.get("/api/adapters", params={"firm_id": firm}),
        await caller.get(f"/api/adapters/{adapter}"),
        await caller.delete(f"/api/adapters/{adapter}"),
        await caller.post("/api/adapters", json={"job_id": job}),
    ]


async def test_finance_people_see_adapters_but_do_not_delete_them(city: City) -> None:
    studio = await city.world.studio()
    await trained(city, studio)
    await city.pass_time()
    finance = await city.world.member(studio.owner, "money@studio.example", "firm_finance")
    assert len((await finance.get("/api/adapters")).json()) == 1
    assert (await finance.delete("/api/adapters/lore")).status_code == 403


async def test_the_platforms_administrator_sees_every_firms_adapters_but_does_not_delete_them(city: City) -> None:
    studio = await city.world.studio()
    await trained(city, studio)
    await city.pass_time()
    (adapter,) = (await city.admin.get("/api/adapters")).json()
    assert adapter["firm_id"] == studio.firm_id
    assert (await city.admin.delete(f"/api/adapters/{adapter['id']}")).status_code == 403
