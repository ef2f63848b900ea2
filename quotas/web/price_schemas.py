"""What the routes of prices take and give. A tariff is a whole price book."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from kit.errors import InvalidInput
from kit.units import PPM
from kit.web import Body, View
from quotas.pricing import MINUTES_PER_DAY, Meter, RateKey, Tariff, Window, scaled_rate
from quotas.vocabulary import QoS
from quotas.web.schemas import Instant, Line

Rate = Annotated[int, Field(ge=0, le=2**40)]
Share = Annotated[int, Field(ge=0, le=PPM)]
Resource = Annotated[
    str, StringConstraints(min_length=1, max_length=120, pattern=r"^(\*|[a-zA-Z0-9][a-zA-Z0-9._/-]*)$")
]
WindowName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z-]{0,30}$")]


class WindowIn(Body):
    """A daily span of Shanghai minutes with prices of its own: valley, peak."""

    name: WindowName
    start_minute: Annotated[int, Field(ge=0, lt=MINUTES_PER_DAY)]
    end_minute: Annotated[int, Field(ge=0, lt=MINUTES_PER_DAY)]


class GpuPriceIn(Body):
    """A pool's price; a QoS without a factor of its own costs what `standard` does."""

    pool: Resource
    micro_yuan_per_gpu_hour: Rate
    qos_ppm: dict[QoS, Annotated[int, Field(ge=0, le=100 * PPM)]] = Field(default_factory=dict)
    window: WindowName | None = None


class TokenPriceIn(Body):
    """A model's prices per million tokens; cached input costs what input does unless said otherwise."""

    model: Resource
    input_micro_yuan_per_million: Rate
    output_micro_yuan_per_million: Rate
    cached_input_micro_yuan_per_million: Rate | None = None
    window: WindowName | None = None


class TariffIn(Body):
    name: Line
    valid_from: Instant | None = None
    gpu: list[GpuPriceIn] = Field(default_factory=list, max_length=500)
    tokens: list[TokenPriceIn] = Field(default_factory=list, max_length=500)
    windows: list[WindowIn] = Field(default_factory=list, max_length=10)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.gpu and not self.tokens:
            raise ValueError("a tariff has at least one price")
        known = {window.name for window in self.windows}
        unknown = {price.window for price in (*self.gpu, *self.tokens)} - known - {None}
        if unknown:
            raise ValueError(f"prices name windows that are not described: {', '.join(sorted(map(str, unknown)))}")
        _check_windows(self.windows)
        return self

    def rates(self) -> dict[RateKey, int]:
        """Every price as it will stand in the book. Raises InvalidInput for one that is given twice."""
        priced: list[tuple[RateKey, int]] = []
        for gpu in self.gpu:
            for qos in QoS:
                rate = scaled_rate(gpu.micro_yuan_per_gpu_hour, gpu.qos_ppm.get(qos, PPM))
                priced.append((RateKey(Meter.GPU_HOUR, gpu.pool, qos.value, gpu.window or ""), rate))
        for one in self.tokens:
            for meter, rate in (
                (Meter.INPUT, one.input_micro_yuan_per_million),
                (Meter.CACHED_INPUT, one.cached_input_micro_yuan_per_million),
                (Meter.OUTPUT, one.output_micro_yuan_per_million),
            ):
                if rate is not None:
                    priced.append((RateKey(meter, one.model, "", one.window or ""), rate))
        book = dict(priced)
        if len(book) != len(priced):
            raise InvalidInput("a price is given twice", hint="name each pool or model once per window")
        return book

    def spans(self) -> tuple[Window, ...]:
        """The windows."""
        return tuple(Window(w.name, w.start_minute, w.end_minute) for w in self.windows)


def _check_windows(windows: list[WindowIn]) -> None:
    minutes: set[int] = set()
    for window in windows:
        if window.start_minute == window.end_minute:
            raise ValueError(f"window {window.name} is empty")
        span = Window(window.name, window.start_minute, window.end_minute)
        own = {minute for minute in range(MINUTES_PER_DAY) if span.covers(minute)}
        if own & minutes:
            raise ValueError(f"window {window.name} overlaps another")
        minutes |= own


class RateOut(View):
    meter: Meter
    resource: str
    qos: str
    window: str
    micro_yuan: int


class TariffOut(View):
    id: str
    name: str
    valid_from: datetime
    valid_until: datetime | None
    windows: list[WindowIn]
    rates: list[RateOut]

    @classmethod
    def of(cls, tariff: Tariff, name: str) -> Self:
        """A tariff as it is shown."""
        return cls(
            id=tariff.id,
            name=name,
            valid_from=tariff.valid_from,
            valid_until=tariff.valid_until,
            windows=[
                WindowIn(name=w.name, start_minute=w.start_minute, end_minute=w.end_minute) for w in tariff.windows
            ],
            rates=[
                RateOut(meter=k.meter, resource=k.resource, qos=k.qos, window=k.window, micro_yuan=micro)
                for k, micro in sorted(tariff.rates.items())
            ],
        )


class GpuPriceOut(View):
    tariff_id: str
    pool: str
    qos: QoS
    micro_yuan_per_gpu_hour: int


class TokenPriceOut(View):
    tariff_id: str
    model: str
    input_micro_yuan_per_million: int
    cached_input_micro_yuan_per_million: int
    output_micro_yuan_per_million: int


class ContractIn(Body):
    payout_ppm: Share
