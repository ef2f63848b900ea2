"""Prices: which rate applies when, and what a quantity costs. Integers only; a line is rounded once, half to even.

Rates are micro-yuan per GPU-hour, per million tokens, per image, per second of audio, and per gigabyte (10^9 bytes)
stored for a month of 720 hours. A tariff is valid in [valid_from, valid_until); usage that crosses a boundary (another
tariff, a valley or peak window, a discount) is split there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import StrEnum

from kit.errors import Refused
from kit.units import MS_PER_HOUR, PPM, GpuMs, MicroYuan, Ppm, div_half_even
from quotas.vocabulary import ComputeUsage, DiscountId, FirmId, RefusalReason, TariffId, UsageKind

SHANGHAI = timezone(timedelta(hours=8), "Asia/Shanghai")
TOKENS_PER_RATE = 1_000_000
RESIDUE_UNIT = 18_000_000
"""Least common multiple of MS_PER_HOUR and TOKENS_PER_RATE: every residue is a whole number of such parts."""
MS_PER_SECOND = 1_000
BYTE_HOURS_PER_GB_MONTH = 10**9 * 720
ANY = "*"
MINUTES_PER_DAY = 24 * 60
MINUTE = timedelta(minutes=1)


class Meter(StrEnum):
    """What a rate is per."""

    GPU_HOUR = "gpu_hour"
    INPUT = "input"
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"
    IMAGE = "image"
    AUDIO_SECOND = "audio_second"
    STORAGE_GB_MONTH = "storage_gb_month"


UNIT_METERS: Mapping[UsageKind, tuple[Meter, int]] = {
    UsageKind.IMAGES: (Meter.IMAGE, 1),
    UsageKind.AUDIO: (Meter.AUDIO_SECOND, MS_PER_SECOND),
    UsageKind.STORAGE: (Meter.STORAGE_GB_MONTH, BYTE_HOURS_PER_GB_MONTH),
}
"""What is counted in one number → the meter of its rate, and how many of it the rate is for."""


@dataclass(frozen=True, slots=True)
class Window:
    """A daily span of Shanghai minutes [start, end) that has prices of its own; it may pass midnight."""

    name: str
    start_minute: int
    end_minute: int

    def covers(self, minute: int) -> bool:
        """Whether a minute of the day falls into the window."""
        if self.start_minute < self.end_minute:
            return self.start_minute <= minute < self.end_minute
        return minute >= self.start_minute or minute < self.end_minute


@dataclass(frozen=True, slots=True, order=True)
class RateKey:
    """What a rate is for. `qos` and `window` are empty where they do not matter; `resource` may be `*`."""

    meter: Meter
    resource: str
    qos: str = ""
    window: str = ""


@dataclass(frozen=True, slots=True)
class Tariff:
    id: TariffId
    valid_from: datetime
    valid_until: datetime | None
    rates: Mapping[RateKey, int]
    windows: tuple[Window, ...] = ()

    def covers(self, at: datetime) -> bool:
        """Whether the tariff is in force at an instant."""
        return self.valid_from <= at and (self.valid_until is None or at < self.valid_until)

    def window_at(self, at: datetime) -> str:
        """Name of the window an instant falls into, or empty."""
        local = at.astimezone(SHANGHAI)
        minute = local.hour * 60 + local.minute
        return next((w.name for w in self.windows if w.covers(minute)), "")

    def rate(self, meter: Meter, resource: str, qos: str = "", window: str = "") -> int | None:
        """The most particular rate there is: the resource before `*`, the window before none."""
        for name in (resource, ANY):
            for span in dict.fromkeys((window, "")):
                if (found := self.rates.get(RateKey(meter, name, qos, span))) is not None:
                    return found
        return None


@dataclass(frozen=True, slots=True)
class Discount:
    """A firm's contract: so many millionths off the rates of a kind of usage in [valid_from, valid_until).

    `resource` is a pool or model, or `*`; a named one goes before `*`.
    """

    id: DiscountId
    firm_id: FirmId
    kind: UsageKind
    resource: str
    off_ppm: Ppm
    valid_from: datetime
    valid_until: datetime | None

    def covers(self, at: datetime) -> bool:
        """Whether the discount is in force at an instant."""
        return self.valid_from <= at and (self.valid_until is None or at < self.valid_until)


def discount_at(discounts: Sequence[Discount], kind: UsageKind, resource: str, at: datetime) -> Discount | None:
    """What a firm's contract says of a resource at an instant; at most one per resource is in force (a constraint)."""
    found = {one.resource: one for one in discounts if one.kind == kind and one.covers(at)}
    return found.get(resource) or found.get(ANY)


def contract_rate(rate: int, discount: Discount | None) -> int:
    """A rate under a contract, a whole number again: so a line is still rounded once, from whole rates."""
    return rate if discount is None else scaled_rate(rate, PPM - discount.off_ppm)


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of time at one price; `rate` is the contract's, `list_rate` the tariff's."""

    start: datetime
    end: datetime
    tariff_id: TariffId
    window: str
    rate: int
    list_rate: int
    discount_id: DiscountId | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """An amount in micro-yuan, and what rounding left over in 1/RESIDUE_UNIT micro-yuan (exact less rounded)."""

    amount: MicroYuan
    residue: int


def no_tariff(what: str, at: datetime) -> Refused:
    """The refusal of whatever has no price."""
    return Refused(
        f"There is no price for {what} at {at.isoformat()}.",
        code=RefusalReason.NO_TARIFF.value,
        hint="an administrator publishes one: heliu tariff publish",
    )


def tariff_at(tariffs: Sequence[Tariff], at: datetime) -> Tariff | None:
    """The tariff in force at an instant; at most one is, by a constraint of the database."""
    return next((t for t in tariffs if t.covers(at)), None)


def price_edges(tariffs: Sequence[Tariff], discounts: Sequence[Discount]) -> list[datetime]:
    """The instants between which no tariff and no discount begins or ends, in order."""
    edges = {edge for one in (*tariffs, *discounts) for edge in (one.valid_from, one.valid_until) if edge is not None}
    return sorted(edges)


def gpu_segments(
    tariffs: Sequence[Tariff],
    *,
    pool: str,
    qos: str,
    start: datetime,
    end: datetime,
    discounts: Sequence[Discount] = (),
) -> tuple[Segment, ...]:
    """[start, end) cut at every change of price. Raises Refused (`no_tariff`) where no price is in force."""
    segments: list[Segment] = []
    at = start
    while at < end or not segments:
        tariff = tariff_at(tariffs, at)
        window = tariff.window_at(at) if tariff else ""
        rate = tariff.rate(Meter.GPU_HOUR, pool, qos, window) if tariff else None
        if tariff is None or rate is None:
            raise no_tariff(f"pool {pool} at QoS {qos}", at)
        discount = discount_at(discounts, UsageKind.COMPUTE, pool, at)
        until = min(
            end, tariff.valid_until or end, _window_change(tariff, at) or end, _contract_change(discounts, at) or end
        )
        net, contract = contract_rate(rate, discount), discount.id if discount else None
        segments.append(Segment(at, max(until, at), tariff.id, window, net, rate, contract))
        if until <= at:
            break
        at = until
    return tuple(segments)


def _window_change(tariff: Tariff, at: datetime) -> datetime | None:
    """The next instant after `at` at which a window begins or ends."""
    if not tariff.windows:
        return None
    local = at.astimezone(SHANGHAI)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    edges = {m for w in tariff.windows for m in (w.start_minute % MINUTES_PER_DAY, w.end_minute % MINUTES_PER_DAY)}
    instants = (midnight + (m + day * MINUTES_PER_DAY) * MINUTE for m in edges for day in (0, 1))
    return min((i for i in instants if i > at), default=None)


def _contract_change(discounts: Sequence[Discount], at: datetime) -> datetime | None:
    """The next instant after `at` at which a discount begins or ends."""
    edges = (edge for one in discounts for edge in (one.valid_from, one.valid_until) if edge is not None)
    return min((edge for edge in edges if edge > at), default=None)


def spread(total: int, spans: Sequence[tuple[datetime, datetime]]) -> tuple[int, ...]:
    """`total` shared over spans by their length, whole and without loss."""
    lengths = [(end - start) // timedelta(microseconds=1) for start, end in spans]
    whole = sum(lengths)
    if whole == 0:
        return (total, *(0 for _ in spans[1:]))
    shares: list[int] = []
    passed = given = 0
    for length in lengths:
        passed += length
        upto = total * passed // whole
        shares.append(upto - given)
        given = upto
    return tuple(shares)


def token_rates(tariff: Tariff, model: str, window: str) -> tuple[int, int, int] | None:
    """(input, cached input, output); cached input costs what input does unless it has a price of its own."""
    given = tariff.rate(Meter.INPUT, model, window=window)
    cached = tariff.rate(Meter.CACHED_INPUT, model, window=window)
    output = tariff.rate(Meter.OUTPUT, model, window=window)
    if given is None or output is None:
        return None
    return given, given if cached is None else cached, output


def price_gpu(parts: Sequence[tuple[GpuMs, int]]) -> Price:
    """The price of GPU milliseconds at micro-yuan per GPU-hour each, rounded once over all parts."""
    exact = sum(gpu_ms * rate for gpu_ms, rate in parts)
    amount = div_half_even(exact, MS_PER_HOUR)
    return Price(MicroYuan(amount), (exact - amount * MS_PER_HOUR) * (RESIDUE_UNIT // MS_PER_HOUR))


def price_tokens(parts: Sequence[tuple[int, int]]) -> Price:
    """The price of token counts at micro-yuan per million each, rounded once over all parts."""
    exact = sum(count * rate for count, rate in parts)
    amount = div_half_even(exact, TOKENS_PER_RATE)
    return Price(MicroYuan(amount), (exact - amount * TOKENS_PER_RATE) * (RESIDUE_UNIT // TOKENS_PER_RATE))


def price_units(kind: UsageKind, quantity: int, rate: int) -> Price:
    """The price of images, milliseconds of audio or byte-hours, rounded once.

    The residue is in 1/RESIDUE_UNIT micro-yuan, but for storage in 1/BYTE_HOURS_PER_GB_MONTH.
    """
    _, per = UNIT_METERS[kind]
    amount = div_half_even(quantity * rate, per)
    left = quantity * rate - amount * per
    return Price(MicroYuan(amount), left if kind is UsageKind.STORAGE else left * (RESIDUE_UNIT // per))


def share_of(amount: int, ppm: Ppm) -> MicroYuan:
    """`ppm` millionths of an amount, half to even: a centre's part, a discount."""
    return MicroYuan(div_half_even(amount * ppm, PPM))


def scaled_rate(rate: int, ppm: int) -> int:
    """A published rate from a base rate and a multiplier; rounded here once, so that the price book is integers."""
    return div_half_even(rate * ppm, PPM)


def rate_range(
    tariffs: Sequence[Tariff],
    *,
    pool: str,
    qos: str,
    start: datetime,
    end: datetime,
    discounts: Sequence[Discount] = (),
) -> tuple[int, int]:
    """Lowest and highest rate in [start, end), whenever in the day the work really runs."""
    segments = gpu_segments(tariffs, pool=pool, qos=qos, start=start, end=end, discounts=discounts)
    rates = [segment.rate for segment in segments]
    contracts = {discount_at(discounts, UsageKind.COMPUTE, pool, segment.start) for segment in segments}
    for tariff in tariffs:
        if tariff.valid_from < end and (tariff.valid_until is None or tariff.valid_until > start):
            found = (tariff.rate(Meter.GPU_HOUR, pool, qos, name) for name in ("", *(w.name for w in tariff.windows)))
            rates += [contract_rate(rate, contract) for rate in found if rate is not None for contract in contracts]
    return min(rates), max(rates)


def unpriced_hours(rates: Iterable[RateKey]) -> list[RateKey]:
    """Prices for a window only: where nothing says what the rest of the day costs, there would be a gap every day."""
    known = set(rates)
    return sorted(
        key
        for key in known
        if key.window and not {RateKey(key.meter, name, key.qos) for name in (key.resource, ANY)} & known
    )


def lost_prices(before: Tariff, after: Tariff) -> list[RateKey]:
    """What one version has a price for and its successor would not: the gap that publishing it would open."""
    return sorted(
        key for key in before.rates if not key.window and after.rate(key.meter, key.resource, key.qos) is None
    )


def priced(
    usage: ComputeUsage, tariffs: Sequence[Tariff], discounts: Sequence[Discount]
) -> tuple[tuple[Segment, ...], Price, Price]:
    """(spans at one price each, the list price, the contract's). Raises Refused (`no_tariff`)."""
    segments = gpu_segments(
        tariffs,
        pool=usage.pool,
        qos=usage.qos,
        start=usage.started_at,
        end=usage.ended_at,
        discounts=discounts,
    )
    shares = [GpuMs(share) for share in spread(usage.gpu_ms, [(one.start, one.end) for one in segments])]
    listed = price_gpu([(share, one.list_rate) for share, one in zip(shares, segments, strict=True)])
    return segments, listed, price_gpu([(share, one.rate) for share, one in zip(shares, segments, strict=True)])


def shown_rates(segments: Sequence[Segment], *, contract: bool) -> dict[str, int]:
    """The rates of a line by tariff, window and discount: those of the tariffs, or those that a contract changed."""
    return {
        " ".join(filter(None, (one.tariff_id, one.window, one.discount_id))): one.rate if contract else one.list_rate
        for one in segments
        if one.discount_id or not contract
    }
