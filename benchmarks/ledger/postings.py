"""Postings by pgbench, beside pgbench's own simple-update in turns on the same server."""

import statistics
from collections.abc import Callable

import psycopg

from benchmarks.ledger.server import Server
from benchmarks.results import Row

FIRMS = 1000
BATCH = 500
FIRMS_PER_BATCH = 50
LARGE = "large"
LOADED = 10_000_000
STEP = 500_000
REQUEST = r"'\x" + "00" * 32 + "'::bytea"
HOLD = f"""
select quotas.take_one('hold', 'b' || :key, {REQUEST}, now(), null, 'pending', :firm, {FIRMS + 1}, 1000,
    now() + interval '1 day') as held \\gset
"""
POST = f"""
select quotas.resolve_one('post', 'b' || :key, {REQUEST}, now(), null, 'post', :held, 900)
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
WIDE = BATCHED.replace(f"g % {FIRMS_PER_BATCH} +", f"g % {BATCH} +")
SCRIPTS = {"pairs": (PAIR, 1), "pairs_hot": (HOT_PAIR, 1), "batched": (BATCHED, BATCH), "batched_wide": (WIDE, BATCH)}
TARGETS = (
    ("pairs", "hold-then-post pairs/s", 0.5),
    ("pairs_hot", "pairs/s, every tenth on one firm", 0.35),
    ("batched", f"transfers/s, {BATCH} a batch over {FIRMS_PER_BATCH} firms", 5),
    ("batched_wide", f"transfers/s, {BATCH} a batch over {BATCH} firms", 5),
)


def open_accounts(connection: psycopg.Connection) -> None:
    """A thousand firms with money and one revenue account, their ids 1 to 1,001."""
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


def beside_pgbench(running: Server, rounds: int, seconds: float) -> list[Row]:
    """Each script and simple-update in turns; ratios are medians of rounds, for a machine's mood changes."""
    scripts = _scripts(running)
    seen: dict[str, list[float]] = {name: [] for name in scripts}
    for _ in range(rounds):
        for name, speeds in seen.items():
            speeds.append(scripts[name](seconds, "postgres"))
    simple = statistics.median(seen["simple"])
    rows = [Row("pgbench_simple_update", simple, "transactions/s")]
    for name, unit, target in TARGETS:
        ratio = statistics.median(one / base for one, base in zip(seen[name], seen["simple"], strict=True))
        value, reference = statistics.median(seen[name]), f"simple-update {simple:,.0f}/s"
        rows.append(Row(f"{name}_vs_pgbench", value, unit, reference, ratio, f">= {target}", ratio >= target))
    return rows


def at_ten_million(running: Server, rounds: int, seconds: float) -> list[Row]:
    """What ten million transfers cost the speed of the next: a full ledger and an empty one in turns, one server."""
    running.add_database(LARGE)
    with running.connect(LARGE) as connection:
        open_accounts(connection)
        _load(connection)
    scripts = _scripts(running)
    lost: dict[str, float] = {}
    for name in ("pairs", "batched"):
        kept: list[float] = []
        for number in range(rounds):
            order = ("postgres", LARGE) if number % 2 else (LARGE, "postgres")
            speed = {database: scripts[name](seconds, database) for database in order}
            kept.append(speed[LARGE] / speed["postgres"])
        lost[name] = 1 - statistics.median(kept)
    worst = max(lost.values())
    said = ", ".join(f"{name} {share:+.2f}" for name, share in lost.items())
    reference = f"an empty ledger in turns: {said}"
    return [Row("slowdown_at_10m", worst, "share of speed lost", reference, None, "<= 0.2", worst <= 0.2)]


def _load(connection: psycopg.Connection) -> None:
    connection.execute("SET synchronous_commit = off")
    for step in range(LOADED // STEP):
        connection.execute(
            """WITH made AS (
                INSERT INTO quotas.operation (scope, key, request_hash, at, transfer_ids)
                SELECT 'load', %(step)s::text || ' ' || g, decode(repeat('00', 32), 'hex'), now(), '{}'
                FROM generate_series(1, %(many)s) g RETURNING id)
            INSERT INTO quotas.transfer (operation_id, kind, debit_id, credit_id, amount, final, at)
            SELECT id, 'posted', 1 + id %% %(firms)s, %(firms)s + 1, 1, false, now() FROM made""",
            {"step": step, "firms": FIRMS, "many": STEP},
        )
    connection.execute("VACUUM ANALYZE quotas.transfer, quotas.operation")
    connection.execute("CHECKPOINT")


def _scripts(running: Server) -> dict[str, Callable[[float, str], float]]:
    """Name → transfers or pairs per second in so many seconds, on a database; first pgbench's own."""
    found: dict[str, Callable[[float, str], float]] = {
        "simple": lambda seconds, database: running.pgbench("-b", "simple-update", seconds=seconds, database=database)
    }
    for name, (script, times) in SCRIPTS.items():
        path = running.folder.parent / f"{name}.sql"
        path.write_text(script)
        found[name] = lambda seconds, database, path=path, times=times: (
            times * running.pgbench("-f", str(path), seconds=seconds, database=database)
        )
    return found
