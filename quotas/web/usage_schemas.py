"""What the routes of usage take and give. An event is a CloudEvent 1.0; its type says what its data counts."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from kit.errors import InvalidInput
from kit.units import Tokens
from kit.web import Body, View
from quotas.metering import QUANTITY_MAX, TOKENS_MAX, UsageRecord
from quotas.usage_imports import ImportResult
from quotas.vocabulary import NO_KEY, FirmId, KeyId, MeteredUsage, ModelName, ProjectId, TokenUsage, UsageKind
from quotas.web.names import Model
from quotas.web.schemas import Id, Instant, Line

Count = Annotated[int, Field(ge=0, le=TOKENS_MAX)]
OWN_SOURCES = "heliu/"
FUTURE = timedelta(minutes=5)
"""How far the clock of a source may be ahead."""
Quantity = Annotated[int, Field(ge=0, le=QUANTITY_MAX)]
EventType = Literal["heliu.usage.tokens.v1", "heliu.usage.images.v1", "heliu.usage.audio.v1", "heliu.usage.storage.v1"]
KINDS: dict[EventType, tuple[UsageKind, tuple[str, ...]]] = {
    "heliu.usage.tokens.v1": (UsageKind.TOKENS, ("input", "output")),
    "heliu.usage.images.v1": (UsageKind.IMAGES, ("images",)),
    "heliu.usage.audio.v1": (UsageKind.AUDIO, ("audio_ms",)),
    "heliu.usage.storage.v1": (UsageKind.STORAGE, ("byte_hours",)),
}


class UsageData(Body):
    """Who used how much of what; the counts are those of the event's type and no others."""

    firm_id: Id
    project_id: Id
    key_id: Id | None = None
    model: Model
    base_model: Model | None = None
    input: Count | None = None
    cached_input: Count | None = None
    output: Count | None = None
    images: Quantity | None = None
    audio_ms: Quantity | None = None
    byte_hours: Quantity | None = None


class UsageEvent(Body):
    """One CloudEvent; `source` and `id` name it for ever."""

    specversion: Literal["1.0"]
    id: Line
    source: Line
    type: EventType
    time: Instant
    subject: Line | None = None
    datacontenttype: Literal["application/json"] | None = None
    data: UsageData

    def _check(self, needed: tuple[str, ...], now: datetime) -> None:
        about = f"event {self.id!r} of {self.source!r}"
        given = {name for name, count in self._counts().items() if count is not None} - {"cached_input"}
        if given != set(needed) or (self.data.cached_input is not None and "input" not in needed):
            raise InvalidInput(f"{about}: {self.type} counts {' and '.join(needed)}, and nothing else")
        if self.source.startswith(OWN_SOURCES):
            raise InvalidInput(
                f"{about}: sources that begin with {OWN_SOURCES} are the platform's own", hint="name yours otherwise"
            )
        if self.time > now + FUTURE:
            raise InvalidInput(
                f"{about} is of {self.time.isoformat()}, which is still to come", hint="set the source's clock right"
            )

    def _counts(self) -> dict[str, int | None]:
        names = {"input", "cached_input", "output", "images", "audio_ms", "byte_hours"}
        return {name: getattr(self.data, name) for name in names}

    def record(self, now: datetime) -> UsageRecord:
        """The record of it. Raises InvalidInput for counts that are not its type's, and a time still to come."""
        data, (kind, needed) = self.data, KINDS[self.type]
        self._check(needed, now)
        model, priced_as = ModelName(data.model), ModelName(data.base_model or data.model)
        who: dict[str, Any] = {
            "id": self.id,
            "source": self.source,
            "key_id": KeyId(data.key_id) if data.key_id else NO_KEY,
            "firm_id": FirmId(data.firm_id),
            "project_id": ProjectId(data.project_id),
            "at": self.time,
            "outcome": "reported",
        }
        if kind is UsageKind.TOKENS:
            given, cached, output = Tokens(data.input or 0), Tokens(data.cached_input or 0), Tokens(data.output or 0)
            return TokenUsage(model=model, base_model=priced_as, input=given, cached_input=cached, output=output, **who)
        quantity = self._counts()[needed[0]] or 0
        return MeteredUsage(kind=kind, resource=model, base_resource=priced_as, quantity=quantity, **who)


class IngestOut(View):
    accepted: int
    duplicates: int


class ImportOut(View):
    """`skipped`: lines with nothing to charge, by why. `loss`: what neither vouchers nor cash could pay."""

    dry_run: bool
    imported: int
    duplicates: int
    skipped: dict[str, int]
    amount_micro_yuan: int
    voucher_micro_yuan: int
    cash_micro_yuan: int
    loss_micro_yuan: int

    @classmethod
    def of(cls, one: ImportResult, *, dry_run: bool) -> Self:
        """What came of a file."""
        return cls(
            dry_run=dry_run,
            imported=one.imported,
            duplicates=one.duplicates,
            skipped={str(why): count for why, count in one.skipped.items()},
            amount_micro_yuan=one.amount,
            voucher_micro_yuan=one.voucher,
            cash_micro_yuan=one.cash,
            loss_micro_yuan=one.loss,
        )
