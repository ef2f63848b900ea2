"""A gateway with a ready key and model in front of any engine, so that an outside load generator can drive it.

Everything the real one has is on: a firm with money, a tariff, a key with limits, leases, the durable log and the
ledger, on a PostgreSQL of its own. Only the replica is declared instead of started: the engine runs already.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from kit.auth import SYSTEM
from kit.clock import utc_now
from kit.db import Database, notify
from kit.ids import new_id
from kit.migrate import run_migrations
from kit.postgres import start_embedded, stop_embedded
from kit.settings import Settings
from kit.units import MicroYuan
from quotas import api as quotas
from quotas.vocabulary import PLATFORM_FIRM, FirmId, IndustryCluster, KeyId, QoS, ReviewStep, Scope
from scheduler import api as scheduler
from serving import api as serving
from serving import catalogue, deployments
from serving.adapters.tables import EngineKeyRow, ReplicaRow
from serving.catalogue import ModelSpec
from serving.deployments import DeploymentSpec
from serving.vocabulary import REPLICAS_CHANNEL, Capability, DeploymentKind, Modality, ReplicaState

MILLION_YUAN = MicroYuan(10**12)
REQUESTS_PER_MINUTE = 100_000_000
"""High enough never to refuse a load generator; the counting is done all the same."""


@dataclass(frozen=True, slots=True)
class Furnished:
    """What a client needs, and whom it belongs to."""

    key: str
    key_id: KeyId
    model: str
    firm_id: FirmId


async def furnish(
    db: Database,
    engines: Sequence[str],
    *,
    model: str,
    engine_key: str = "",
    context_tokens: int = 2048,
    max_concurrency: int = 4096,
    paid_in: int = MILLION_YUAN,
    others: Sequence[ModelSpec] = (),
    sees: bool = False,
) -> Furnished:
    """A firm with money, prices, a key, and `model` (and `others`) served by the engines at these addresses."""
    now = utc_now() - timedelta(seconds=1)
    body = "91420100" + f"{abs(hash(new_id('x'))) % 10**9:09d}"
    application = quotas.Application(
        uscc=body + quotas.check_character(body), name="Bench Studio", industry_cluster=IndustryCluster.ONLINE_GAMES,
        district="East Lake", contact_name="Li", contact_email="li@example.com", contact_phone=None,
        owner_name="Li", owner_email=f"{new_id('li')}@example.com", password=new_id("pw"),
    )  # fmt: skip
    firm = await quotas.apply(db, application, now=now)
    firm_id = FirmId(firm.id)
    async with db.transaction() as tx:
        for step in (ReviewStep.TAKE, ReviewStep.APPROVE):
            await quotas.review(tx, firm_id, step, by=SYSTEM, now=now)
        await quotas.record_topup(
            tx, key=new_id("op"), firm_id=firm_id, amount=MicroYuan(paid_in), evidence="bench", by="system", now=now
        )
        spec = quotas.KeySpec(
            "bench", frozenset({Scope.INFERENCE}), requests_per_minute=REQUESTS_PER_MINUTE,
            tokens_per_minute=REQUESTS_PER_MINUTE * 1_000,
        )  # fmt: skip
        issued = await quotas.issue_key(tx, firm_id, spec, by=SYSTEM, now=now)
    capabilities = frozenset({Capability.CHAT, Capability.COMPLETIONS, Capability.TOOLS})
    if sees:
        capabilities |= {Capability.VISION}
    modality = Modality.IMAGE_TEXT if sees else Modality.TEXT
    spec = ModelSpec(
        model, model, "bench", "Apache-2.0", modality, context_tokens, capabilities, model, "1", max_loras=0
    )
    await _publish_prices(db, [spec.name, *(other.name for other in others)])
    for offered in (spec, *others):
        await _serve(db, engines, offered, engine_key, max_concurrency)
    return Furnished(issued.token, KeyId(issued.key.id), model, firm_id)


async def _publish_prices(db: Database, models: Sequence[str]) -> None:
    prices = {quotas.Meter.INPUT: 1_000_000, quotas.Meter.CACHED_INPUT: 250_000, quotas.Meter.OUTPUT: 2_000_000}
    rates = {quotas.RateKey(meter, model): price for model in models for meter, price in prices.items()}
    now = utc_now()
    async with db.transaction() as tx:
        await quotas.publish_tariff(
            tx, name=new_id("bench"), valid_from=None, rates=rates, ends_prices=True, by="system", now=now
        )


async def _serve(db: Database, engines: Sequence[str], spec: ModelSpec, engine_key: str, max_concurrency: int) -> None:
    now, model = utc_now(), spec.name
    async with db.transaction() as tx:
        await catalogue.register_model(tx, spec, by=SYSTEM, now=now)
        project = await quotas.project_of(tx, None, PLATFORM_FIRM)
        deployment = await deployments.create(
            tx,
            DeploymentSpec(
                model, DeploymentKind.SHARED, PLATFORM_FIRM, project.id, "bench/engine", QoS.STANDARD, 0, 0, 64
            ),
            by=SYSTEM,
            now=now,
        )
        for url in engines:
            row = ReplicaRow(
                id=new_id("rep"), workload_id=new_id("rep"), attempt_id=new_id("att"), deployment_id=deployment.id,
                model=model, generation=deployment.generation, max_concurrency=max_concurrency,
                state=ReplicaState.READY.value, url=url, engine_start=new_id("eng"), created_at=now,
                changed_at=now, ready_at=now,
            )  # fmt: skip
            tx.add(row)
            await tx.flush()
            assert row.engine_start is not None
            tx.add(
                EngineKeyRow(
                    replica_id=row.id,
                    engine_start=row.engine_start,
                    secret=engine_key or "no-key-is-asked-by-this-engine-000000000",
                )
            )
        await notify(tx, REPLICAS_CHANNEL, "*")


def run(*engines: str, model: str, port: int = 0, engine_key: str = "", context_tokens: int = 2048) -> None:
    """Print one line of JSON (`url`, `api_key`, `model`) once it serves, and serve until SIGTERM or Ctrl-C."""
    folder = Path(tempfile.mkdtemp(prefix="heliu-bench-"))
    folder.chmod(0o755)  # as root, the server is another user and must be able to walk there
    try:
        url = start_embedded(folder / "postgres")
        run_migrations(url, [quotas.MIGRATIONS, scheduler.MIGRATIONS, serving.MIGRATIONS])
        _serve_forever(url, folder, engines, model=model, port=port, engine_key=engine_key, context=context_tokens)
    finally:
        stop_embedded(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)


def _serve_forever(
    url: str, folder: Path, engines: Sequence[str], *, model: str, port: int, engine_key: str, context: int
) -> None:
    import uvloop  # only the gateway's process needs its loop

    from serving.gateway.main import serve
    from serving.gateway.settings import GatewaySettings

    async def prepare() -> Furnished:
        db = Database(url)
        try:
            # The engine itself says when it sees no images.
            return await furnish(db, engines, model=model, engine_key=engine_key, context_tokens=context, sees=True)
        finally:
            await db.close()

    furnished = asyncio.run(prepare())

    def announce(listening: int) -> None:
        line = {"url": f"http://127.0.0.1:{listening}", "api_key": furnished.key, "model": model}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    settings = Settings(home=folder, database_url=url, gateway_port=port)
    uvloop.run(serve(settings, GatewaySettings(metrics_port=0, concurrency_per_key=None), ready=announce))
