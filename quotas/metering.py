"""Usage as arithmetic: which line a record belongs to, and what a line costs. Data in, data out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import NamedTuple

from kit.errors import InvalidInput
from quotas.pricing import UNIT_METERS, Price, Tariff, price_tokens, price_units, token_rates
from quotas.vocabulary import DiscountId, FirmId, MeteredUsage, Period, TariffId, TokenUsage, UsageKind

TOKENS_MAX = 2**40
QUANTITY_MAX = 2**53
TOKEN_RATES = ("input", "cached_input", "output")
UNIT = "unit"
"""Name of the one rate of images, audio and storage."""

UsageRecord = TokenUsage | MeteredUsage
"""One request's tokens, or a number of images, milliseconds of audio, byte-hours."""


@dataclass(frozen=True, slots=True)
class IngestResult:
    """How many records of a batch were new, how many were not, and the new ones."""

    accepted: int
    duplicates: int
    new: tuple[UsageRecord, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class LineKey:
    """What makes one line of a statement: everything that a price or a reader could depend on. Empty: none."""

    firm_id: FirmId
    project_id: str
    key_id: str
    model: str
    base_model: str
    dedicated: bool
    tariff_id: TariffId
    window: str
    service_period: Period
    period: Period
    kind: UsageKind
    discount_id: DiscountId

    @property
    def text(self) -> str:
        """The key as it is stored; unique."""
        parts = (
            self.firm_id, self.project_id, self.key_id, self.model, self.base_model, str(int(self.dedicated)),
            self.tariff_id, self.window, self.service_period, self.period,
        )  # fmt: skip
        return f"{self.kind}:" + "|".join(parts) + (f"|{self.discount_id}" if self.discount_id else "")


@dataclass(frozen=True, slots=True)
class Quantities:
    """`input` contains `cached_input`; what is charged as input is the rest. `quantity` is of all that is no token."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    requests: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    quantity: int = 0

    def plus(self, other: "Quantities") -> "Quantities":
        """Both together, in any order the same."""
        return Quantities(
            self.input + other.input,
            self.cached_input + other.cached_input,
            self.output + other.output,
            self.requests + other.requests,
            min((at for at in (self.first_at, other.first_at) if at), default=None),
            max((at for at in (self.last_at, other.last_at) if at), default=None),
            self.quantity + other.quantity,
        )


Rates = Mapping[str, int]
"""Of tokens `input`, `cached_input` and `output`, micro-yuan per million; of anything else one `unit`."""


def rates_in(tariff: Tariff, kind: UsageKind, resource: str, window: str) -> Rates | None:
    """What a tariff asks for a kind of usage of a resource; None where it says nothing."""
    if kind is UsageKind.TOKENS:
        rates = token_rates(tariff, resource, window)
        return None if rates is None else dict(zip(TOKEN_RATES, rates, strict=True))
    meter, _ = UNIT_METERS[kind]
    rate = tariff.rate(meter, resource, window=window)
    return None if rate is None else {UNIT: rate}


def price_line(kind: UsageKind, quantities: Quantities, rates: Rates) -> Price:
    """The price of a whole line, rounded once however many batches it came in."""
    if kind is not UsageKind.TOKENS:
        return price_units(kind, quantities.quantity, rates.get(UNIT, 0))
    return price_tokens(
        (
            (quantities.input - quantities.cached_input, rates.get("input", 0)),
            (quantities.cached_input, rates.get("cached_input", 0)),
            (quantities.output, rates.get("output", 0)),
        )
    )


class Kin(NamedTuple):
    """What a record has in common with many of its batch: all but its id, its time and its counts.

    `resource` is what the caller named, `base` what it is priced as: for an adapter its base model.
    """

    source: str
    firm_id: FirmId
    project_id: str
    key_id: str
    resource: str
    base: str
    dedicated: bool
    outcome: str
    lease_id: str | None
    kind: UsageKind


_WHOSE = ("source", "firm_id", "project_id", "key_id")
_HOW = ("dedicated", "outcome", "lease_id")
_of_tokens = attrgetter(*_WHOSE, "model", "base_model", *_HOW)
_of_metered = attrgetter(*_WHOSE, "resource", "base_resource", *_HOW, "kind")


def kin_of(records: Iterable[UsageRecord]) -> list[Kin]:
    """The kin of each record; equal ones are the same object."""
    known: dict[tuple[object, ...], Kin] = {}
    found: list[Kin] = []
    for record in records:
        counted = isinstance(record, TokenUsage)
        of = _of_tokens(record) if counted else _of_metered(record)
        kin = known.get(of)
        if kin is None:
            kin = known[of] = Kin._make((*of, UsageKind.TOKENS) if counted else of)
        found.append(kin)
    return found


def counts_of(record: UsageRecord) -> tuple[int, int, int, int]:
    """(input, cached input, output, quantity) of one record."""
    if isinstance(record, TokenUsage):
        return record.input, record.cached_input, record.output, 0
    return 0, 0, 0, record.quantity


def quantities_of(records: Sequence[UsageRecord]) -> Quantities:
    """What these records add to their line; there is at least one."""
    input, cached_input, output, quantity = map(sum, zip(*map(counts_of, records), strict=True))
    instants = [record.at for record in records]
    return Quantities(input, cached_input, output, len(records), min(instants), max(instants), quantity)


def check_records(records: Iterable[UsageRecord]) -> None:
    """Raises InvalidInput naming the first record that cannot be right."""
    for record in records:
        if isinstance(record, TokenUsage):
            possible = 0 <= record.cached_input <= record.input <= TOKENS_MAX and 0 <= record.output <= TOKENS_MAX
        else:
            possible = 0 <= record.quantity <= QUANTITY_MAX and record.kind not in (UsageKind.TOKENS, UsageKind.COMPUTE)
        if not (possible and record.id and record.source and record.at.tzinfo is not None):
            raise InvalidInput(f"usage {record.id!r} of {record.source!r} {_fault(record)}")


def _fault(record: UsageRecord) -> str:
    if not record.id or not record.source or record.at.tzinfo is None:
        return "needs an id, a source and an aware time"
    if isinstance(record, TokenUsage):
        counts = (record.input, record.cached_input, record.output)
        return f"counts {counts}; counts are 0 to 2^40, cached within input"
    if record.kind in (UsageKind.TOKENS, UsageKind.COMPUTE):
        return f"has one quantity; {record.kind} has records of its own"
    return f"counts {record.quantity}; a quantity is 0 to 2^53"


def unique(records: Sequence[UsageRecord]) -> list[UsageRecord]:
    """Each (source, id) once, the first time it appears, in an order that does not depend on how they arrived."""
    first: dict[tuple[str, str], UsageRecord] = {}
    for record in records:
        first.setdefault((record.source, record.id), record)
    return [first[name] for name in sorted(first)]


def summed(
    records: Iterable[tuple[LineKey, UsageRecord]], span: Callable[[UsageRecord], int] | None = None
) -> dict[tuple[LineKey, int], Quantities]:
    """What each line grows by, apart for each `span` of time in which other vouchers are valid."""
    parts: dict[tuple[int, int], tuple[LineKey, list[UsageRecord]]] = {}
    for line, record in records:
        of = (id(line), 0 if span is None else span(record))
        if of not in parts:
            parts[of] = (line, [])
        parts[of][1].append(record)
    growth: dict[tuple[LineKey, int], Quantities] = {}
    for (_, of), (line, together) in parts.items():
        growth[line, of] = growth.get((line, of), Quantities()).plus(quantities_of(together))
    return growth


def draw(due: int, leases: Sequence[tuple[int, int]], cash: int) -> tuple[list[tuple[int, int]], int, int]:
    """Where an amount comes from: (pending id, amount) of leases in order, then free cash, then nobody (a loss)."""
    assert due >= 0, "a firm never owes less than nothing"
    taken: list[tuple[int, int]] = []
    for pending_id, left in leases:
        if part := min(left, due):
            taken.append((pending_id, part))
            due -= part
    from_cash = min(due, max(0, cash))
    return taken, from_cash, due - from_cash
