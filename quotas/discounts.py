"""Discounts by contract: so much off a firm's rates, from one instant until another, never two of the same at once."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import violated_constraint
from kit.errors import Conflict, InvalidInput, NotFound, Refused
from kit.ids import new_id
from kit.units import Ppm
from quotas.adapters.money_tables import DiscountRow
from quotas.price_times import change_prices, discount_used_until, usage_charged_until
from quotas.pricing import Discount
from quotas.vocabulary import DiscountId, FirmId, UsageKind

GRANTING_SLACK = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Contract:
    """A discount and where it comes from."""

    terms: Discount
    contract: str
    granted_by: str
    granted_at: datetime


_LOAD = """
    SELECT id, firm_id, kind, resource, off_ppm, lower(validity) AS valid_from, upper(validity) AS valid_until,
        contract, granted_by, granted_at
    FROM quotas.discount"""


def _terms(row: Row[Any]) -> Discount:
    return Discount(
        DiscountId(row.id),
        FirmId(row.firm_id),
        UsageKind(row.kind),
        row.resource,
        Ppm(row.off_ppm),
        row.valid_from,
        row.valid_until,
    )


async def discounts_between(
    tx: AsyncSession, firm_ids: Collection[FirmId], start: datetime, end: datetime
) -> dict[FirmId, list[Discount]]:
    """What contracts of these firms touch [start, end]; a firm without one is missing."""
    rows = await tx.execute(
        text(f"""{_LOAD} WHERE firm_id = ANY(CAST(:firms AS text[]))
            AND validity && tstzrange(CAST(:start AS timestamptz), CAST(:end AS timestamptz), '[]') ORDER BY id"""),
        {"firms": sorted(firm_ids), "start": start, "end": end},
    )
    return _by_firm(rows)


async def every_discount(tx: AsyncSession) -> dict[FirmId, list[Discount]]:
    """What all firms have, had or will have; a firm without any is missing."""
    return _by_firm(await tx.execute(text(f"{_LOAD} ORDER BY id")))


def _by_firm(rows: Iterable[Row[Any]]) -> dict[FirmId, list[Discount]]:
    found: dict[FirmId, list[Discount]] = {}
    for row in rows:
        found.setdefault(FirmId(row.firm_id), []).append(_terms(row))
    return found


async def discounts_by_id(tx: AsyncSession, ids: Collection[DiscountId]) -> dict[DiscountId, Discount]:
    """Discounts by their ids."""
    if not ids:
        return {}
    rows = await tx.execute(text(f"{_LOAD} WHERE id = ANY(CAST(:ids AS text[]))"), {"ids": sorted(ids)})
    return {DiscountId(row.id): _terms(row) for row in rows}


async def contracts_of(tx: AsyncSession, firm_id: FirmId) -> list[Contract]:
    """Every discount a firm has, had or will have, oldest first."""
    rows = await tx.execute(text(f"{_LOAD} WHERE firm_id = :firm ORDER BY lower(validity), id"), {"firm": firm_id})
    return [Contract(_terms(row), row.contract, row.granted_by, row.granted_at) for row in rows]


async def contract_of(tx: AsyncSession, discount_id: str) -> Contract:
    """One discount. Raises NotFound."""
    row = (await tx.execute(text(f"{_LOAD} WHERE id = :id"), {"id": discount_id})).one_or_none()
    if row is None:
        raise discount_not_found(discount_id)
    return Contract(_terms(row), row.contract, row.granted_by, row.granted_at)


def discount_not_found(discount_id: str) -> NotFound:
    """The one answer for a discount that does not exist and for one of somebody else."""
    return NotFound(f"There is no discount {discount_id}.", code="discount_not_found", hint="see: heliu discount list")


async def grant_discount(
    tx: AsyncSession,
    *,
    firm_id: FirmId,
    kind: UsageKind,
    resource: str,
    off_ppm: Ppm,
    valid_from: datetime | None,
    valid_until: datetime | None,
    contract: str,
    by: str,
    now: datetime,
) -> Contract:
    """Take `off_ppm` off a firm's rates of a kind of usage in [valid_from, valid_until).

    Raises InvalidInput for a window that is empty, Refused (`discount_in_the_past`) for one that would change prices
    of time that has passed, Refused (`discount_start_used`) when usage from then on was charged already, Conflict
    (`discount_overlaps`).
    """
    await change_prices(tx)
    used = await usage_charged_until(tx, firm_id, kind)
    start = valid_from or max(now, used or now)
    if valid_until is not None and valid_until <= start:
        raise InvalidInput("a discount ends after it starts", hint="give a later valid_until")
    if start < now - GRANTING_SLACK:
        raise Refused(
            f"A discount cannot start at {start.isoformat()}: that time has passed, and its prices stand.",
            code="discount_in_the_past",
            hint="leave out valid_from to start now, or give back single charges: heliu charge refund",
        )
    if used is not None and start < used:
        raise Refused(
            f"Usage of the firm after {start.isoformat()} was charged already, without this discount.",
            code="discount_start_used",
            hint="leave out valid_from to start as soon as possible, or choose a later time",
        )
    row = DiscountRow(
        id=new_id("dsc"),
        firm_id=firm_id,
        kind=kind.value,
        resource=resource,
        off_ppm=off_ppm,
        validity=Range(start, valid_until, bounds="[)"),
        contract=contract,
        granted_by=by,
        granted_at=now,
    )
    try:
        async with tx.begin_nested():
            tx.add(row)
            await tx.flush()
    except IntegrityError as error:
        if violated_constraint(error) != "discount_no_overlap":
            raise
        raise Conflict(
            f"The firm has a discount on {kind} of {resource!r} in part of that time.",
            code="discount_overlaps",
            hint="end that one first, or choose another time",
        ) from None
    return await contract_of(tx, row.id)


async def end_discount(tx: AsyncSession, discount_id: str, *, now: datetime) -> Contract:
    """Let a discount end now, after all that was charged with it; one that has not begun never was.

    Raises NotFound, Conflict when it is over.
    """
    await change_prices(tx)
    before = await contract_of(tx, discount_id)
    end = max(now, await discount_used_until(tx, before.terms.firm_id, before.terms.id) or now)
    row = await tx.get_one(DiscountRow, discount_id, with_for_update=True, populate_existing=True)
    if not (row.validity.upper is None or row.validity.upper > end):
        raise Conflict(
            f"Discount {discount_id} is over.", code="discount_over", hint="see what is in force: heliu discount list"
        )
    if before.terms.valid_from >= end:
        await tx.delete(row)
        await tx.flush()
        return before
    row.validity = Range(before.terms.valid_from, end, bounds="[)")
    await tx.flush()
    return await contract_of(tx, discount_id)
