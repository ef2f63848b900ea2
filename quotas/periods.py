"""Which month a usage is billed in: its own, or the first later one that is not closed."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import sql
from quotas.statements import billing_period
from quotas.vocabulary import FirmId, Period


async def billing_periods(
    tx: AsyncSession, wanted: Iterable[tuple[FirmId, Period]], *, now: datetime
) -> dict[tuple[FirmId, Period], Period]:
    """(firm, service period) → the period that takes it. None of them closes before this transaction ends."""
    pairs = set(wanted)
    firms = sorted({firm_id for firm_id, _ in pairs})
    # Shared with other usage of the firm, exclusive against the closing of its month.
    await tx.execute(
        sql("""SELECT pg_advisory_xact_lock_shared(hashtextextended('quotas.close:' || f, 0))
            FROM (SELECT f FROM unnest(CAST(:firms AS text[])) AS f ORDER BY f) AS ordered"""),
        {"firms": firms},
    )
    rows = await tx.execute(
        sql("SELECT firm_id, period FROM quotas.statement WHERE firm_id = ANY(CAST(:firms AS text[]))"),
        {"firms": firms},
    )
    closed: dict[str, set[str]] = {}
    for row in rows:
        closed.setdefault(row.firm_id, set()).add(row.period)
    return {(firm, service): billing_period(service, closed.get(firm, set()), now) for firm, service in pairs}


async def bar_usage(tx: AsyncSession, firm_id: FirmId) -> None:
    """Keep new usage of a firm out until this transaction ends: its month is being closed."""
    await tx.execute(
        sql("SELECT pg_advisory_xact_lock(hashtextextended('quotas.close:' || :firm, 0))"),
        {"firm": firm_id},
    )
