"""Prices: which rate applies when, and what a quantity costs. Integers only; a line is rounded once, half to even.

Rates are micro-yuan per GPU-hour and per million tokens. A tariff is valid in [valid_from, valid_until); usage that
crosses a boundary (another tariff, a valley or peak window) is split there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import StrEnum

from kit.errors import Refused
from kit.units import MS_PER_HOUR, PPM, GpuMs, MicroYuan, Ppm, div_half_even
from quotas.vocabulary import RefusalReason, TariffId

SHANGHAI = timezone(timedelta(hours=8), "Asia/Shanghai")
TOKENS_PER_RATE = 1_000_000
RESIDUE_UNIT = 18_000_000
"""Least common multiple of MS_PER_HOUR and TOKENS_PER_RATE: every residue is a whole number of such parts."""
ANY = "*"
MINUTES_PER_DAY = 24 * 60
MINUTE = timedelta(minutes=1)


class Meter(StrEnum):
    """What a rate is per."""

    GPU_HOUR = "gpu_hour"
    INPUT = "input"
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"


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
class Segment:
    """A span of time at one price."""

    start: datetime
    end: datetime
    tariff_id: TariffId
    window: str
    rate: int


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


def gpu_segments(
    tariffs: Sequence[Tariff], *, pool: str, qos: str, start: datetime, end: datetime
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
        until = min(end, tariff.valid_until or end, _window_change(tariff, at) or end)
        segments.append(Segment(at, max(until, at), tariff.id, window, rate))
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


def share_of(amount: int, ppm: Ppm) -> MicroYuan:
    """`ppm` millionths of an amount, half to even: a centre's part, a discount."""
    return MicroYuan(div_half_even(amount * ppm, PPM))


def scaled_rate(rate: int, ppm: int) -> int:
    """A published rate from a base rate and a multiplier; rounded here once, so that the price book is integers."""
    return div_half_even(rate * ppm, PPM)


def rate_range(tariffs: Sequence[Tariff], *, pool: str, qos: str, start: datetime, end: datetime) -> tuple[int, int]:
    """Lowest and highest rate in [start, end), whenever in the day the work really runs."""
    rates = [segment.rate for segment in gpu_segments(tariffs, pool=pool, qos=qos, start=start, end=end)]
    for tariff in tariffs:
        if tariff.valid_from < end and (tariff.valid_until is None or tariff.valid_until > start):
            found = (tariff.rate(Meter.GPU_HOUR, pool, qos, name) for name in ("", *(w.name for w in tariff.windows)))
            rates += [rate for rate in found if rate is not None]
    return min(rates), max(rates)
