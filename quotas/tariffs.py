"""The price book: publish versions, find the one in force, and say what something costs per unit."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import Conflict, Refused
from kit.ids import new_id
from kit.units import MicroYuan, Ppm
from quotas.adapters.money_tables import CentreContractRow, RateRow, TariffRow
from quotas.price_times import change_prices, tariff_used_until
from quotas.pricing import Meter, RateKey, Tariff, Window, lost_prices, no_tariff, tariff_at, token_rates
from quotas.vocabulary import (
    CentreName,
    GpuRate,
    ModelName,
    PoolName,
    QoS,
    TariffId,
    TokenRate,
)

DEFAULT_PAYOUT_PPM = Ppm(800_000)
"""What a centre is paid of the list price until a contract says otherwise."""
PUBLISHING_SLACK = timedelta(minutes=1)

_LOAD = text("""
    SELECT t.id, lower(t.validity) AS valid_from, upper(t.validity) AS valid_until, t.windows,
        (SELECT coalesce(jsonb_agg(jsonb_build_array(r.meter, r.resource, r.qos, r."window", r.micro_yuan)), '[]')
         FROM quotas.rate r WHERE r.tariff_id = t.id) AS rates
    FROM quotas.tariff t
    WHERE t.validity && tstzrange(CAST(:start AS timestamptz), CAST(:end AS timestamptz), '[]')
    ORDER BY lower(t.validity)""")


async def tariffs_between(tx: AsyncSession, start: datetime | None, end: datetime | None) -> list[Tariff]:
    """The versions that touch [start, end], oldest first; None stands for always."""
    rows = await tx.execute(_LOAD, {"start": start, "end": end})
    return [
        Tariff(
            TariffId(row.id),
            row.valid_from,
            row.valid_until,
            {RateKey(Meter(m), resource, qos, window): micro for m, resource, qos, window, micro in row.rates},
            tuple(Window(w["name"], w["start_minute"], w["end_minute"]) for w in row.windows),
        )
        for row in rows
    ]


async def publish_tariff(
    tx: AsyncSession,
    *,
    name: str,
    valid_from: datetime | None,
    rates: Mapping[RateKey, int],
    windows: Sequence[Window] = (),
    ends_prices: bool = False,
    by: str,
    now: datetime,
) -> Tariff:
    """A new version from `valid_from` until the next one. It ends the version it falls into.

    Without `valid_from` it starts now, after all that was charged at the version before.
    Raises Refused (`tariff_in_the_past`) when it would change prices of time that has passed, Refused (`tariff_gap`)
    when something would have no price any more and `ends_prices` does not say so, Refused (`tariff_start_used`) when
    usage from then on was charged already, Conflict (`tariff_starts_taken`) when a version starts at that very instant.
    """
    await change_prices(tx)
    others = await tariffs_between(tx, None, None)
    start = valid_from or await _free_from(tx, others, now)
    if others and start < now - PUBLISHING_SLACK:
        raise Refused(
            f"A tariff cannot start at {start.isoformat()}: that time has passed, and its prices stand.",
            code="tariff_in_the_past",
            hint="leave out valid_from to start now, or choose a later time",
        )
    if any(other.valid_from == start for other in others):
        raise Conflict(
            f"A tariff already starts at {start.isoformat()}.",
            code="tariff_starts_taken",
            hint="choose another time",
        )
    if await _free_from(tx, others, start) > start:
        raise Refused(
            f"Usage after {start.isoformat()} was charged already, at the prices that stood.",
            code="tariff_start_used",
            hint="leave out valid_from to start as soon as possible, or choose a later time",
        )
    before = tariff_at(others, start)
    if before is not None and not ends_prices:
        _refuse_gap(before, Tariff(before.id, start, None, rates, tuple(windows)))
    if before is not None:
        row = await tx.get_one(TariffRow, before.id)
        row.validity = Range(before.valid_from, start, bounds="[)")
        await tx.flush()
    after = min((other for other in others if other.valid_from > start), key=lambda one: one.valid_from, default=None)
    until = None if after is None else after.valid_from
    tariff = Tariff(TariffId(new_id("trf")), start, until, dict(rates), tuple(windows))
    if after is not None and not ends_prices:
        _refuse_gap(tariff, after)
    await _write(tx, tariff, name=name, by=by, now=now)
    return tariff


async def _free_from(tx: AsyncSession, others: Sequence[Tariff], start: datetime) -> datetime:
    """The first instant from `start` on from which nothing was charged at the version in force."""
    before = tariff_at(others, start)
    used = None if before is None else await tariff_used_until(tx, before)
    return start if used is None else max(start, used)


def _refuse_gap(before: Tariff, after: Tariff) -> None:
    lost = lost_prices(before, after)
    if lost:
        named = ", ".join(" ".join(filter(None, (key.resource, key.qos, key.meter))) for key in lost[:5])
        raise Refused(
            f"From {after.valid_from.isoformat()} on there would be no price for {named}"
            + (f" and {len(lost) - 5} more." if len(lost) > 5 else "."),
            code="tariff_gap",
            hint="add its price, or say that it ends: ends_prices",
            details={"lost": [f"{key.meter} {key.resource} {key.qos}".strip() for key in lost]},
        )


async def _write(tx: AsyncSession, tariff: Tariff, *, name: str, by: str, now: datetime) -> None:
    tx.add(
        TariffRow(
            id=tariff.id,
            name=name,
            validity=Range(tariff.valid_from, tariff.valid_until, bounds="[)"),
            windows=[
                {
                    "name": w.name,
                    "start_minute": w.start_minute,
                    "end_minute": w.end_minute,
                }
                for w in tariff.windows
            ],
            published_by=by,
            published_at=now,
        )
    )
    await tx.flush()
    tx.add_all(
        RateRow(
            tariff_id=tariff.id,
            meter=k.meter,
            resource=k.resource,
            qos=k.qos,
            window=k.window,
            micro_yuan=micro,
        )
        for k, micro in tariff.rates.items()
    )
    await tx.flush()


async def tariff_names(tx: AsyncSession) -> dict[str, str]:
    """Tariff id → name."""
    rows = await tx.execute(text("SELECT id, name FROM quotas.tariff"))
    return {row.id: row.name for row in rows}


async def gpu_rate(tx: AsyncSession, *, pool: PoolName, qos: QoS, at: datetime) -> GpuRate:
    """The price of a GPU-hour at an instant. Raises Refused (`no_tariff`)."""
    tariff = tariff_at(await tariffs_between(tx, at, at), at)
    rate = tariff.rate(Meter.GPU_HOUR, pool, qos, tariff.window_at(at)) if tariff else None
    if tariff is None or rate is None:
        raise no_tariff(f"pool {pool} at QoS {qos}", at)
    return GpuRate(tariff.id, MicroYuan(rate))


async def gpu_rates(tx: AsyncSession, pools: Iterable[PoolName], *, at: datetime) -> dict[PoolName, MicroYuan]:
    """What a GPU-hour of standard work costs at an instant, of those of the pools that have a price."""
    tariff = tariff_at(await tariffs_between(tx, at, at), at)
    if tariff is None:
        return {}
    found = {pool: tariff.rate(Meter.GPU_HOUR, pool, QoS.STANDARD, tariff.window_at(at)) for pool in pools}
    return {pool: MicroYuan(rate) for pool, rate in found.items() if rate is not None}


async def token_rate(tx: AsyncSession, *, model: ModelName, at: datetime) -> TokenRate:
    """The prices of a model's tokens at an instant. Raises Refused (`no_tariff`)."""
    tariff = tariff_at(await tariffs_between(tx, at, at), at)
    rates = token_rates(tariff, model, tariff.window_at(at)) if tariff else None
    if tariff is None or rates is None:
        raise no_tariff(f"tokens of {model}", at)
    return TokenRate(tariff.id, *(MicroYuan(rate) for rate in rates))


async def set_centre_contract(tx: AsyncSession, *, centre: CentreName, payout_ppm: Ppm, now: datetime) -> None:
    """From now on pay a centre `payout_ppm` of the list price of the time it lends.

    Raises Conflict (`contract_begins_later`) when one begins at this very instant or, by another clock, after it.
    """
    await tx.execute(
        text("SELECT pg_advisory_xact_lock(hashtext('quotas.contract:' || :centre))"),
        {"centre": centre},
    )
    later = await tx.execute(
        text("SELECT 1 FROM quotas.centre_contract WHERE centre = :centre AND lower(validity) >= :now LIMIT 1"),
        {"centre": centre, "now": now},
    )
    if later.scalar_one_or_none() is not None:
        raise Conflict(
            f"A contract of {centre} has just begun.", code="contract_begins_later", hint="Look at it, then try again."
        )
    await tx.execute(
        text("""UPDATE quotas.centre_contract SET validity = tstzrange(lower(validity), :now)
            WHERE centre = :centre AND validity @> CAST(:now AS timestamptz)"""),
        {"centre": centre, "now": now},
    )
    tx.add(
        CentreContractRow(
            id=new_id("ctr"),
            centre=centre,
            payout_ppm=payout_ppm,
            validity=Range(now, None, bounds="[)"),
        )
    )
    await tx.flush()


async def payouts(tx: AsyncSession) -> Callable[[CentreName, datetime], Ppm]:
    """What part of the list price a centre is paid, at any instant."""
    rows = await tx.execute(
        text("""SELECT centre, payout_ppm, lower(validity) AS since, upper(validity) AS until
            FROM quotas.centre_contract""")
    )
    contracts: dict[str, list[tuple[datetime, datetime | None, Ppm]]] = {}
    for row in rows:
        contracts.setdefault(row.centre, []).append((row.since, row.until, Ppm(row.payout_ppm)))

    def at(centre: CentreName, instant: datetime) -> Ppm:
        known = contracts.get(centre, ())
        in_force = (ppm for since, until, ppm in known if since <= instant and (until is None or instant < until))
        return next(in_force, DEFAULT_PAYOUT_PPM)

    return at


async def payout_ppm(tx: AsyncSession, *, centre: CentreName, at: datetime) -> Ppm:
    """What part of the list price a centre is paid for time at an instant."""
    found = await tx.execute(
        text("""SELECT payout_ppm FROM quotas.centre_contract
            WHERE centre = :centre AND validity @> CAST(:at AS timestamptz)"""),
        {"centre": centre, "at": at},
    )
    value = found.scalar_one_or_none()
    return DEFAULT_PAYOUT_PPM if value is None else Ppm(value)
