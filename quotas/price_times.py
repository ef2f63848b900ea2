"""Prices and what was charged at them: no price begins or ends before usage that was charged without it."""

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import sql
from quotas.pricing import Tariff
from quotas.vocabulary import DiscountId, FirmId, UsageKind


async def keep_prices(tx: AsyncSession) -> None:
    """Nobody changes tariffs or discounts until this transaction ends. Before they are read."""
    await tx.execute(sql("SELECT pg_advisory_xact_lock_shared(hashtext('quotas.prices'))"))


async def change_prices(tx: AsyncSession) -> None:
    """Nobody else changes prices, and nobody charges, until this transaction ends."""
    await tx.execute(sql("SELECT pg_advisory_xact_lock(hashtext('quotas.prices'))"))


_LATEST = "SELECT max(last_at + CASE kind WHEN 'compute' THEN interval '0' ELSE interval '1 microsecond' END)"


async def tariff_used_until(tx: AsyncSession, tariff: Tariff) -> datetime | None:
    """The first instant after all that was charged at a version; None when nothing was."""
    found = await tx.execute(
        text(f"""{_LATEST} FROM quotas.charge WHERE reverses IS NULL AND (tariff_id = :id
            OR kind = 'compute'
            AND last_at > :start AND first_at < coalesce(CAST(:end AS timestamptz), 'infinity'))"""),
        {"id": tariff.id, "start": tariff.valid_from, "end": tariff.valid_until},
    )
    return found.scalar_one()


async def usage_charged_until(tx: AsyncSession, firm_id: FirmId, kind: UsageKind) -> datetime | None:
    """The first instant after all that a firm was charged of a kind of usage."""
    found = await tx.execute(
        text(f"{_LATEST} FROM quotas.charge WHERE reverses IS NULL AND firm_id = :firm AND kind = :kind"),
        {"firm": firm_id, "kind": kind.value},
    )
    return found.scalar_one()


async def discount_used_until(tx: AsyncSession, firm_id: FirmId, discount_id: DiscountId) -> datetime | None:
    """The first instant after all that was charged with a discount."""
    found = await tx.execute(
        text(f"{_LATEST} FROM quotas.charge WHERE reverses IS NULL AND firm_id = :firm AND discount_id = :id"),
        {"firm": firm_id, "id": discount_id},
    )
    return found.scalar_one()
