"""A large month: one firm's statement, and closing everybody's."""

import resource
from datetime import UTC, datetime
from time import perf_counter

import psycopg
from sqlalchemy import text

from benchmarks.ledger.server import Server
from benchmarks.results import Row
from kit.db import Database
from quotas.ledger_service import sweep
from quotas.statement_service import statement
from quotas.vocabulary import FirmId

MONTH = "2026-10"
AFTER_GRACE = datetime(2026, 11, 10, tzinfo=UTC)
LINES = 200
FIRMS = 500
RECORDS = 5_000_000
CHUNK = 500_000


async def statement_of_a_million(running: Server) -> Row:
    """A firm's month with a million usage records on 200 lines."""
    with running.connect() as connection:
        _firms(connection, "bench", 1)
        _lines(connection, "bench", 1, requests=5000)
        _records(connection, "bench", 1, 0, 1_000_000)
    db = Database(running.url)
    started = perf_counter()
    async with db.transaction() as tx:
        month = await statement(tx, FirmId("firm_bench_1"), MONTH, AFTER_GRACE)
    spent = perf_counter() - started
    await db.close()
    assert sum(line.quantities["requests"] for line in month.lines) == 1_000_000
    return Row("statement_1m_seconds", spent, "s", target="<= 5", met=spent <= 5)


async def close_five_million(running: Server) -> list[Row]:
    """The sweeper closes the month of 500 firms with 5,000,000 usage records on 100,000 lines."""
    with running.connect() as connection:
        connection.execute("SET synchronous_commit = off")
        _firms(connection, "close", FIRMS)
        _lines(connection, "close", FIRMS, requests=RECORDS // (FIRMS * LINES))
        for start in range(0, RECORDS, CHUNK):
            _records(connection, "close", FIRMS, start, CHUNK)
        connection.execute("VACUUM ANALYZE quotas.charge, quotas.token_usage")
    db = Database(running.url)
    started = perf_counter()
    while await sweep(db, AFTER_GRACE):
        pass
    spent = perf_counter() - started
    async with db.transaction() as tx:
        closed = (
            await tx.execute(text("SELECT count(*) FROM quotas.statement WHERE firm_id LIKE 'firm\\_close%'"))
        ).scalar_one()
    await db.close()
    assert closed == FIRMS, f"{closed} of {FIRMS} statements are closed"
    # The whole benchmark's peak, so never less than what closing took.
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        Row("close_5m_seconds", spent, f"s, {FIRMS} firms, {RECORDS:,} records", target="<= 180", met=spent <= 180),
        Row("close_5m_mb", megabytes, "MB, peak of the process", target="<= 500", met=megabytes <= 500),
    ]


def _firms(connection: psycopg.Connection, name: str, many: int) -> None:
    connection.execute(
        """INSERT INTO quotas.firm (id, kind, name, state, uscc, doubts, industry_cluster, district, contact_name,
            contact_email, applied_at, state_since)
        SELECT 'firm_' || %(name)s || '_' || g, 'company', %(name)s || g, 'active',
            upper(substr(md5(%(name)s || g), 1, 18)), '{doubted}', 'online_games', 'd', 'c', 'c@example.com', now(),
            now()
        FROM generate_series(1, %(many)s) g""",
        {"name": name, "many": many},
    )


def _lines(connection: psycopg.Connection, name: str, firms: int, *, requests: int) -> None:
    connection.execute(
        """INSERT INTO quotas.charge (id, line_key, kind, firm_id, project_id, subject, period, service_period,
            key_id, model, input, output, requests, rates, amount, voucher, cash, vouchers, list_amount,
            first_at, last_at, explanation)
        SELECT 'chg_' || %(name)s || f || '_' || g, %(name)s || f || ' ' || g, 'tokens',
            'firm_' || %(name)s || '_' || f, 'prj', 'key m', %(month)s, %(month)s, 'key_' || g, 'm', %(many)s, %(many)s,
            %(many)s, '{}', 10000, 0, 10000, '{}', 10000, now(), now(), '[]'
        FROM generate_series(1, %(firms)s) f, generate_series(1, %(lines)s) g""",
        {"name": name, "month": MONTH, "many": requests, "firms": firms, "lines": LINES},
    )


def _records(connection: psycopg.Connection, name: str, firms: int, start: int, many: int) -> None:
    connection.execute(
        """INSERT INTO quotas.token_usage (source, id, firm_id, project_id, key_id, model, base_model, input,
            cached_input, output, at, outcome, dedicated, charge_id, ingested_at)
        SELECT %(name)s, lpad(g::text, 9, '0'), 'firm_' || %(name)s || '_' || (1 + g %% %(firms)s), 'prj',
            'key_' || (1 + g / %(firms)s %% %(lines)s), 'm', 'm', 1, 0, 1, now(), 'stop', false,
            'chg_' || %(name)s || (1 + g %% %(firms)s) || '_' || (1 + g / %(firms)s %% %(lines)s), now()
        FROM generate_series(%(start)s, %(start)s + %(many)s - 1) g""",
        {"name": name, "firms": firms, "lines": LINES, "start": start, "many": many},
    )
