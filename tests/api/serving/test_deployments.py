"""From a deployment to ready replicas and back, through the real scheduler."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quotas import api as quotas
from quotas.cash import record_topup
from quotas.vocabulary import FirmId
from serving import api
from tests.api.serving.conftest import City, secrets_in
from tests.support.adapters import BASE
from tests.support.money import POOL, yuan


async def routes(city: City) -> set[str]:
    """Ids of the replicas the gateway would route to."""
    async with city.db.transaction() as tx:
        return {route.id for route in (await api.route_table(tx)).replicas}


async def states(city: City, **query: Any) -> list[str]:
    return [replica["state"] for replica in await city.replicas(**query)]


async def workloads(city: City) -> list[str]:
    async with city.db.transaction() as tx:
        rows = await tx.execute(text("SELECT state FROM scheduler.workload WHERE kind = 'replica' ORDER BY id"))
        return [row[0] for row in rows]


async def test_a_deployment_becomes_a_replica_workload_and_is_served_once_ready(city: City) -> None:
    deployment = await city.deploy()
    await city.pass_time()
    (host,) = await city.hosts()
    assert host.params["model"] == BASE and host.params["source"] == BASE
    assert host.params["engine_arguments"] == {"enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 64}
    (replica,) = await city.replicas()
    assert (replica["state"], replica["deployment_id"]) == ("pending", deployment["id"])
    assert await routes(city) == set()
    await host.sync("starting", url=None, engine_key=None, metrics=None)
    await host.runs()
    await host.sync("warming")
    assert await routes(city) == set()
    reply = await host.sync("ready")
    assert reply["command"] == "run"
    assert await routes(city) == {replica["id"]}
    seen = (await city.admin.get(f"/api/deployments/{deployment['id']}")).json()
    assert (seen["replicas_ready"], seen["blocked_reason"]) == (1, None)
    (model,) = (await city.admin.get("/api/models")).json()
    assert model["replicas_ready"] == 1


async def test_scaling_up_and_down_changes_the_replicas(city: City) -> None:
    deployment = await city.deploy(replicas_max=4)
    await city.pass_time()
    scaled = await city.admin.post(f"/api/deployments/{deployment['id']}/scale", json={"replicas": 2})
    assert scaled.status_code == 200, scaled.text
    await city.pass_time()
    hosts = await city.hosts()
    assert len(hosts) == 2
    for host in hosts:
        await host.sync("ready")
    assert len(await routes(city)) == 2
    await city.admin.post(f"/api/deployments/{deployment['id']}/scale", json={"replicas": 1})
    await city.pass_time()
    assert len(await routes(city)) == 1, "a draining replica takes no new request"
    replies = {host.params["replica_id"]: await host.sync("ready") for host in hosts}
    assert sorted(reply["command"] for reply in replies.values()) == ["drain", "run"]
    leaving = next(host for host in hosts if replies[host.params["replica_id"]]["command"] == "drain")
    busy = {"prompt_tokens_total": 10, "generation_tokens_total": 1, "requests_running": 1}
    for _ in range(5):
        await city.pass_time(2)
        assert (await leaving.sync("draining", metrics=busy))["command"] == "drain", "it finishes what it has"
    await leaving.sync("draining")
    await city.pass_time()
    assert (await leaving.sync("draining"))["command"] == "stop"
    await leaving.finished("stopped", "stopped")
    await city.pass_time()
    assert sorted(await states(city, ended=True)) == ["gone", "ready"]
    assert sorted(await workloads(city)) == ["cancelled", "starting"]


async def test_a_replica_whose_attempt_is_lost_comes_back_in_the_next_one(city: City) -> None:
    await city.deploy()
    await city.pass_time()
    (host,) = await city.hosts()
    await host.sync("ready")
    assert len(await routes(city)) == 1
    city.cluster.exit(host.attempt_id)
    await city.pass_time(city.terms.lease_seconds + city.terms.margin_seconds + 1)
    assert await routes(city) == set()
    assert await states(city) == ["pending"]
    await city.pass_time(60)
    (successor,) = await city.hosts()
    assert successor.attempt_id != host.attempt_id
    refused = await host.try_sync("ready")
    assert (refused.status_code, refused.json()["code"]) == (409, "fence_lost")
    await successor.sync("ready")
    assert len(await routes(city)) == 1
    assert len(await city.replicas(ended=True)) == 1, "it is the same replica"


async def test_stopping_a_deployment_ends_its_replicas_and_leaves_no_hold(city: City) -> None:
    deployment = await city.deploy()
    await city.pass_time()
    (host,) = await city.hosts()
    await host.sync("ready")
    for _ in range(2):
        stopped = await city.admin.post(f"/api/deployments/{deployment['id']}/stop")
        assert (stopped.status_code, stopped.json()["state"]) == (200, "stopped")
    await city.pass_time()
    assert await routes(city) == set()
    assert (await host.sync("ready"))["command"] == "drain"
    await city.pass_time(5)
    await host.sync("draining")
    await city.pass_time()
    assert (await host.sync("draining"))["command"] == "stop"
    await host.finished("stopped", "stopped")
    await city.pass_time()
    assert await states(city) == [] and await states(city, ended=True) == ["gone"]
    async with city.db.transaction() as tx:
        assert await quotas.open_holds(tx) == []
    again = await city.admin.post(f"/api/deployments/{deployment['id']}/scale", json={"replicas": 2})
    assert (again.status_code, again.json()["code"]) == (409, "deployment_stopped")


async def test_a_replica_that_waits_in_the_queue_is_stopped_at_once(city: City) -> None:
    city.cluster.machines.clear()
    deployment = await city.deploy()
    await city.pass_time()
    (replica,) = await city.replicas()
    assert replica["state"] == "pending" and replica["reason"]
    await city.admin.post(f"/api/deployments/{deployment['id']}/stop")
    await city.pass_time()
    await city.pass_time()
    assert await states(city, ended=True) == ["gone"]


async def test_a_changed_model_rolls_to_new_engines_without_a_gap(city: City) -> None:
    await city.deploy()
    await city.pass_time()
    (old,) = await city.hosts()
    await old.sync("ready")
    changed = await city.admin.patch(f"/api/models/{BASE}", json={"revision": "2", "engine_arguments": {"seed": 7}})
    assert changed.status_code == 200, changed.text
    await city.pass_time()
    hosts = await city.hosts()
    (new,) = [host for host in hosts if host.attempt_id != old.attempt_id]
    assert new.params["engine_arguments"]["seed"] == 7 and new.params["generation"] == 2
    assert (await old.sync("ready"))["command"] == "run", "the old one serves until the new one does"
    await new.sync("ready")
    await city.pass_time()
    assert await routes(city) == {new.params["replica_id"]}
    assert (await old.sync("ready"))["command"] == "drain"


async def test_a_change_of_words_only_leaves_the_engines_alone(city: City) -> None:
    await city.deploy()
    await city.pass_time()
    (host,) = await city.hosts()
    await host.sync("ready")
    body = {"licence": "Apache-2.0 (with notice)", "deprecated_at": "2026-12-01T00:00:00Z"}
    assert (await city.admin.patch(f"/api/models/{BASE}", json=body)).status_code == 200
    await city.pass_time()
    assert len(await city.replicas()) == 1 and (await host.sync("ready"))["command"] == "run"


async def test_an_idempotency_key_makes_one_deployment_however_often_it_is_sent(city: City) -> None:
    body: dict[str, Any] = {"model": BASE, "kind": "shared", "pool": POOL}
    key = {"Idempotency-Key": "demo-1"}
    first = await city.admin.post("/api/deployments", json=body, headers=key)
    second = await city.admin.post("/api/deployments", json=body, headers=key)
    assert first.status_code == second.status_code == 201
    assert first.json()["id"] == second.json()["id"]
    other = await city.admin.post("/api/deployments", json=body | {"replicas": 2}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert len((await city.admin.get("/api/deployments")).json()) == 1


async def test_a_firms_dedicated_deployment_is_its_own_cost_and_only_its_own(city: City) -> None:
    studio, rival = await city.world.studio(), await city.world.studio()
    await city.give_quota(studio.firm_id)
    async with city.db.transaction() as tx:
        await record_topup(
            tx,
            key="t",
            firm_id=FirmId(studio.firm_id),
            amount=yuan(1000),
            evidence="slip",
            by="t",
            now=city.clock.now(),
        )
    deployment = await city.deploy(studio.owner, kind="dedicated")
    assert deployment["firm_id"] == studio.firm_id
    await city.pass_time()
    (host,) = await city.hosts()
    await host.sync("ready")
    async with city.db.transaction() as tx:
        table = await api.route_table(tx)
        held = [hold.firm_id for hold in await quotas.open_holds(tx)]
    assert table.deployments[deployment["id"]].firm_id == studio.firm_id
    assert held == [studio.firm_id]
    assert (await rival.owner.get(f"/api/deployments/{deployment['id']}")).status_code == 404
    assert (await rival.owner.get("/api/models")).json()[0]["replicas_ready"] == 0
    assert (await studio.owner.get("/api/models")).json()[0]["replicas_ready"] == 1


async def test_a_firm_sees_shared_deployments_but_cannot_touch_them(city: City) -> None:
    deployment = await city.deploy()
    studio = await city.world.studio()
    assert [one["id"] for one in (await studio.owner.get("/api/deployments")).json()] == [deployment["id"]]
    for action in ("stop", "restart"):
        answer = await studio.owner.post(f"/api/deployments/{deployment['id']}/{action}")
        assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed")
    assert (
        await studio.owner.post("/api/deployments", json={"model": BASE, "kind": "shared", "pool": POOL})
    ).status_code == 403
    assert (await city.admin.get(f"/api/deployments/{deployment['id']}")).json()["state"] == "active"


async def test_no_answer_of_any_route_shows_an_engines_key_or_address(city: City) -> None:
    deployment = await city.deploy()
    await city.pass_time()
    (host,) = await city.hosts()
    reply = await host.try_sync("ready")
    answers = [reply.text]
    for path in ("/api/models", "/api/deployments", f"/api/deployments/{deployment['id']}", "/api/replicas?ended=true",
                 "/api/engines", "/api/audit"):  # fmt: skip
        answer = await city.admin.get(path)
        assert answer.status_code == 200, (path, answer.text)
        answers.append(answer.text)
    assert [secrets_in(answer) for answer in answers] == [[]] * len(answers)


async def test_a_bad_report_is_refused_without_repeating_the_key(city: City) -> None:
    await city.deploy()
    await city.pass_time()
    (host,) = await city.hosts()
    refused = await host.try_sync("ready", engine_key="short")
    assert refused.status_code == 422
    refused = await host.try_sync("ready", surprise=1)
    assert refused.status_code == 422
    assert secrets_in(refused.text) == []


async def test_an_attempts_token_opens_only_its_own_attempt(city: City) -> None:
    await city.deploy(replicas=2)
    await city.pass_time()
    one, other = await city.hosts()
    answer = await one.http.post(f"/internal/v1/replicas/{other.attempt_id}/sync", json={"state": "ready"})
    assert answer.status_code == 404
    anonymous = city.world.anonymous
    assert (
        await anonymous.post(f"/internal/v1/replicas/{one.attempt_id}/sync", json={"state": "ready"})
    ).status_code == 401
    studio = await city.world.studio()
    assert (
        await studio.owner.post(f"/internal/v1/replicas/{one.attempt_id}/sync", json={"state": "ready"})
    ).status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "missing", "kind": "shared", "pool": POOL}, 404),
        ({"model": BASE, "kind": "shared", "pool": "nowhere"}, 422),
        ({"model": BASE, "kind": "free", "pool": POOL}, 422),
        ({"model": BASE, "kind": "shared", "pool": POOL, "replicas": -1}, 422),
        ({"model": BASE, "kind": "shared", "pool": POOL, "replicas": 10**30}, 422),
        ({"model": BASE, "kind": "shared", "pool": POOL, "replicas": "2"}, 422),
        ({"model": BASE, "kind": "shared", "pool": POOL, "replicas": 3, "replicas_max": 2}, 422),
        ({"model": BASE, "kind": "shared", "pool": POOL, "surprise": 1}, 422),
        ({"model": BASE, "kind": "dedicated", "pool": POOL}, 404),
        ({"model": BASE, "kind": "shared", "pool": POOL, "project_id": "prj_missing"}, 404),
    ],
)
async def test_a_deployment_that_cannot_be_is_refused_and_nothing_is_made(
    city: City, body: dict[str, Any], status: int
) -> None:
    answer: httpx.Response = await city.admin.post("/api/deployments", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["code"] and answer.json()["detail"]
    assert (await city.admin.get("/api/deployments")).json() == []


async def test_a_retired_model_is_not_deployed_again(city: City) -> None:
    gone = (city.clock.now() - timedelta(days=1)).isoformat()
    assert (
        await city.admin.patch(f"/api/models/{BASE}", json={"retires_at": gone, "deprecated_at": gone})
    ).status_code == 200
    answer = await city.admin.post("/api/deployments", json={"model": BASE, "kind": "shared", "pool": POOL})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_retired")
