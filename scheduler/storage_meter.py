"""What files take, told to the ledger once an hour; the leader does it, and who does it again changes nothing."""

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.clock import Clock
from kit.db import Database
from quotas.api import record_storage, storage_hours_due
from quotas.vocabulary import FirmId, ProjectId, StorageMeasure


async def measure(db: Database, clock: Clock) -> int:
    """Measure each hour that is due, in a transaction of its own. Returns how many project-hours were charged."""
    charged = 0
    async with db.transaction() as tx:
        due = await storage_hours_due(tx, now=clock.now())
    for hour in due:
        async with db.transaction() as tx:
            charged += await record_storage(tx, await stored_at(tx, hour), now=clock.now())
    return charged


async def stored_at(tx: AsyncSession, hour: datetime) -> list[StorageMeasure]:
    """What each project's published artifacts and complete uploads take that were there at an hour and still are."""
    rows = await tx.execute(
        text("""SELECT firm_id, project_id, sum(size_bytes)::bigint AS bytes FROM (
                SELECT firm_id, project_id, size_bytes FROM scheduler.artifact WHERE published_at <= :hour
                UNION ALL
                SELECT firm_id, project_id, size_bytes FROM scheduler.upload
                WHERE state = 'complete' AND created_at <= :hour) AS stored
            GROUP BY firm_id, project_id ORDER BY firm_id, project_id"""),
        {"hour": hour},
    )
    return [StorageMeasure(FirmId(row.firm_id), ProjectId(row.project_id), row.bytes, hour) for row in rows]
