"""Many holds in one transaction: whom money fails is told so by name, and keeps nobody else from starting.

What one firm may spend depends on the order of its own requests alone: they are served in the order they come in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import insert_many
from kit.errors import Refused
from kit.units import MicroYuan
from quotas import chart
from quotas.adapters import budget_store, ledger_store
from quotas.cash import no_money
from quotas.chart import AccountSpec
from quotas.discounts import discounts_between
from quotas.hold_terms import HoldPrice, HoldRequest, hold_values, price_between
from quotas.holds import HOLD_SLACK, hold_compute
from quotas.ledger import Leg, Refusal, pending
from quotas.pricing import Discount, Tariff
from quotas.programmes import usable_terms
from quotas.tariffs import tariffs_between
from quotas.vocabulary import (
    PLATFORM_FIRM,
    FirmId,
    Hold,
    HoldId,
    HoldState,
    ProgrammeId,
    UsageKind,
    VoucherId,
)
from quotas.vouchers import Allocation, VoucherTerms, allocate


async def hold_compute_many(tx: AsyncSession, asked: Sequence[HoldRequest], *, now: datetime) -> list[Hold | Refused]:
    """A hold or a refusal for each request, in their order; see `hold_compute` for what each means.

    Balances are locked in one order before anything is read, so two batches never wait for each other in a circle.
    """
    if not asked:
        return []
    firms = sorted({one.firm_id for one in asked})
    seen = await _look(tx, [one.key for one in asked], firms)
    for firm in sorted(seen.ruled):
        await budget_store.lock_spending(tx, firm)  # before any balance is touched: whoever waits here holds none
    apart = {
        one.key
        for one in asked
        if one.firm_id in seen.ruled or one.firm_id == PLATFORM_FIRM or one.key in seen.known_keys
    }
    plain = [one for one in asked if one.key not in apart]
    outcomes = await _together(tx, plain, firms, seen.with_vouchers, now=now)
    for one in asked:
        if one.key in apart:
            outcomes[one.key] = await _alone(tx, one, now=now)
    return [outcomes[one.key] for one in asked]


async def _alone(tx: AsyncSession, one: HoldRequest, *, now: datetime) -> Hold | Refused:
    try:
        return await hold_compute(
            tx, key=one.key, firm_id=one.firm_id, project_id=one.project_id, subject=one.subject, pool=one.pool,
            qos=one.qos, gpu_milli=one.gpu_milli, seconds_max=one.seconds_max, cap_micro_yuan=one.cap_micro_yuan,
            key_id=one.key_id, now=now,
        )  # fmt: skip
    except Refused as refusal:  # nothing has changed, the transaction may go on
        return refusal


@dataclass(frozen=True, slots=True)
class _Seen:
    """Who is not served with the others, firms under a hard rule and keys that came before; and who has vouchers."""

    ruled: set[str]
    known_keys: set[str]
    with_vouchers: list[FirmId]


async def _look(tx: AsyncSession, keys: Sequence[str], firms: Sequence[FirmId]) -> _Seen:
    rows = await tx.execute(_LOOK, {"keys": list(keys), "firms": list(firms)})
    found: dict[str, set[str]] = {"ruled": set(), "known": set(), "vouchers": set()}
    for what, name in rows:
        found[what].add(name)
    return _Seen(found["ruled"], found["known"], [FirmId(firm) for firm in sorted(found["vouchers"])])


_LOOK = text(f"""
    SELECT 'ruled', firm_id FROM ({budget_store.RULED_FIRMS}) AS ruled
    UNION ALL SELECT 'known', request_key FROM quotas.compute_hold WHERE request_key = ANY(CAST(:keys AS text[]))
    UNION ALL SELECT DISTINCT 'vouchers', firm_id FROM quotas.voucher
        WHERE firm_id = ANY(CAST(:firms AS text[]))""")  # noqa: S608


@dataclass(slots=True)
class _Purse:
    """What a firm still has while its requests are served one after the other."""

    cash: int
    vouchers: dict[VoucherId, VoucherTerms] = field(default_factory=dict[VoucherId, VoucherTerms])

    def pay(self, amount: MicroYuan, one: HoldRequest, *, now: datetime) -> Allocation | int:
        """Who pays, taken off at once; or the cash that was needed and is not there."""
        terms = list(self.vouchers.values())
        allocation = allocate(amount, terms, kind=UsageKind.COMPUTE, pool=one.pool, at=now)
        if allocation.cash > self.cash:
            return allocation.cash
        self.cash -= allocation.cash
        for part in allocation.parts:
            left = self.vouchers[part.voucher_id]
            self.vouchers[part.voucher_id] = replace(left, left=MicroYuan(left.left - part.amount))
        return allocation


@dataclass(frozen=True, slots=True)
class _Draft:
    """A hold that can be paid, before it is written."""

    asked: HoldRequest
    priced: HoldPrice
    allocation: Allocation
    programmes: Mapping[VoucherId, ProgrammeId]


async def _together(
    tx: AsyncSession,
    asked: Sequence[HoldRequest],
    firms: Sequence[FirmId],
    with_vouchers: Sequence[FirmId],
    *,
    now: datetime,
) -> dict[str, Hold | Refused]:
    if not asked:
        return {}
    tariffs, contracts = await _prices(tx, asked, now=now)
    purses, ids = await _purses(tx, firms, with_vouchers, now=now)
    outcomes: dict[str, Hold | Refused] = {}
    short: list[tuple[HoldRequest, int]] = []
    drafts: list[_Draft] = []
    prices: dict[object, HoldPrice | Refused] = {}  # many ask for the same
    for one in asked:
        alike = one.firm_id, one.pool, one.qos, one.gpu_milli, one.seconds_max
        if alike not in prices:
            prices[alike] = _price(one, tariffs, contracts.get(one.firm_id, ()), now=now)
        priced = prices[alike]
        if isinstance(priced, Refused):
            outcomes[one.key] = priced
            continue
        paid = purses[one.firm_id].pay(priced.capped(one.cap_micro_yuan), one, now=now)
        if isinstance(paid, int):
            short.append((one, paid))
        else:
            programmes = {v.id: v.programme_id for v in purses[one.firm_id].vouchers.values()}
            drafts.append(_Draft(one, priced, paid, programmes))
    outcomes |= await _write(tx, drafts, ids, now=now)
    for one, needed in short:
        outcomes[one.key] = await no_money(tx, one.firm_id, needed)
    return outcomes


def _price(
    one: HoldRequest, tariffs: Sequence[Tariff], contracts: Sequence[Discount], *, now: datetime
) -> HoldPrice | Refused:
    try:
        return price_between(tariffs, contracts, one.pool, one.qos, one.gpu_milli, 0, one.seconds_max, at=now)
    except Refused as refusal:
        return refusal


async def _prices(
    tx: AsyncSession, asked: Sequence[HoldRequest], *, now: datetime
) -> tuple[list[Tariff], dict[FirmId, list[Discount]]]:
    end = now + timedelta(seconds=max(one.seconds_max for one in asked))
    return await tariffs_between(tx, now, end), await discounts_between(tx, {one.firm_id for one in asked}, now, end)


async def _purses(
    tx: AsyncSession, firms: Sequence[FirmId], with_vouchers: Sequence[FirmId], *, now: datetime
) -> tuple[dict[FirmId, _Purse], dict[AccountSpec, int]]:
    """What each firm has, locked, and the ids of all accounts that a hold may touch."""
    seen = {firm: await usable_terms(tx, firm, at=now) for firm in with_vouchers}
    specs: list[AccountSpec] = [chart.revenue(UsageKind.COMPUTE), *(chart.firm_cash(firm) for firm in firms)]
    for voucher in (voucher for terms in seen.values() for voucher in terms):
        specs += [chart.voucher(voucher.id, voucher.programme_id), chart.programme_redeemed(voucher.programme_id)]
    ids = await ledger_store.accounts(tx, specs, at=now)
    states = await ledger_store.lock_states(tx, [number for spec, number in ids.items() if spec.bounded])
    terms = {firm: await usable_terms(tx, firm, at=now) for firm in seen}  # as they stand now that nobody moves them
    purses: dict[FirmId, _Purse] = {}
    for firm in firms:
        state = states.get(chart.firm_cash(firm).code)
        locked = [v for v in terms.get(firm, ()) if chart.voucher(v.id, v.programme_id) in ids]
        purses[firm] = _Purse(0 if state is None else state.available, {v.id: v for v in locked})
    return purses, ids


async def _write(
    tx: AsyncSession, drafts: Sequence[_Draft], ids: dict[AccountSpec, int], *, now: datetime
) -> dict[str, Hold | Refused]:
    """One operation of the ledger for all of them, and their rows."""
    legs = [leg for draft in drafts for leg in _legs(draft, ids, now=now)]
    numbers: list[int] = []
    if legs:
        keys = [draft.asked.key for draft in drafts]
        key = ledger_store.request_hash(keys).hex()
        posting = await ledger_store.post(tx, scope="hold", key=key, request=keys, legs=legs, at=now)
        if isinstance(posting, Refusal):  # of one of them: an account that is closed
            return {draft.asked.key: await _alone(tx, draft.asked, now=now) for draft in drafts}
        numbers = list(posting.transfer_ids)
    rows: list[dict[str, Any]] = []
    for draft in drafts:
        cash_pending = numbers.pop(0) if draft.allocation.cash else None
        parts = [numbers.pop(0) for _ in draft.allocation.parts]
        until = _until(draft.asked, now)
        tariff = draft.priced.tariff_id
        rows.append(hold_values(draft.asked, tariff, draft.allocation, cash_pending, parts, expires_at=until, now=now))
    await insert_many(tx, "quotas.compute_hold", rows)
    return {draft.asked.key: _view(draft, row) for draft, row in zip(drafts, rows, strict=True)}


def _legs(draft: _Draft, ids: dict[AccountSpec, int], *, now: datetime) -> list[Leg]:
    until, legs = _until(draft.asked, now), list[Leg]()
    if draft.allocation.cash:
        cash, revenue = chart.firm_cash(draft.asked.firm_id), chart.revenue(UsageKind.COMPUTE)
        legs.append(pending(ids[cash], ids[revenue], draft.allocation.cash, until))
    for part in draft.allocation.parts:
        programme = draft.programmes[part.voucher_id]
        voucher, redeemed = chart.voucher(part.voucher_id, programme), chart.programme_redeemed(programme)
        legs.append(pending(ids[voucher], ids[redeemed], part.amount, until))
    return legs


def _until(one: HoldRequest, now: datetime) -> datetime:
    return now + timedelta(seconds=one.seconds_max) + HOLD_SLACK


def _view(draft: _Draft, row: dict[str, Any]) -> Hold:
    one = draft.asked
    return Hold(
        HoldId(row["id"]), one.firm_id, one.project_id, one.subject, MicroYuan(row["amount"]),
        draft.allocation.cash, draft.allocation.parts, draft.priced.tariff_id, HoldState.OPEN, row["expires_at"],
    )  # fmt: skip
