"""How fast the ledger posts, beside pgbench on the same server in the same run.

`python -m benchmarks.ledger [--quick]`: every ratio is the median of rounds in which the two take turns.
"""

import argparse
import asyncio
import itertools
import sys
from datetime import UTC, datetime
from time import perf_counter

from benchmarks.ledger.ceilings import effective_limits_speed
from benchmarks.ledger.months import close_five_million, statement_of_a_million
from benchmarks.ledger.postings import BATCH, at_ten_million, beside_pgbench, open_accounts
from benchmarks.ledger.server import Server, server
from benchmarks.results import Row, publish
from kit.db import Database
from kit.units import Tokens
from quotas.pricing import Meter, RateKey
from quotas.tariffs import publish_tariff
from quotas.usage import ingest_tokens
from quotas.vocabulary import PLATFORM_FIRM, KeyId, ModelName, ProjectId, TokenUsage


def main() -> None:
    """Run and print."""
    options = argparse.ArgumentParser(prog="benchmarks.ledger")
    options.add_argument("--quick", action="store_true", help="under a minute; leaves the large ledgers out")
    quick = options.parse_args().quick
    with server() as running:
        rows = _measure(running, quick)
    publish("ledger", rows)
    sys.exit(0 if all(row.met is not False for row in rows) else 1)


def _measure(running: Server, quick: bool) -> list[Row]:
    with running.connect() as connection:
        open_accounts(connection)
    running.prepare_pgbench()
    rounds, seconds = (5, 1) if quick else (7, 5)
    rows = beside_pgbench(running, rounds, seconds)
    rows.append(asyncio.run(_ingest(running, 20 if quick else 100)))
    rows += asyncio.run(effective_limits_speed(running, 500 if quick else 3000))
    if not quick:
        months = running.add_database("months")
        rows.append(asyncio.run(statement_of_a_million(months)))
        rows += asyncio.run(close_five_million(months))
        rows += at_ten_million(running, rounds, seconds)
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


if __name__ == "__main__":
    main()
