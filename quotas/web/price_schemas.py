"""What the routes of prices take and give. A tariff is a whole price book."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from kit.errors import InvalidInput
from kit.patterns import Pattern
from kit.units import PPM
from kit.web import Body, View
from quotas.centre_contracts import CentreContract
from quotas.discounts import Contract
from quotas.previews import Preview
from quotas.pricing import MINUTES_PER_DAY, Meter, RateKey, Tariff, Window, scaled_rate, unpriced_hours
from quotas.vocabulary import QoS, UsageKind
from quotas.web.schemas import Id, Instant, Line, Paragraph

Rate = Annotated[int, Field(ge=0, le=2**40)]
Share = Annotated[int, Field(ge=0, le=PPM)]
Resource = Annotated[
    str,
    StringConstraints(min_length=1, max_length=120),
    Pattern(
        r"^(\*|[a-zA-Z0-9][a-zA-Z0-9._/-]*)$",
        "a price is for a pool or a model, of letters, digits, '.', '_', '/' and '-', or by * for all of them",
        "east/a100",
    ),
]
WindowName = Annotated[
    str,
    Pattern(r"^[a-z][a-z-]{0,30}$", "a window is named by 1 to 31 of a-z and '-', with a letter first", "valley"),
]


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


class ImagePriceIn(Body):
    """A model's price per image."""

    model: Resource
    micro_yuan_per_image: Rate
    window: WindowName | None = None


class AudioPriceIn(Body):
    """A model's price per second of audio."""

    model: Resource
    micro_yuan_per_second: Rate
    window: WindowName | None = None


class StoragePriceIn(Body):
    """The price of 10^9 bytes stored for 720 hours; `files` are a firm's uploads and artifacts."""

    resource: Resource = "files"
    micro_yuan_per_gb_month: Rate


class TariffIn(Body):
    """A whole price book. `ends_prices`: what the version before has a price for and this one has not may end."""

    name: Line
    valid_from: Instant | None = None
    gpu: list[GpuPriceIn] = Field(default_factory=list, max_length=500)
    tokens: list[TokenPriceIn] = Field(default_factory=list, max_length=500)
    images: list[ImagePriceIn] = Field(default_factory=list, max_length=500)
    audio: list[AudioPriceIn] = Field(default_factory=list, max_length=500)
    storage: list[StoragePriceIn] = Field(default_factory=list, max_length=20)
    windows: list[WindowIn] = Field(default_factory=list, max_length=10)
    ends_prices: bool = False

    @model_validator(mode="after")
    def _names_its_windows(self) -> Self:
        known = {window.name for window in self.windows}
        unknown = {price.window for price in (*self.gpu, *self.tokens, *self.images, *self.audio)} - known - {None}
        if unknown:
            raise ValueError(f"prices name windows that are not described: {', '.join(sorted(map(str, unknown)))}")
        _check_windows(self.windows)
        return self

    def rates(self) -> dict[RateKey, int]:
        """Every price as it will stand in the book. Raises InvalidInput for none, one given twice, a gap in the day."""
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
        priced += [(RateKey(Meter.IMAGE, i.model, "", i.window or ""), i.micro_yuan_per_image) for i in self.images]
        priced += [
            (RateKey(Meter.AUDIO_SECOND, a.model, "", a.window or ""), a.micro_yuan_per_second) for a in self.audio
        ]
        priced += [(RateKey(Meter.STORAGE_GB_MONTH, s.resource), s.micro_yuan_per_gb_month) for s in self.storage]
        book = dict(priced)
        if not book:
            raise InvalidInput("a tariff has at least one price", hint="give gpu, tokens, images, audio or storage")
        if len(book) != len(priced):
            raise InvalidInput("a price is given twice", hint="name each pool or model once per window")
        if gap := unpriced_hours(book):
            raise InvalidInput(
                f"{gap[0].resource} has a price for {gap[0].meter} in window {gap[0].window} and none for the rest of "
                "the day",
                hint="give it a price without a window too",
            )
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
    reason: Paragraph


class ContractOut(View):
    """`valid_from` null: what a centre without a contract is paid."""

    centre: str
    payout_ppm: int
    valid_from: datetime | None
    valid_until: datetime | None

    @classmethod
    def of(cls, one: CentreContract) -> Self:
        """A contract as it is shown."""
        return cls(centre=one.centre, payout_ppm=one.payout_ppm, valid_from=one.valid_from, valid_until=one.valid_until)


class DiscountIn(Body):
    """So much off a firm's rates of a kind of usage; `resource` is a pool or model, or `*`."""

    firm_id: Id
    kind: UsageKind
    resource: Resource = "*"
    off_ppm: Annotated[int, Field(ge=1, le=PPM)]
    valid_from: Instant | None = None
    valid_until: Instant | None = None
    contract: Line


class DiscountOut(View):
    id: str
    firm_id: str
    kind: UsageKind
    resource: str
    off_ppm: int
    valid_from: datetime
    valid_until: datetime | None
    contract: str
    granted_by: str
    granted_at: datetime

    @classmethod
    def of(cls, one: Contract) -> Self:
        """A discount as it is shown."""
        terms = one.terms
        return cls(
            id=terms.id,
            firm_id=terms.firm_id,
            kind=terms.kind,
            resource=terms.resource,
            off_ppm=terms.off_ppm,
            valid_from=terms.valid_from,
            valid_until=terms.valid_until,
            contract=one.contract,
            granted_by=one.granted_by,
            granted_at=one.granted_at,
        )


class PreviewIn(Body):
    """A draft of a price book, and the month to price anew: by default the last whole one, of all firms."""

    tariff: TariffIn
    period: Annotated[str, StringConstraints(max_length=20)] | None = None
    firm_id: Id | None = None


class PreviewLineOut(View):
    firm_id: str
    kind: UsageKind
    now_micro_yuan: int
    draft_micro_yuan: int


class PreviewOut(View):
    """`now`: as it was priced, after discounts and before what a hold capped. `unpriced` counts as nothing."""

    period: str
    lines: list[PreviewLineOut]
    now_micro_yuan: int
    draft_micro_yuan: int
    unpriced: list[str]

    @classmethod
    def of(cls, one: Preview) -> Self:
        """A preview as it is shown."""
        return cls(
            period=one.period,
            lines=[
                PreviewLineOut(
                    firm_id=line.firm_id, kind=line.kind, now_micro_yuan=line.now, draft_micro_yuan=line.draft
                )
                for line in one.lines
            ],
            now_micro_yuan=sum(line.now for line in one.lines),
            draft_micro_yuan=sum(line.draft for line in one.lines),
            unpriced=list(one.unpriced),
        )
