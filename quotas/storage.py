"""Storage as usage: what a project's files took at each full hour, counted in byte-hours and priced per GB-month."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quotas.pricing import Meter, tariff_at
from quotas.statements import GRACE
from quotas.tariffs import tariffs_between
from quotas.usage import BATCH_MAX, ingest_usage
from quotas.vocabulary import MeteredUsage, ModelName, StorageMeasure, UsageKind

FILES = ModelName("files")
"""What is stored: a firm's uploads and artifacts."""
SOURCE = "heliu/storage"
HOUR = timedelta(hours=1)


async def storage_hours_due(tx: AsyncSession, *, now: datetime) -> list[datetime]:
    """Full hours that have a price for storage and were not measured, oldest first; none older than the grace."""
    this = now.replace(minute=0, second=0, microsecond=0)
    oldest = this - GRACE
    measured = (
        await tx.execute(
            text("""SELECT EXISTS (SELECT FROM quotas.token_usage WHERE source = :source) AS ever,
                (SELECT max(at) FROM quotas.token_usage WHERE source = :source AND at >= :oldest) AS last"""),
            {"source": SOURCE, "oldest": oldest},
        )
    ).one()
    hour = measured.last + HOUR if measured.last else oldest if measured.ever else this
    tariffs = await tariffs_between(tx, hour, this) if hour <= this else []
    due: list[datetime] = []
    while hour <= this:
        tariff = tariff_at(tariffs, hour)
        if tariff is not None and tariff.rate(Meter.STORAGE_GB_MONTH, FILES) is not None:
            due.append(hour)
        hour += HOUR
    return due


async def record_storage(tx: AsyncSession, measures: Sequence[StorageMeasure], *, now: datetime) -> int:
    """Charge an hour's bytes of each project once, whoever measures how often. Returns how many were new.

    An hour counts whole: what is there when it strikes has been there for it. The line is rounded once.
    """
    records = [
        MeteredUsage(
            id=f"{one.firm_id} {one.project_id} {one.hour.isoformat()}",
            source=SOURCE,
            kind=UsageKind.STORAGE,
            firm_id=one.firm_id,
            project_id=one.project_id,
            resource=FILES,
            base_resource=FILES,
            quantity=one.stored_bytes,
            at=one.hour,
        )
        for one in measures
        if one.stored_bytes > 0
    ]
    accepted = 0
    for start in range(0, len(records), BATCH_MAX):
        accepted += (await ingest_usage(tx, records[start : start + BATCH_MAX], now=now)).accepted
    return accepted
