"""Centres' contracts as they are and were, and how much hangs on one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from kit.units import MicroYuan, Ppm
from quotas.adapters.money_tables import CentreContractRow
from quotas.pricing import ANY, Meter, share_of
from quotas.tariffs import DEFAULT_PAYOUT_PPM, tariffs_between
from quotas.vocabulary import CentreName


@dataclass(frozen=True, slots=True)
class CentreContract:
    """What part of the list price of the time it lends a centre is paid, in [valid_from, valid_until)."""

    centre: CentreName
    payout_ppm: Ppm
    valid_from: datetime | None
    valid_until: datetime | None


async def contracts_of(tx: AsyncSession, centre: CentreName) -> Sequence[CentreContract]:
    """A centre's contracts, oldest first; before the first one it is paid what is usual (`valid_from` None)."""
    query = select(CentreContractRow).where(col(CentreContractRow.centre) == centre).order_by(text("lower(validity)"))
    rows = (await tx.execute(query)).scalars().all()
    known = [CentreContract(centre, Ppm(row.payout_ppm), row.validity.lower, row.validity.upper) for row in rows]
    usual = CentreContract(centre, DEFAULT_PAYOUT_PPM, None, known[0].valid_from if known else None)
    return [usual, *known]


async def dearest_hour(tx: AsyncSession, centre: CentreName, payout_ppm: Ppm, *, now: datetime) -> MicroYuan:
    """What such a contract pays for the centre's dearest GPU-hour, at prices that are in force or still to come."""
    tariffs = await tariffs_between(tx, now, None)
    hours = [
        rate
        for tariff in tariffs
        for key, rate in tariff.rates.items()
        if key.meter is Meter.GPU_HOUR and key.resource.partition("/")[0] in (centre, ANY)
    ]
    return share_of(max(hours, default=0), payout_ppm)
