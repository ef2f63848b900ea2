"""docs/scheduling.md is what the commands really print: a quote, a placed job, a waiting one, the queue, the decisions.

`HELIU_REWRITE=1 pytest tests/api/scheduler/test_scheduling_walk.py` writes it anew, and what the READMEs quote of it.
Ids and the spaces that line up columns may differ from run to run; everything else must be the same.
"""

import asyncio
import re
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from scheduler.cli import app as commands
from tests.support.scheduling import City, Firm
from tests.support.until import until_async
from tests.support.walks import READMES, Page

IN_README = ("heliu quote", "heliu job why", "heliu queue")
MODEL = "smollm2-135m-instruct"
POOL = "optics-valley/cpu-slot"


@dataclass
class Walk:
    """What was typed and what came back."""

    address: str
    home: Path
    lines: list[str] = field(default_factory=list[str])

    def say(self, text: str) -> None:
        self.lines.append(f"# {text}")

    async def run(self, command: str, token: str) -> str:
        env = {"HELIU_API_URL": self.address, "HELIU_HOME": str(self.home), "HELIU_TOKEN": token, "COLUMNS": "150"}
        result = await asyncio.to_thread(CliRunner().invoke, commands, shlex.split(command), env=env)
        assert result.exit_code == 0, result.output
        self.lines += [f"$ heliu {command}", *(line.rstrip() for line in result.stdout.splitlines() if line.strip())]
        return result.stdout


@pytest.fixture
async def address(city: City) -> AsyncIterator[str]:
    """The city's control plane, listening."""
    server = uvicorn.Server(uvicorn.Config(city.app, port=0, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())

    async def listens() -> bool:
        return server.started

    await until_async(listens, seconds=20, what="the server listens")
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    await serving


def token_of(http: httpx.AsyncClient) -> str:
    return http.headers["authorization"].removeprefix("Bearer ")


async def warm(city: City, firm: Firm, node: str) -> None:
    """A node whose programs read the model some time ago."""
    job_id = await city.submit(firm, gpus=2)
    await city.step()
    assert (await city.view(firm, job_id))["attempts"][0]["nodes"] == [node]
    runner = await city.runner(job_id)
    await runner.begin()
    await runner.tells({"worker": 0, "files": [], "models": [MODEL], "warm": [MODEL]})
    await runner.finished(ran_ms=1_000)


async def test_the_documents_commands_print_what_it_shows(
    city: City, staff: httpx.AsyncClient, address: str, tmp_path: Path
) -> None:
    firm, other, walk = await city.firm(quota=3), await city.firm(quota=1), Walk(address, tmp_path)
    await warm(city, firm, "n1")
    city.add_node("n0", 2)
    await city.pass_time(10)
    prompts = await city.upload(firm, "prompts.csv", b"prompt\nWho guards the Bridge of Nine Lanterns?\n")
    mine, admin = token_of(firm.http), token_of(staff)
    asked = f"text-batch --pool {POOL} -i prompts.csv={prompts} -p model={MODEL} --max-runtime 600"

    walk.say("before: what it may cost, who pays, when it starts and ends")
    await walk.run(f"quote {asked}", mine)
    batch = await city.submit(
        firm, recipe="text-batch", params={"model": MODEL}, inputs=[{"name": "prompts.csv", "source_id": prompts}],
        max_runtime_seconds=600, name="lines",
    )  # fmt: skip
    await city.step()
    walk.say("placed: on the node that has the model in its memory")
    await walk.run(f"job why {batch}", mine)
    render: list[str] = []
    for i in range(1, 4):
        more: dict[str, Any] = {"gpus": 2, "max_runtime_seconds": 900, "priority": -1 if i == 3 else 0}
        render.append(await city.submit(firm, name=f"render-{i}", **more))
        city.clock.advance(timedelta(seconds=1))
    await city.submit(firm, name="trailer", priority=5)
    for i in range(1, 3):
        await city.submit(other, name=f"colours-{i}")
    await city.step(2)
    walk.say("waiting: which rule holds it, what would let it start, when")
    await walk.run(f"job why {render[1]}", mine)
    walk.say("the platform's staff: who waits, on what each place rests, and what holds it")
    await walk.run("queue", admin)
    walk.say("and every decision again")
    await walk.run("replay", admin)

    written = "".join(f"{line}\n" for line in walk.lines)
    PAGE.holds(written)


def test_what_the_readmes_quote_stands_in_the_walk() -> None:
    assert list(PAGE.quoted()) == [_quote(PAGE.walk())] * len(READMES)


def _quote(walk: str) -> str:
    """The commands that the READMEs show, with what they print."""
    parts = re.split(r"^(?=[$#] )", walk, flags=re.MULTILINE)
    return "".join(part for part in parts if part.removeprefix("$ ").startswith(IN_README))


PAGE = Page("scheduling", re.compile(r"\b([a-z]{2,6})_[0-9a-z]{8,}…?|(?<=--after) \d+-\d+"), _quote)
