"""Questions to the history of quotas."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from kit.db import sql
from quotas.adapters.tables import CohortPlacementRow, QuotaRequestRow, QuotaVersionRow


async def add(tx: AsyncSession, row: QuotaVersionRow | CohortPlacementRow) -> None:
    """Write a version; nothing ever changes one."""
    tx.add(row)
    await tx.flush()


async def in_force(
    tx: AsyncSession, *, at: datetime, firm_id: str | None = None, pool: str | None = None
) -> Sequence[QuotaVersionRow]:
    """Per firm and pool the version in force at `at`: the latest start, and of equal starts the last written."""
    query = (
        select(QuotaVersionRow)
        .where(col(QuotaVersionRow.effective_from) <= at)
        .ext(distinct_on(col(QuotaVersionRow.firm_id), col(QuotaVersionRow.pool)))
        .order_by(
            col(QuotaVersionRow.firm_id),
            col(QuotaVersionRow.pool),
            col(QuotaVersionRow.effective_from).desc(),
            col(QuotaVersionRow.seq).desc(),
        )
    )
    if firm_id is not None:
        query = query.where(QuotaVersionRow.firm_id == firm_id)
    if pool is not None:
        query = query.where(QuotaVersionRow.pool == pool)
    return (await tx.execute(query)).scalars().all()


async def all_in_force(tx: AsyncSession, *, at: datetime) -> Sequence[Any]:
    """The same of every firm and pool, as plain rows: each decision of the scheduler asks."""
    rows = await tx.execute(
        sql("""
            SELECT DISTINCT ON (firm_id, pool) seq, firm_id, pool, nominal_gpu_milli, borrowing_gpu_milli,
                lending_gpu_milli, effective_from
            FROM quotas.quota_version WHERE effective_from <= :at
            ORDER BY firm_id, pool, effective_from DESC, seq DESC"""),
        {"at": at},
    )
    return rows.all()


async def history(tx: AsyncSession, *, firm_id: str, pool: str | None = None) -> Sequence[QuotaVersionRow]:
    """All versions of a firm, newest first."""
    query = select(QuotaVersionRow).where(QuotaVersionRow.firm_id == firm_id)
    if pool is not None:
        query = query.where(QuotaVersionRow.pool == pool)
    return (await tx.execute(query.order_by(col(QuotaVersionRow.seq).desc()))).scalars().all()


async def request(tx: AsyncSession, request_id: str) -> QuotaRequestRow | None:
    """A request for quota, locked."""
    return await tx.get(QuotaRequestRow, request_id, with_for_update=True, populate_existing=True)


async def requests(tx: AsyncSession, *, firm_id: str | None, state: str | None) -> Sequence[QuotaRequestRow]:
    """Requests for quota, newest first: of one firm or all, in one state or any."""
    query = select(QuotaRequestRow).order_by(col(QuotaRequestRow.id).desc()).limit(500)
    if firm_id is not None:
        query = query.where(QuotaRequestRow.firm_id == firm_id)
    if state is not None:
        query = query.where(QuotaRequestRow.state == state)
    return (await tx.execute(query)).scalars().all()


async def lock_cohorts(tx: AsyncSession) -> None:
    """Let one change of the tree at a time see the tree it changes."""
    await tx.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('cohorts', 7))"))


async def placements(tx: AsyncSession) -> Sequence[Any]:
    """Every placement ever written, in the order of writing, as plain rows: each decision of the scheduler asks."""
    rows = await tx.execute(
        sql("""
            SELECT version, node, parent, weight_milli, effective_from FROM quotas.cohort_placement
            ORDER BY version""")
    )
    return rows.all()
