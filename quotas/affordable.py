"""How long an amount lasts: the other way round than a price."""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from kit.units import GpuMilli, GpuMs, MicroYuan, gpu_ms
from quotas.discounts import discounts_between
from quotas.pricing import priced
from quotas.tariffs import tariffs_between
from quotas.vocabulary import ComputeUsage, FirmId, PoolName, ProjectId, QoS, centre_of


async def affordable_seconds(
    tx: AsyncSession,
    *,
    firm_id: FirmId,
    pool: PoolName,
    qos: QoS,
    gpu_milli: GpuMilli,
    amount: MicroYuan,
    seconds_max: int,
    at: datetime,
) -> int:
    """How many whole seconds from `at` on cost `amount` at most, at most `seconds_max`; valleys and peaks count.

    Raises Refused (`no_tariff`).
    """
    end = at + timedelta(seconds=seconds_max)
    tariffs = await tariffs_between(tx, at, end)
    discounts = (await discounts_between(tx, [firm_id], at, end)).get(firm_id, ())

    def costs(seconds: int) -> int:
        usage = ComputeUsage(
            "", "", firm_id, ProjectId(""), pool, centre_of(pool), qos, GpuMs(gpu_ms(gpu_milli, seconds * 1000)), at,
            at + timedelta(seconds=seconds),
        )  # fmt: skip
        return priced(usage, tariffs, discounts)[2].amount

    within, beyond = 0, seconds_max + 1
    while beyond - within > 1:
        middle = (within + beyond) // 2
        within, beyond = (middle, beyond) if costs(middle) <= amount else (within, middle)
    return within
