"""Budgets and the month's tokens over several gateways: exactly what they leave is served, the rest says why not."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import httpx
from sqlalchemy import text

from kit.auth import SYSTEM
from kit.clock import utc_now
from kit.db import Database
from quotas.applications import review
from quotas.budgets import BudgetSpec, set_budget
from quotas.ceilings import set_ceilings
from quotas.keys import KeySpec, issue_key, key_row, rotate_key
from quotas.vocabulary import Ceilings, ReviewStep, Scope
from serving.gateway.bench_target import Furnished, furnish
from tests.support.gateway_process import GatewayProcess, gateway_process
from tests.support.gateways import chat, post, request
from tests.support.mock_engines import mock_engine
from tests.support.until import until_async

ENGINE_KEY = "engine-key-0123456789-0123456789-0123456789"
OUTPUT = 10
BODY = chat(model="city-model", max_tokens=OUTPUT)
PROMPT = len(request(BODY).partition(b"\r\n\r\n")[2]) + 256
COST = PROMPT + 2 * OUTPUT
"""What a request may cost in micro-yuan: input at 1, output at 2."""


async def storm(gateways: Sequence[GatewayProcess], key: str, count: int) -> Counter[str]:
    """So many requests at once, spread over the gateways; how often each answer came."""
    ports = itertools.cycle(gateway.port for gateway in gateways)
    answers = await asyncio.gather(*(post(next(ports), BODY, key=key) for _ in range(count)))
    said = [answer.json().get("error", {}).get("code", "") for answer in answers]
    return Counter(f"{answer.status} {code}".strip() for answer, code in zip(answers, said, strict=True))


async def ready(*gateways: GatewayProcess) -> None:
    """Return once every gateway knows what it can route to."""

    async def answers(url: str) -> bool:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{url}/readyz")).status_code == 200

    for gateway in gateways:
        await until_async(lambda url=gateway.url: answers(url), seconds=30, what="a ready gateway")


async def budget(db: Database, made: Furnished, amount: int, *, of_key: bool) -> None:
    spec = BudgetSpec(made.firm_id, amount, (100,), True, key_id=made.key_id if of_key else None)
    async with db.transaction() as tx:
        await set_budget(tx, spec, by=SYSTEM, now=utc_now())


async def charged(db: Database, made: Furnished, requests: int) -> bool:
    async with db.transaction() as tx:
        query = text("SELECT coalesce(sum(requests), 0) FROM quotas.charge WHERE firm_id = :firm")
        return (await tx.execute(query, {"firm": made.firm_id})).scalar_one() >= requests


async def test_a_keys_budget_is_exact_over_gateways_and_rotation_and_stops_nobody_else(
    db: Database, database_url: str, tmp_path: Path
) -> None:
    with mock_engine("--key", ENGINE_KEY, "--model", "city-model", "--interval-ms", "300") as engine:
        made = await furnish(db, [engine.url], model="city-model", engine_key=ENGINE_KEY)
        await budget(db, made, 10 * COST + COST // 2, of_key=True)
        async with db.transaction() as tx:
            row = await key_row(tx, made.key_id)
            rotated = await rotate_key(tx, row, overlap=timedelta(hours=1), by=SYSTEM, now=utc_now())
        with gateway_process(database_url, tmp_path / "a") as a, gateway_process(database_url, tmp_path / "b") as b:
            await ready(a, b)
            both = await asyncio.gather(storm([a, b], made.key, 20), storm([a, b], rotated.token, 20))
            assert sum(both, Counter()) == {"200": 10, "402 budget_reached": 30}


async def test_the_months_tokens_are_exact_over_gateways(db: Database, database_url: str, tmp_path: Path) -> None:
    with mock_engine("--key", ENGINE_KEY, "--model", "city-model", "--interval-ms", "300") as engine:
        made = await furnish(db, [engine.url], model="city-model", engine_key=ENGINE_KEY)
        limits = Ceilings(tokens_per_period=5 * (PROMPT + OUTPUT) + OUTPUT)
        async with db.transaction() as tx:
            await set_ceilings(tx, made.firm_id, None, limits, by=SYSTEM, now=utc_now())
        with gateway_process(database_url, tmp_path / "a") as a, gateway_process(database_url, tmp_path / "b") as b:
            await ready(a, b)
            assert await storm([a, b], made.key, 16) == {"200": 5, "429 limit_tokens": 11}
            await until_async(lambda: charged(db, made, 5), seconds=20, what="the usage of five requests")
            again = await storm([a, b], made.key, 2)
            assert again == {"200": 2}, "what was reserved and not used is free again, whichever gateway has it"


async def test_a_budget_set_while_a_gateway_holds_money_stops_it_within_two_seconds(
    db: Database, database_url: str, tmp_path: Path
) -> None:
    with mock_engine("--key", ENGINE_KEY, "--model", "city-model") as engine:
        made = await furnish(db, [engine.url], model="city-model", engine_key=ENGINE_KEY)
        with gateway_process(database_url, tmp_path / "a") as a:
            await ready(a)
            assert await storm([a], made.key, 3) == {"200": 3}
            await budget(db, made, 1, of_key=False)

            async def stopped() -> bool:
                return await storm([a], made.key, 1) == {"402 budget_reached": 1}

            await until_async(stopped, seconds=2, what="the hard stop")


async def test_an_expired_key_and_the_keys_of_a_suspended_firm_stop_within_two_seconds(
    db: Database, database_url: str, tmp_path: Path
) -> None:
    with mock_engine("--key", ENGINE_KEY, "--model", "city-model") as engine:
        made = await furnish(db, [engine.url], model="city-model", engine_key=ENGINE_KEY)
        with gateway_process(database_url, tmp_path / "a") as a:
            await ready(a)
            spec = KeySpec("short", frozenset({Scope.INFERENCE}), expires_at=utc_now() + timedelta(seconds=3))
            async with db.transaction() as tx:
                short = await issue_key(tx, made.firm_id, spec, by=SYSTEM, now=utc_now())
            assert await storm([a], short.token, 1) == {"200": 1}

            async def refused(key: str) -> bool:
                return (await storm([a], key, 1)) == {"401 invalid_api_key": 1}

            await until_async(lambda: refused(short.token), seconds=5, what="the expiry")
            assert await storm([a], made.key, 1) == {"200": 1}
            async with db.transaction() as tx:
                await review(tx, made.firm_id, ReviewStep.SUSPEND, by=SYSTEM, now=utc_now(), reason="unpaid")
            await until_async(lambda: refused(made.key), seconds=2, what="the suspension")
