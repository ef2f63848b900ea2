"""How fast the ledger posts, beside pgbench on the same server in the same run.

`python -m benchmarks.ledger [--quick]`: every figure is the median of rounds in which the two take turns.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import psycopg

from benchmarks.ledger.server import Server, server
from benchmarks.results import Row, publish
from kit.db import Database
from kit.units import Tokens
from quotas.pricing import Meter, RateKey
from quotas.statement_service import statement
from quotas.tariffs import publish_tariff
from quotas.usage import ingest_tokens
from quotas.vocabulary import PLATFORM_FIRM, FirmId, KeyId, ModelName, ProjectId, TokenUsage

FIRMS = 1000
BATCH = 500
FIRMS_PER_BATCH = 50
REQUEST = r"'\x" + "00" * 32 + "'::bytea"
HOLD = f"""
select transfer_id as held from quotas.post_one('hold', 'b' || :key, {REQUEST}, now(), null, 'pending', :firm,
    {FIRMS + 1}, 1000, null, now() + interval '1 day') \\gset
"""
POST = f"""
select operation_id from quotas.post_one('post', 'b' || :key, {REQUEST}, now(), null, 'post', null, null, 900, :held,
    null)
"""
PAIR = f"\\set firm random(1, {FIRMS})\n\\set key random(1, 1000000000000000)" + (HOLD + POST).replace("\n    ", " ")
HOT_PAIR = "\\set dice random(1, 10)\n" + PAIR.replace(
    "\\set key", "\\set firm case when :dice = 1 then 1 else :firm end\n\\set key"
)
BATCHED = f"""
\\set key random(1, 1000000000000000)
\\set shift random(0, 900)
select done.operation_id, done.refusal from (
 select array_agg('posted'::quotas.transfer_kind) k,
 array_agg(1 + (g % {FIRMS_PER_BATCH} + :shift)::bigint % {FIRMS}) d,
 array_agg({FIRMS + 1}::bigint) c, array_agg(1 + g::bigint % 50) a, array_agg(null::bigint) p, array_agg(true) f,
 array_agg(null::timestamptz) e from generate_series(1, {BATCH}) g) legs,
 lateral quotas.post('batch', 'b' || :key, {REQUEST}, now(), null, k, d, c, a, p, f, e) done
""".replace("\n ", " ")


def main() -> None:
    """Run and print."""
    options = argparse.ArgumentParser(prog="benchmarks.ledger")
    options.add_argument("--quick", action="store_true", help="under a minute; leaves the large ledger out")
    quick = options.parse_args().quick
    with server() as running:
        rows = _measure(running, quick)
    publish("ledger", rows)
    sys.exit(0 if all(row.met is not False for row in rows) else 1)


def _measure(running: Server, quick: bool) -> list[Row]:
    with running.connect() as connection:
        _open_accounts(connection)
    running.prepare_pgbench()
    rounds, seconds = (3, 3) if quick else (5, 10)
    rows = _beside_pgbench(running, rounds, seconds)
    rows.append(asyncio.run(_ingest(running, 20 if quick else 100)))
    if not quick:
        rows += _at_ten_million(running, rows, seconds)
        rows.append(asyncio.run(_statement_of_a_million(running)))
    return rows


def _open_accounts(connection: psycopg.Connection) -> None:
    connection.execute(
        """INSERT INTO quotas.account (code, asset, owner, bounded, opened_at)
        SELECT 'bench:' || g, 'CNY', 'bench', g <= %s, now() FROM generate_series(1, %s) g""",
        (FIRMS, FIRMS + 1),
    )
    connection.execute(
        "INSERT INTO quotas.balance (account_id, floor) SELECT id, CASE WHEN bounded THEN 0 END FROM quotas.account"
    )
    # Money from nowhere: this ledger is measured, not audited.
    connection.execute("UPDATE quotas.balance SET credits_posted = 1000000000000000 WHERE floor = 0")
    connection.execute("VACUUM ANALYZE")


def _scripts(running: Server) -> dict[str, Callable[[float], float]]:
    files = {name: running.folder.parent / f"{name}.sql" for name in ("pairs", "pairs_hot", "batched")}
    for (_, path), script in zip(files.items(), (PAIR, HOT_PAIR, BATCHED), strict=True):
        path.write_text(script)

    def run(path: Path, times: int = 1) -> Callable[[float], float]:
        return lambda seconds: times * running.pgbench("-f", str(path), seconds=seconds)

    return {
        "simple": lambda seconds: running.pgbench("-b", "simple-update", seconds=seconds),
        "pairs": run(files["pairs"]),
        "pairs_hot": run(files["pairs_hot"]),
        "batched": run(files["batched"], BATCH),
    }


def _beside_pgbench(running: Server, rounds: int, seconds: float) -> list[Row]:
    scripts = _scripts(running)
    seen: dict[str, list[float]] = {name: [] for name in scripts}
    for _ in range(rounds):
        for name, run in scripts.items():
            seen[name].append(run(seconds))
    simple = statistics.median(seen["simple"])
    rows = [Row("pgbench_simple_update", simple, "transactions/s")]
    for name, unit, target in (
        ("pairs", "hold-then-post pairs/s", 0.5),
        ("pairs_hot", "pairs/s, every tenth on one firm", 0.35),
        ("batched", f"transfers/s, {BATCH} a batch", 5),
    ):
        # A ratio of each round, because the machine's mood changes between rounds.
        ratio = statistics.median(one / base for one, base in zip(seen[name], seen["simple"], strict=True))
        rows.append(
            Row(
                f"{name}_vs_pgbench",
                statistics.median(seen[name]),
                unit,
                f"simple-update {simple:,.0f}/s",
                ratio,
                f">= {target}",
                ratio >= target,
            )
        )
    return rows


async def _ingest(running: Server, batches: int) -> Row:
    """Token records kept, priced and charged, in the gateway's batches."""
    db = Database(running.url)
    now, model = datetime.now(UTC), ModelName("m")
    async with db.transaction() as tx:
        rates = {RateKey(Meter.INPUT, model): 1_000_000, RateKey(Meter.OUTPUT, model): 2_000_000}
        await publish_tariff(tx, name="bench", valid_from=None, rates=rates, by="bench", now=now)
    numbers = itertools.count()
    started = perf_counter()
    for _ in range(batches):
        batch = [
            TokenUsage(
                id=str(next(numbers)),
                source="gateway",
                key_id=KeyId(f"key_{index % 20}"),
                firm_id=PLATFORM_FIRM,
                project_id=ProjectId("prj_platform"),
                model=model,
                base_model=model,
                input=Tokens(900),
                cached_input=Tokens(300),
                output=Tokens(120),
                at=now,
                outcome="stop",
            )
            for index in range(BATCH)
        ]
        async with db.transaction() as tx:
            await ingest_tokens(tx, batch, now=now)
    spent = perf_counter() - started
    await db.close()
    return Row("usage_records", batches * BATCH / spent, f"records/s, one connection, batches of {BATCH}")


def _at_ten_million(running: Server, before: list[Row], seconds: float) -> list[Row]:
    """What ten million transfers cost the speed of the next ones."""
    with running.connect() as connection:
        connection.execute("SET synchronous_commit = off")
        for step in range(20):
            connection.execute(
                """WITH made AS (
                    INSERT INTO quotas.operation (scope, key, request_hash, at, transfer_ids)
                    SELECT 'load', %(step)s::text || ' ' || g, decode(repeat('00', 32), 'hex'), now(), '{}'
                    FROM generate_series(1, 500000) g RETURNING id)
                INSERT INTO quotas.transfer (operation_id, kind, debit_id, credit_id, amount, final, at)
                SELECT id, 'posted', 1 + id %% %(firms)s, %(firms)s + 1, 1, false, now() FROM made""",
                {"step": step, "firms": FIRMS},
            )
        connection.execute("VACUUM ANALYZE quotas.transfer, quotas.operation")
    after = _beside_pgbench(running, 3, seconds)
    ratio = {row.metric: row.ratio or 0 for row in before}
    worst = max(1 - (row.ratio or 0) / ratio[row.metric] for row in after if row.metric in ratio and row.ratio)
    return [
        Row(
            "slowdown_at_10m", worst, "share of speed lost", "the same at an empty ledger", None, "<= 0.2", worst <= 0.2
        )
    ]


async def _statement_of_a_million(running: Server) -> Row:
    """A firm's month with a million usage records on 200 lines."""
    with running.connect() as connection:
        connection.execute(
            """INSERT INTO quotas.firm (id, kind, name, state, uscc, doubts, industry_cluster, district, contact_name,
                contact_email, applied_at, state_since)
            VALUES ('firm_bench', 'company', 'bench', 'active', '91420100MA4K00001X', '{}', 'online_games', 'd', 'c',
                'c@example.com', now(), now())"""
        )
        connection.execute(
            """INSERT INTO quotas.charge (id, line_key, kind, firm_id, project_id, subject, period, service_period,
                key_id, model, input, output, requests, rates, amount, voucher, cash, vouchers, list_amount,
                first_at, last_at, explanation)
            SELECT 'chg_' || g, 'l' || g, 'tokens', 'firm_bench', 'prj', 'key m', '2026-10', '2026-10', 'key_' || g,
                'm', 5000, 5000, 5000, '{}', 10000, 0, 10000, '{}', 10000, now(), now(), '[]'
            FROM generate_series(1, 200) g"""
        )
        connection.execute(
            """INSERT INTO quotas.token_usage SELECT 'bench', g::text, 'firm_bench', 'prj', 'key_' || (1 + g % 200),
                'm', 'm', 1, 0, 1, now(), 'stop', NULL, false, 'chg_' || (1 + g % 200), now()
            FROM generate_series(1, 1000000) g"""
        )
    db = Database(running.url)
    started = perf_counter()
    async with db.transaction() as tx:
        month = await statement(tx, FirmId("firm_bench"), "2026-10", datetime.now(UTC))
    spent = perf_counter() - started
    await db.close()
    assert sum(line.quantities["requests"] for line in month.lines) == 1_000_000
    return Row("statement_1m_seconds", spent, "s", target="<= 5", met=spent <= 5)


if __name__ == "__main__":
    main()
