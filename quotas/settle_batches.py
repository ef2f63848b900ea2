"""Many ends of work in one transaction: what was used is charged, the rest is let go, one operation of the ledger each.

Only the plain case goes together: an open hold of a firm's own work, charged for the first time. Whatever is not
plain (the platform's own work, a hold that expired, a usage seen before) goes by itself, by the same rules.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from kit.db import insert_many, sql
from quotas.adapters import ledger_store
from quotas.adapters.money_tables import ComputeHoldRow
from quotas.bills import Bill, bill_open, line_values, moves_of, resolving_legs
from quotas.cash import hold_gone
from quotas.charges import charge_seen, settle_compute, usage_hash
from quotas.collecting import added
from quotas.discounts import discounts_between
from quotas.holds import pending_ids, release_hold
from quotas.ledger import Leg, Refusal, posted, void
from quotas.periods import billing_periods
from quotas.price_times import keep_prices
from quotas.programmes import programme_ids
from quotas.statements import service_period
from quotas.tariffs import payouts, tariffs_between
from quotas.vocabulary import PLATFORM_FIRM, Charge, ComputeUsage, HoldId, HoldState

Settlement = tuple[HoldId, ComputeUsage]


async def settle_compute_many(tx: AsyncSession, settlements: Sequence[Settlement], *, now: datetime) -> list[Charge]:
    """The charge of each usage, in their order; see `settle_compute` for what each means and raises."""
    if not settlements:
        return []
    rows = await _locked(tx, [hold_id for hold_id, _ in settlements])
    seen = await _seen_before(tx, [usage.attempt_id for _, usage in settlements])
    plain = [(hold_id, usage) for hold_id, usage in settlements if _is_plain(rows.get(hold_id), usage, seen, now=now)]
    charges = await _together(tx, [(rows[hold_id], usage) for hold_id, usage in plain], now=now) if plain else {}
    for hold_id, usage in settlements:
        if hold_id not in charges:
            charges[hold_id] = await settle_compute(tx, hold_id=hold_id, usage=usage, now=now)
    return [charges[hold_id] for hold_id, _ in settlements]


async def release_holds(tx: AsyncSession, released: Mapping[HoldId, str], *, now: datetime) -> None:
    """Give back everything held under each, for the reason beside it; what was given back before stays so.

    Raises Conflict (`hold_resolved`) when one of them was settled, and NotFound.
    """
    if not released:
        return
    rows = await _locked(tx, list(released))
    for hold_id, reason in released.items():
        if hold_id not in rows:
            await release_hold(tx, hold_id=hold_id, reason=reason, now=now)  # says that there is none
        if rows[hold_id].state == HoldState.SETTLED:
            raise hold_gone(f"Hold {hold_id}", rows[hold_id].state)
    still_open = [row for row in rows.values() if row.state == HoldState.OPEN]
    if not still_open:
        return
    legs = [void(number) for row in still_open for number in pending_ids(row)]
    await _post(tx, "release", [row.id for row in still_open], legs, now=now)
    await _close(tx, {row.id: released[HoldId(row.id)] for row in still_open}, HoldState.RELEASED, now=now)


async def _locked(tx: AsyncSession, hold_ids: Sequence[HoldId]) -> dict[HoldId, Any]:
    """The holds, locked, as plain rows: to be read, not to be changed."""
    query = select(*inspect(ComputeHoldRow).columns).where(col(ComputeHoldRow.id).in_(hold_ids))
    found = await tx.execute(query.order_by(col(ComputeHoldRow.id)).with_for_update())
    return {HoldId(row.id): row for row in found}


async def _seen_before(tx: AsyncSession, attempt_ids: Sequence[str]) -> set[str]:
    query = sql("SELECT attempt_id FROM quotas.compute_usage WHERE attempt_id = ANY(CAST(:ids AS text[]))")
    return {row.attempt_id for row in await tx.execute(query, {"ids": list(attempt_ids)})}


def _is_plain(row: Any, usage: ComputeUsage, seen: set[str], *, now: datetime) -> bool:
    return (
        row is not None
        and usage.firm_id != PLATFORM_FIRM
        and (row.state, row.firm_id, row.subject, row.pool)
        == (HoldState.OPEN, usage.firm_id, usage.subject, usage.pool)
        and row.expires_at > now
        and usage.attempt_id not in seen
        and usage.gpu_ms >= 0
        and usage.ended_at >= usage.started_at
    )


async def _together(
    tx: AsyncSession, plain: Sequence[tuple[Any, ComputeUsage]], *, now: datetime
) -> dict[HoldId, Charge]:
    bills = await _bills(tx, plain)
    vouchers = {part.voucher_id for bill in bills for part in bill.allocation.parts}
    programmes = await programme_ids(tx, sorted(vouchers)) if vouchers else {}
    billed = [(row, usage, bill) for (row, usage), bill in zip(plain, bills, strict=True)]
    moves = added(move for row, usage, bill in billed for move in moves_of(row, usage, bill, programmes))
    ids = await ledger_store.accounts(tx, [spec for move in moves for spec in move[:2]], at=now)
    legs = [leg for row, usage, bill in billed for leg in resolving_legs(row, usage, bill)]
    legs += [posted(ids[debit], ids[credit], amount) for debit, credit, amount in moves]
    names = [f"{usage.attempt_id} {usage.started_at.isoformat()}" for _, usage in plain]
    await _post(tx, "settle", names, legs, now=now)
    return await _record(tx, billed, now=now)


async def _bills(tx: AsyncSession, plain: Sequence[tuple[Any, ComputeUsage]]) -> list[Bill]:
    await keep_prices(tx)
    start, end = min(u.started_at for _, u in plain), max(u.ended_at for _, u in plain)
    tariffs = await tariffs_between(tx, start, end)
    contracts = await discounts_between(tx, {usage.firm_id for _, usage in plain}, start, end)
    payout = await payouts(tx)
    return [
        bill_open(row, usage, tariffs, contracts.get(usage.firm_id, ()), payout(usage.centre, usage.started_at))
        for row, usage in plain
    ]


async def _post(tx: AsyncSession, scope: str, names: Sequence[str], legs: Sequence[Leg], *, now: datetime) -> None:
    if legs:
        key = ledger_store.request_hash(list(names)).hex()
        posting = await ledger_store.post(tx, scope=scope, key=key, request=list(names), legs=legs, at=now)
        assert not isinstance(posting, Refusal), f"open holds can be resolved: {posting}"


async def _record(
    tx: AsyncSession, billed: Sequence[tuple[Any, ComputeUsage, Bill]], *, now: datetime
) -> dict[HoldId, Charge]:
    wanted = {(usage.firm_id, service_period(usage.started_at, usage.ended_at)) for _, usage, _ in billed}
    periods = await billing_periods(tx, wanted, now=now)
    lines: list[dict[str, Any]] = []
    used: list[dict[str, Any]] = []
    charges: dict[HoldId, Charge] = {}
    for row, usage, bill in billed:
        period = periods[usage.firm_id, service_period(usage.started_at, usage.ended_at)]
        line = line_values(row, usage, bill, period)
        lines.append(line)
        used.append(
            {
                "attempt_id": usage.attempt_id,
                "started_at": usage.started_at,
                "ended_at": usage.ended_at,
                "gpu_ms": usage.gpu_ms,
                "request_hash": usage_hash(HoldId(row.id), usage),
                "charge_id": line["id"],
            }
        )
        charges[HoldId(row.id)] = charge_seen(line, bill.allocation.parts)
    await insert_many(tx, "quotas.charge", lines)
    await insert_many(tx, "quotas.compute_usage", used)
    reasons = {row.id: f"settled by {charges[HoldId(row.id)].id}" for row, _, _ in billed}
    await _close(tx, reasons, HoldState.SETTLED, now=now)
    return charges


async def _close(tx: AsyncSession, reasons: Mapping[str, str], state: HoldState, *, now: datetime) -> None:
    await tx.execute(
        sql("""UPDATE quotas.compute_hold h SET state = :state, closed_at = :now, close_reason = u.reason
            FROM unnest(CAST(:ids AS text[]), CAST(:reasons AS text[])) AS u (id, reason) WHERE h.id = u.id"""),
        {"state": state.value, "now": now, "ids": list(reasons), "reasons": list(reasons.values())},
    )
