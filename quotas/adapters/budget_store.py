"""Budgets, alerts and deliveries in PostgreSQL."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

Row = Mapping[Any, Any]
"""Column → value."""

# What a budget's month has cost so far, vouchers included: its firm's, its project's or its key's charges, jobs' and
# tokens'; and what is put aside: open holds, and what gateways have leased. A key's budget is its whole line's, through
# every rotation. One statement, so what turns from held into spent meanwhile is counted once.
_SPENT = """
    SELECT b.*, coalesce((SELECT sum(c.amount) FROM quotas.charge c WHERE c.firm_id = b.firm_id
        AND c.period = :period AND (b.project_id IS NULL OR c.project_id = b.project_id)
        AND (b.key_id IS NULL OR c.key_id IN (SELECT k.id FROM quotas.api_key k WHERE k.line_id = b.key_id))),
        0)::bigint AS spent,
        coalesce((SELECT sum(h.amount) FROM quotas.compute_hold h WHERE h.state = 'open' AND h.firm_id = b.firm_id
        AND (b.project_id IS NULL OR h.project_id = b.project_id)
        AND (b.key_id IS NULL OR h.key_id IN (SELECT k.id FROM quotas.api_key k WHERE k.line_id = b.key_id))),
        0)::bigint AS held,
        coalesce((SELECT sum(p.amount_left) FROM quotas.allowance_part l JOIN quotas.pending p ON p.id = l.pending_id
        WHERE l.state = 'open' AND l.firm_id = b.firm_id AND (b.project_id IS NULL OR l.project_id = b.project_id)
        AND (b.key_id IS NULL OR l.key_id = b.key_id)), 0)::bigint AS leased
    FROM quotas.budget b WHERE b.ended_at IS NULL"""


async def insert(tx: AsyncSession, table: str, row: Row) -> bool:
    """Write a row; False when there is one of its kind already. Table and columns are this package's own words."""
    names = ", ".join(row)
    values = ", ".join(f":{name}" for name in row)
    done = await tx.execute(
        text(f"INSERT INTO quotas.{table} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING RETURNING 1"),  # noqa: S608
        dict(row),
    )
    return done.first() is not None


async def budgets(tx: AsyncSession, *, period: str, firm_id: str | None = None) -> Sequence[Row]:
    """Budgets in force with what their month has `spent` and what is put aside (`held`, `leased`), of a firm or all."""
    query = _SPENT + (" AND b.firm_id = :firm" if firm_id else "") + " ORDER BY b.id"
    rows = await tx.execute(text(query), {"period": period} | ({"firm": firm_id} if firm_id else {}))
    return rows.mappings().all()


RULED_FIRMS = """
    SELECT firm_id FROM quotas.budget WHERE firm_id = ANY(CAST(:firms AS text[])) AND hard_stop AND ended_at IS NULL
    UNION SELECT firm_id FROM quotas.ceiling_version
    WHERE firm_id = ANY(CAST(:firms AS text[])) AND tokens_per_period IS NOT NULL"""
"""Those of many firms for which `spending_is_ruled`: a query, or a part of one."""


async def spending_is_ruled(tx: AsyncSession, firm_id: str) -> bool:
    """Whether a hard budget or a limit on tokens is over any of a firm's spending, or ever was set for it."""
    query = text("""SELECT EXISTS (SELECT FROM quotas.budget WHERE firm_id = :firm AND hard_stop AND ended_at IS NULL)
        OR EXISTS (SELECT FROM quotas.ceiling_version WHERE firm_id = :firm AND tokens_per_period IS NOT NULL)""")
    return bool((await tx.execute(query, {"firm": firm_id})).scalar_one())


async def ruled_firms(tx: AsyncSession, firm_ids: Collection[str]) -> set[str]:
    """Those of many firms over whose spending there is such a rule."""
    return {row.firm_id for row in await tx.execute(text(RULED_FIRMS), {"firms": list(firm_ids)})}


async def lock_spending(tx: AsyncSession, firm_id: str) -> None:
    """Let one thing at a time put aside money of a firm with rules."""
    await tx.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('quotas.spending:' || :firm, 0))"), {"firm": firm_id}
    )


async def ruled_apart(
    tx: AsyncSession, whose: Collection[tuple[str, str, str]], *, now: datetime
) -> dict[tuple[str, str, str], Row]:
    """Of each firm, project and key's line what rules are over their spending.

    `key`, `project`: whether a hard budget or limit on tokens is over just these; `tokens`: over theirs at all.
    """
    query = text("""
        SELECT asked.firm, asked.project AS of_project, asked.line, rules.*
        FROM unnest(CAST(:firms AS text[]), CAST(:projects AS text[]), CAST(:lines AS text[]))
            AS asked (firm, project, line),
        LATERAL (SELECT coalesce(bool_or(b.key_id IS NOT NULL), false) AS key,
            coalesce(bool_or(b.project_id IS NOT NULL), false) OR limits.project AS project, limits.tokens
        FROM (SELECT coalesce(bool_or(v.project_id IS NOT NULL AND v.tokens_per_period IS NOT NULL), false) AS project,
                coalesce(bool_or(v.tokens_per_period IS NOT NULL), false) AS tokens
            FROM (SELECT DISTINCT ON (project_id) project_id, tokens_per_period FROM quotas.ceiling_version
                WHERE firm_id = asked.firm AND (project_id IS NULL OR project_id = asked.project)
                    AND effective_from <= :now
                ORDER BY project_id, effective_from DESC, seq DESC) v) limits
        LEFT JOIN quotas.budget b ON b.firm_id = asked.firm AND b.hard_stop AND b.ended_at IS NULL
            AND (b.key_id = asked.line OR b.project_id = asked.project)
        GROUP BY limits.project, limits.tokens) rules""")
    firms, projects, lines = (list(column) for column in zip(*whose, strict=True))
    rows = await tx.execute(query, {"firms": firms, "projects": projects, "lines": lines, "now": now})
    return {(row["firm"], row["of_project"], row["line"]): row for row in rows.mappings()}


async def one(tx: AsyncSession, table: str, row_id: str) -> Row | None:
    """A budget, channel or delivery with its firm, locked."""
    joined = {
        "budget": "SELECT * FROM quotas.budget WHERE id = :id AND ended_at IS NULL FOR UPDATE",
        "alert_channel": "SELECT * FROM quotas.alert_channel WHERE id = :id AND ended_at IS NULL FOR UPDATE",
        "delivery": """SELECT d.*, a.firm_id FROM quotas.delivery d JOIN quotas.alert a ON a.id = d.alert_id
            WHERE d.id = :id FOR UPDATE OF d""",
    }
    return (await tx.execute(text(joined[table]), {"id": row_id})).mappings().one_or_none()


async def end(tx: AsyncSession, table: str, row_id: str, *, now: datetime) -> None:
    """End a budget or a channel; what it did stays."""
    assert table in {"budget", "alert_channel"}, "only these end"
    await tx.execute(text(f"UPDATE quotas.{table} SET ended_at = :now WHERE id = :id"), {"now": now, "id": row_id})  # noqa: S608


async def channels(tx: AsyncSession, firm_id: str) -> Sequence[Row]:
    """Where a firm's alerts go."""
    query = text("SELECT * FROM quotas.alert_channel WHERE firm_id = :firm AND ended_at IS NULL ORDER BY id")
    return (await tx.execute(query, {"firm": firm_id})).mappings().all()


async def raised(tx: AsyncSession, period: str) -> set[tuple[str, int]]:
    """(budget, threshold) that alerted in a month already."""
    rows = await tx.execute(text("SELECT budget_id, threshold FROM quotas.alert WHERE period = :p"), {"p": period})
    return {(budget, threshold) for budget, threshold in rows}


async def alerts(tx: AsyncSession, firm_id: str) -> Sequence[Row]:
    """A firm's alerts, newest first, one row per message that went out for it."""
    query = text("""
        SELECT a.*, d.id AS delivery_id, d.channel_id, d.state, d.tries, d.next_at, d.last_error, d.delivered_at
        FROM quotas.alert a LEFT JOIN quotas.delivery d ON d.alert_id = a.id
        WHERE a.firm_id = :firm ORDER BY a.id DESC, d.id LIMIT 500""")
    return (await tx.execute(query, {"firm": firm_id})).mappings().all()


async def claim(tx: AsyncSession, *, now: datetime, until: datetime, limit: int = 20) -> Sequence[Row]:
    """Messages that are due; nobody else takes them before `until`. An ended channel's are dead."""
    query = text("""
        UPDATE quotas.delivery d SET tries = d.tries + 1, next_at = :until
        FROM quotas.alert a, quotas.alert_channel c, quotas.budget b
        WHERE d.id IN (SELECT id FROM quotas.delivery WHERE state = 'waiting' AND next_at <= :now
                ORDER BY next_at LIMIT :limit FOR UPDATE SKIP LOCKED)
            AND a.id = d.alert_id AND c.id = d.channel_id AND b.id = a.budget_id
        RETURNING d.id, d.tries, d.channel_id, c.kind, c.target, c.ended_at, a.id AS alert_id, a.firm_id, a.budget_id,
            b.project_id, b.key_id, b.hard_stop, a.period, a.threshold, a.amount, a.spent, a.at""")
    return (await tx.execute(query, {"now": now, "until": until, "limit": limit})).mappings().all()


async def resolve(
    tx: AsyncSession, delivery_id: str, *, state: str, now: datetime, next_at: datetime, error: str | None
) -> None:
    """Record how a try went."""
    await tx.execute(
        text("""UPDATE quotas.delivery SET state = :state, next_at = :next_at, last_error = :error,
            delivered_at = CASE WHEN :state = 'delivered' THEN CAST(:now AS timestamptz) END WHERE id = :id"""),
        {"id": delivery_id, "state": state, "now": now, "next_at": next_at, "error": error},
    )


async def replay(tx: AsyncSession, delivery_id: str, *, now: datetime) -> None:
    """Send a message again from its first try."""
    await tx.execute(
        text("""UPDATE quotas.delivery SET state = 'waiting', tries = 0, next_at = :now, last_error = NULL,
            delivered_at = NULL WHERE id = :id"""),
        {"id": delivery_id, "now": now},
    )
