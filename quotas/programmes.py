"""Voucher programmes: open one, grant vouchers under it, see what they hold, book back what expired."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from kit.db import violated_constraint
from kit.errors import Conflict, InvalidInput, NotFound, Refused
from kit.ids import new_id
from kit.units import MicroYuan, Ppm, format_yuan
from quotas import chart
from quotas.adapters import ledger_store
from quotas.adapters.ledger_store import Posting
from quotas.adapters.money_tables import ProgrammeRow, VoucherRow
from quotas.ledger import Refusal, posted
from quotas.pricing import SHANGHAI
from quotas.vocabulary import FirmId, ProgrammeId, RefusalReason, UsageKind, VoucherId
from quotas.vouchers import VoucherTerms, burn_order, room_under_cap


@dataclass(frozen=True, slots=True)
class ProgrammeSpec:
    """A programme as an administrator describes it; valid in [valid_from, valid_until)."""

    name: str
    funder: str
    share_ppm: Ppm
    pool: MicroYuan
    cap_per_firm_year: MicroYuan
    valid_from: datetime
    valid_until: datetime
    voucher_days: int = 365
    priority: int = 100
    covers: frozenset[UsageKind] = frozenset({UsageKind.COMPUTE})
    pools: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Programme:
    id: ProgrammeId
    spec: ProgrammeSpec
    left: MicroYuan


@dataclass(frozen=True, slots=True)
class Voucher:
    """A grant and what it still has free."""

    terms: VoucherTerms
    amount: MicroYuan
    granted_by: str
    granted_at: datetime
    note: str


async def create_programme(tx: AsyncSession, spec: ProgrammeSpec, *, by: str, now: datetime) -> Programme:
    """Open a programme and fill its pool with the funder's promise.

    Raises InvalidInput for a window that is empty or over, Conflict (`name_taken`).
    """
    if spec.valid_until <= spec.valid_from:
        raise InvalidInput("a programme ends after it starts", hint="give a later valid_until")
    if spec.valid_until <= now:
        raise InvalidInput("a programme that is over cannot be opened", hint="give a later valid_until")
    row = ProgrammeRow(
        id=new_id("prg"),
        name=spec.name,
        funder=spec.funder,
        share_ppm=spec.share_ppm,
        pool=spec.pool,
        cap_per_firm_year=spec.cap_per_firm_year,
        validity=Range(spec.valid_from, spec.valid_until, bounds="[)"),
        voucher_days=spec.voucher_days,
        priority=spec.priority,
        covers=sorted(spec.covers),
        pools=None if spec.pools is None else sorted(spec.pools),
        created_by=by,
        created_at=now,
    )
    try:
        async with tx.begin_nested():
            tx.add(row)
            await tx.flush()
    except IntegrityError as error:
        if violated_constraint(error) != "programme_name_key":
            raise
        taken = f"There is a programme {spec.name!r} already."
        raise Conflict(taken, code="name_taken", hint="choose another name") from None
    programme_id = ProgrammeId(row.id)
    issued, pool = chart.programme_issued(programme_id), chart.programme_pool(programme_id)
    ids = await ledger_store.accounts(tx, [issued, pool], at=now)
    await ledger_store.post(
        tx,
        scope="programme",
        key=programme_id,
        request=spec.pool,
        legs=[posted(ids[issued], ids[pool], spec.pool)],
        at=now,
    )
    return Programme(programme_id, spec, spec.pool)


async def programmes(tx: AsyncSession) -> list[Programme]:
    """Every programme and what is left in its pool."""
    rows = (await tx.execute(select(ProgrammeRow).order_by(text("created_at")))).scalars().all()
    pools = [chart.programme_pool(ProgrammeId(row.id)) for row in rows]
    states = await ledger_store.bounded_states(tx, pools)
    return [
        Programme(ProgrammeId(row.id), _spec(row), MicroYuan(states[pool.code].available))
        for row, pool in zip(rows, pools, strict=True)
    ]


def _spec(row: ProgrammeRow) -> ProgrammeSpec:
    assert row.validity.lower is not None and row.validity.upper is not None, "a CHECK says so"
    return ProgrammeSpec(
        name=row.name,
        funder=row.funder,
        share_ppm=Ppm(row.share_ppm),
        pool=MicroYuan(row.pool),
        cap_per_firm_year=MicroYuan(row.cap_per_firm_year),
        valid_from=row.validity.lower,
        valid_until=row.validity.upper,
        voucher_days=row.voucher_days,
        priority=row.priority,
        covers=frozenset(UsageKind(kind) for kind in row.covers),
        pools=None if row.pools is None else frozenset(row.pools),
    )


async def grant_voucher(
    tx: AsyncSession,
    *,
    key: str,
    programme_id: ProgrammeId,
    firm_id: FirmId,
    amount: MicroYuan,
    note: str,
    by: str,
    now: datetime,
) -> Voucher:
    """Grant a firm part of a programme's pool. The same key twice grants once.

    Raises NotFound, Refused (`programme_closed`, `firm_cap_reached`, `pool_empty`), Conflict (`key_reused`).
    """
    # The row is locked so that two grants cannot both fit under one cap.
    row = await tx.get(ProgrammeRow, programme_id, with_for_update=True)
    if row is None:
        raise _not_found(programme_id)
    spec = _spec(row)
    pool = chart.programme_pool(programme_id)
    voucher_id = VoucherId("vch_" + ledger_store.request_hash([programme_id, key]).hex()[:26])
    known = await tx.get(VoucherRow, voucher_id)
    if known is not None:
        if (known.firm_id, known.amount, known.note) != (firm_id, amount, note):
            raise ledger_store.key_reused("voucher", key)
        return await _one(tx, voucher_id)
    await _check_grant(tx, programme_id, spec, firm_id, amount, now=now)
    grant = VoucherRow(
        id=voucher_id,
        programme_id=programme_id,
        firm_id=firm_id,
        amount=amount,
        valid_from=now,
        expires_at=min(now + timedelta(days=spec.voucher_days), spec.valid_until),
        granted_by=by,
        granted_at=now,
        note=note,
    )
    account = chart.voucher(voucher_id, programme_id)
    ids = await ledger_store.accounts(tx, [pool, account], at=now)
    posting = await ledger_store.post(
        tx,
        scope="voucher",
        key=voucher_id,
        request=[firm_id, amount],
        legs=[posted(ids[pool], ids[account], amount)],
        at=now,
    )
    if isinstance(posting, Refusal):
        state = (await ledger_store.bounded_states(tx, [pool]))[pool.code]
        raise Refused(
            f"The pool of {spec.name!r} has {format_yuan(state.available)} left.",
            code=RefusalReason.POOL_EMPTY.value,
            hint="grant less",
        )
    tx.add(grant)
    await tx.flush()
    return await _one(tx, voucher_id)


def _not_found(programme_id: ProgrammeId) -> NotFound:
    hint = "see: heliu programme list"
    return NotFound(f"There is no programme {programme_id}.", code="programme_not_found", hint=hint)


async def _check_grant(
    tx: AsyncSession,
    programme_id: ProgrammeId,
    spec: ProgrammeSpec,
    firm_id: FirmId,
    amount: int,
    *,
    now: datetime,
) -> None:
    if not spec.valid_from <= now < spec.valid_until:
        raise Refused(
            f"{spec.name!r} grants from {spec.valid_from.isoformat()} until {spec.valid_until.isoformat()} only.",
            code=RefusalReason.PROGRAMME_CLOSED.value,
            hint="grant within that time, or open another: heliu programme create",
        )
    year = datetime(now.astimezone(SHANGHAI).year, 1, 1, tzinfo=SHANGHAI)
    granted = await tx.execute(
        text("""SELECT coalesce(sum(amount), 0)::bigint FROM quotas.voucher
            WHERE programme_id = :programme AND firm_id = :firm AND granted_at >= :year"""),
        {"programme": programme_id, "firm": firm_id, "year": year},
    )
    room = room_under_cap(cap=spec.cap_per_firm_year, granted_this_year=MicroYuan(granted.scalar_one()))
    if amount > room:
        raise Refused(
            f"The firm may be granted {format_yuan(room)} more of {spec.name!r} in {year.year}; "
            f"its cap is {format_yuan(spec.cap_per_firm_year)} a year.",
            code=RefusalReason.FIRM_CAP_REACHED.value,
            hint="grant less, or wait for the next year",
            details={"room_micro_yuan": room},
        )


_VOUCHERS = """
    SELECT v.id, v.programme_id, v.firm_id, p.share_ppm, p.priority, v.valid_from, v.expires_at, p.covers, p.pools,
        v.amount, v.granted_by, v.granted_at, v.note,
        b.credits_posted - b.debits_posted - b.debits_pending AS left
    FROM quotas.voucher v JOIN quotas.programme p ON p.id = v.programme_id
    JOIN quotas.account a ON a.code = 'voucher:' || v.id JOIN quotas.balance b ON b.account_id = a.id"""


async def vouchers_of(tx: AsyncSession, firm_id: FirmId) -> list[Voucher]:
    """A firm's vouchers, in burn order."""
    return await _vouchers(tx, "WHERE v.firm_id = :value", firm_id)


async def _one(tx: AsyncSession, voucher_id: VoucherId) -> Voucher:
    return (await _vouchers(tx, "WHERE v.id = :value", voucher_id))[0]


async def _vouchers(tx: AsyncSession, where: str, value: str) -> list[Voucher]:
    rows = (await tx.execute(text(f"{_VOUCHERS} {where}"), {"value": value})).all()
    found = {
        row.id: Voucher(
            VoucherTerms(
                VoucherId(row.id),
                ProgrammeId(row.programme_id),
                FirmId(row.firm_id),
                Ppm(row.share_ppm),
                row.priority,
                row.valid_from,
                row.expires_at,
                MicroYuan(row.left),
                frozenset(UsageKind(kind) for kind in row.covers),
                None if row.pools is None else frozenset(row.pools),
            ),
            MicroYuan(row.amount),
            row.granted_by,
            row.granted_at,
            row.note,
        )
        for row in rows
    }
    return [found[terms.id] for terms in burn_order([one.terms for one in found.values()])]


async def usable_terms(
    tx: AsyncSession, firm_id: FirmId, *, at: datetime, held: Mapping[VoucherId, int] | None = None
) -> list[VoucherTerms]:
    """The terms of a firm's vouchers that are not over and not used up; what is `held` for the caller is left too."""
    terms = [one.terms for one in await vouchers_of(tx, firm_id) if one.terms.expires_at > at]
    if held:
        terms = [replace(one, left=MicroYuan(one.left + held.get(one.id, 0))) for one in terms]
    return [one for one in terms if one.left > 0]


async def validity_edges(
    tx: AsyncSession, firm_ids: Collection[FirmId], *, at: datetime
) -> dict[FirmId, list[datetime]]:
    """The instants between which a firm has the same valid vouchers; a firm whose vouchers are all over is missing."""
    rows = await tx.execute(
        text("""SELECT firm_id, array_agg(valid_from) || array_agg(expires_at) AS edges FROM quotas.voucher
            WHERE firm_id = ANY(CAST(:firms AS text[])) AND expires_at > :at GROUP BY firm_id"""),
        {"firms": sorted(firm_ids), "at": at},
    )
    return {FirmId(row.firm_id): sorted(set(row.edges)) for row in rows}


async def voucher_ends(tx: AsyncSession, voucher_ids: Sequence[VoucherId]) -> list[datetime]:
    """When these vouchers expire."""
    rows = await tx.execute(
        text("SELECT expires_at FROM quotas.voucher WHERE id = ANY(CAST(:ids AS text[]))"), {"ids": list(voucher_ids)}
    )
    return list(rows.scalars())


async def programme_ids(tx: AsyncSession, voucher_ids: Sequence[VoucherId]) -> dict[VoucherId, ProgrammeId]:
    """Which programme each voucher is of."""
    rows = await tx.execute(
        text("SELECT id, programme_id FROM quotas.voucher WHERE id = ANY(CAST(:ids AS text[]))"),
        {"ids": list(voucher_ids)},
    )
    return {VoucherId(row.id): ProgrammeId(row.programme_id) for row in rows}


async def expire_vouchers(tx: AsyncSession, *, now: datetime) -> int:
    """Book what expired vouchers have free back to their pools; what they have on hold stays until it is resolved.

    Returns how many: not those of which somebody took a part just now, which are looked at again.
    """
    rows = (
        await tx.execute(
            text(f"""{_VOUCHERS} WHERE v.expires_at <= :now
                AND b.credits_posted - b.debits_posted - b.debits_pending > 0 ORDER BY a.id LIMIT 200"""),
            {"now": now},
        )
    ).all()
    done = 0
    for row in rows:
        voucher_id, programme_id = VoucherId(row.id), ProgrammeId(row.programme_id)
        account, pool = chart.voucher(voucher_id, programme_id), chart.programme_pool(programme_id)
        ids = await ledger_store.accounts(tx, [account, pool], at=now)
        posting = await ledger_store.post(
            tx,
            scope="voucher-expiry",
            key=f"{voucher_id} {now.isoformat()} {row.left}",
            request=row.left,
            legs=[posted(ids[account], ids[pool], row.left)],
            at=now,
        )
        done += isinstance(posting, Posting) and not posting.replayed
    return done
