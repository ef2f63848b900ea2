"""What runs on the leader, and the commands people type."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
import typer
import uvicorn
from fastapi import FastAPI
from sqlalchemy import text
from typer.testing import CliRunner

from kit.blobs import Blobs
from kit.clock import SystemClock
from kit.db import Database
from kit.settings import Settings
from serving import cli
from serving.main import run_background
from tests.api.serving.conftest import City
from tests.support.adapters import BASE
from tests.support.money import POOL
from tests.support.serving import add_model, deploy
from tests.support.until import until_async


async def test_the_leader_launches_what_is_missing_and_ends_when_told(db: Database, blobs: Blobs) -> None:
    stop = asyncio.Event()
    clock = SystemClock()
    work = asyncio.create_task(run_background(db, blobs, clock, Settings(), stop))

    async def replicas() -> int:
        async with db.transaction() as tx:
            return (await tx.execute(text("SELECT count(*) FROM serving.replica"))).scalar_one()

    async with db.transaction() as tx:
        await add_model(tx, now=clock.now())
        await deploy(tx, now=clock.now(), replicas=2)
    await until_async(replicas, seconds=20, what="a replica")
    stop.set()
    await asyncio.wait_for(work, 20)
    assert await replicas() == 2, "every missing replica is launched, once"


@contextlib.asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """The app on a port of its own, for callers that are no coroutines."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    await until_async(lambda: _true(server.started), seconds=20, what="the server")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


async def _true(value: bool) -> bool:
    return value


async def test_the_commands_list_deploy_scale_and_stop(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    token = city.admin.headers["authorization"].removeprefix("Bearer ")

    root = typer.Typer()
    for name in ("model", "adapter", "deploy", "replica"):
        root.add_typer(getattr(cli, name), name=name)

    async def heliu(*words: str) -> str:
        ran = await asyncio.to_thread(CliRunner().invoke, root, list(words))
        assert ran.exit_code == 0, ran.output
        return ran.output

    async with listening(city.app) as url:
        monkeypatch.setenv("HELIU_API_URL", url)
        monkeypatch.setenv("HELIU_TOKEN", token)
        assert [one["name"] for one in json.loads(await heliu("model", "list", "--json"))] == [BASE]
        made = json.loads(await heliu("deploy", "create", BASE, "--pool", POOL, "--shared", "--json"))
        scaled = json.loads(await heliu("deploy", "scale", made["id"], "3", "--json"))
        assert (scaled["replicas"], scaled["replicas_max"]) == (3, 3)
        await city.pass_time()
        assert len(json.loads(await heliu("replica", "list", "--deployment", made["id"], "--json"))) == 3
        assert "pending" in await heliu("replica", "list")
        assert json.loads(await heliu("adapter", "list", "--json")) == []
        assert json.loads(await heliu("deploy", "stop", made["id"], "--json"))["state"] == "stopped"
        refused = await asyncio.to_thread(CliRunner().invoke, root, ["deploy", "show", "dep_missing"])
        assert refused.exit_code == 1
