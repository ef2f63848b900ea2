"""The history of ceilings, and what a month's charges say was used."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Identity, Index, Integer, Text, bindparam, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel, col, select

from quotas.adapters.tables import SCHEMA


class CeilingVersionRow(SQLModel, table=True):
    """What a firm, or one project of it, may use at most from an instant on. Rows are only ever added."""

    __tablename__: ClassVar[Any] = "ceiling_version"
    __table_args__ = (
        Index("ceiling_version_order", "firm_id", "project_id", "effective_from", "seq"),
        {"schema": SCHEMA},
    )

    seq: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    firm_id: str = Field(sa_column=Column(Text, ForeignKey(f"{SCHEMA}.firm.id"), nullable=False))
    project_id: str | None = Field(
        default=None, sa_column=Column(Text, ForeignKey(f"{SCHEMA}.project.id"), nullable=True)
    )
    gpu_milli_at_once: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    jobs_at_once: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    gpu_ms_per_period: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    tokens_per_period: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    effective_from: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    set_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    set_by: str = Field(sa_column=Column(Text, nullable=False))
    reason: str | None = Field(default=None, sa_column=Column(Text, nullable=True))


_IN_FORCE = (
    select(CeilingVersionRow)
    .where(
        CeilingVersionRow.firm_id == bindparam("firm_id", type_=Text),
        col(CeilingVersionRow.effective_from) <= bindparam("at", type_=DateTime(timezone=True)),
    )
    .ext(distinct_on(col(CeilingVersionRow.project_id)))
    .order_by(
        col(CeilingVersionRow.project_id),
        col(CeilingVersionRow.effective_from).desc(),
        col(CeilingVersionRow.seq).desc(),
    )
)


async def in_force(tx: AsyncSession, firm_id: str, *, at: datetime) -> Sequence[CeilingVersionRow]:
    """The firm's version in force at `at`, and each of its projects'."""
    return (await tx.execute(_IN_FORCE, {"firm_id": firm_id, "at": at})).scalars().all()


# What every admission asks: two probes of the index, one round trip, no objects.
_OVER_PROJECT = text("""
    (SELECT project_id, gpu_milli_at_once, jobs_at_once, gpu_ms_per_period, tokens_per_period
    FROM quotas.ceiling_version WHERE firm_id = :firm AND project_id IS NULL AND effective_from <= :at
    ORDER BY effective_from DESC, seq DESC LIMIT 1)
    UNION ALL
    (SELECT project_id, gpu_milli_at_once, jobs_at_once, gpu_ms_per_period, tokens_per_period
    FROM quotas.ceiling_version WHERE firm_id = :firm AND project_id = :project AND effective_from <= :at
    ORDER BY effective_from DESC, seq DESC LIMIT 1)""")


async def over_project(
    tx: AsyncSession, firm_id: str, project_id: str, *, at: datetime
) -> dict[str | None, tuple[int | None, int | None, int | None, int | None]]:
    """Of the firm (None) and of one project of it, if they have a version in force at `at`: its four ceilings."""
    rows = await (await tx.connection()).execute(_OVER_PROJECT, {"firm": firm_id, "project": project_id, "at": at})
    return {project: (gpus, jobs, gpu_ms, tokens) for project, gpus, jobs, gpu_ms, tokens in rows}


async def history(tx: AsyncSession, firm_id: str) -> Sequence[CeilingVersionRow]:
    """Every version ever written for a firm and its projects, newest first."""
    query = select(CeilingVersionRow).where(CeilingVersionRow.firm_id == firm_id)
    return (await tx.execute(query.order_by(col(CeilingVersionRow.seq).desc()))).scalars().all()


async def lock(tx: AsyncSession, firm_id: str) -> None:
    """Let one thing at a time be admitted under a firm's ceilings."""
    await tx.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('quotas.ceilings:' || :firm, 0))"), {"firm": firm_id}
    )


async def used_in(tx: AsyncSession, firm_id: str, period: str) -> dict[str, tuple[int, int]]:
    """Project → GPU-milliseconds and tokens that were used in a month."""
    rows = await tx.execute(
        text("""SELECT project_id, sum(gpu_ms)::bigint, sum(input + output)::bigint FROM quotas.charge
            WHERE firm_id = :firm AND service_period = :period AND reverses IS NULL GROUP BY project_id"""),
        {"firm": firm_id, "period": period},
    )
    return {project_id: (int(gpu_ms), int(tokens)) for project_id, gpu_ms, tokens in rows}


async def tokens_leased(tx: AsyncSession, firm_id: str, *, but: str | None = None) -> dict[str | None, int]:
    """Project (None: the firm's own leases) → tokens that gateways may still use, or used and have not told."""
    rows = await tx.execute(
        text("""SELECT project_id, sum(tokens_left)::bigint FROM quotas.allowance_lease
            WHERE firm_id = :firm AND state = 'open' AND id <> coalesce(:but, '') GROUP BY project_id"""),
        {"firm": firm_id, "but": but},
    )
    return {project_id: int(tokens) for project_id, tokens in rows}
