"""A job is taken only within its firm's and project's limits: at once, and per month with what may still be used."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from quotas import api as quotas
from quotas.vocabulary import Ceilings, FirmId, ProjectId, Use
from scheduler.adapters import store
from scheduler.adapters.tables import WorkloadRow


async def require_room(tx: AsyncSession, job: WorkloadRow, *, now: datetime) -> None:
    """Return if the job fits beside the firm's work that is not over; until commit no other job of it is taken.

    Raises Refused (`limit_jobs_at_once`, `limit_gpus_at_once`, `limit_gpu_time`).
    """
    limits = await quotas.effective_limits(tx, FirmId(job.firm_id), ProjectId(job.project_id), at=now, admitting=True)
    if limits.effective == Ceilings():
        return
    in_hand: dict[ProjectId, Use] = {}
    for row in await store.not_over(tx, job.firm_id):
        project = ProjectId(row.project_id)
        in_hand[project] = in_hand.get(project, Use()).plus(_use(row))
    await quotas.require_within(tx, limits, in_hand=in_hand, asked=_use(job))


async def require_budget(tx: AsyncSession, job: WorkloadRow, least: int, *, now: datetime) -> None:
    """Return if so much fits under the hard budgets once what is put aside for other work comes back.

    Raises NoMoney (`budget_reached`). What may be put aside now, admission asks exactly.
    """
    key = quotas.key_of(job.submitted_by)
    payer = await quotas.payer_of(tx, FirmId(job.firm_id), ProjectId(job.project_id), key)
    await quotas.require_budget(tx, payer, least, now=now)


def _use(row: WorkloadRow) -> Use:
    return Use(jobs=1, gpu_milli=row.need_milli, gpu_ms=row.need_milli * (row.max_runtime_seconds or 0))
