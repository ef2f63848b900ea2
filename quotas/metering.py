"""Token usage as arithmetic: which line a record belongs to, and what a line costs. Data in, data out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from kit.errors import InvalidInput
from kit.units import MAX_AMOUNT
from quotas.pricing import Price, price_tokens
from quotas.vocabulary import FirmId, Period, TariffId, TokenUsage

TOKENS_MAX = 2**40


@dataclass(frozen=True, slots=True, order=True)
class LineKey:
    """What makes one line of a statement: everything that a price or a reader could depend on."""

    firm_id: FirmId
    project_id: str
    key_id: str
    model: str
    base_model: str
    dedicated: bool
    tariff_id: TariffId | None
    window: str
    service_period: Period
    period: Period

    @property
    def text(self) -> str:
        """The key as it is stored; unique."""
        parts = (
            self.firm_id, self.project_id, self.key_id, self.model, self.base_model, str(int(self.dedicated)),
            self.tariff_id or "", self.window, self.service_period, self.period,
        )  # fmt: skip
        return "tokens:" + "|".join(parts)


@dataclass(frozen=True, slots=True)
class Quantities:
    """`input` contains `cached_input`; what is charged as input is the rest."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    requests: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None

    def plus(self, other: "Quantities") -> "Quantities":
        """Both together, in any order the same."""
        return Quantities(
            self.input + other.input,
            self.cached_input + other.cached_input,
            self.output + other.output,
            self.requests + other.requests,
            min((at for at in (self.first_at, other.first_at) if at), default=None),
            max((at for at in (self.last_at, other.last_at) if at), default=None),
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """Micro-yuan per million tokens."""

    input: int = 0
    cached_input: int = 0
    output: int = 0


def price_line(quantities: Quantities, rates: Rates) -> Price:
    """The price of a whole line, rounded once however many batches it came in."""
    return price_tokens(
        (
            (quantities.input - quantities.cached_input, rates.input),
            (quantities.cached_input, rates.cached_input),
            (quantities.output, rates.output),
        )
    )


def check_records(records: Iterable[TokenUsage]) -> None:
    """Raises InvalidInput naming the first record that cannot be right."""
    for record in records:
        counts = (record.input, record.cached_input, record.output)
        if any(not 0 <= count <= TOKENS_MAX for count in counts) or record.cached_input > record.input:
            raise InvalidInput(
                f"usage {record.id!r} of {record.source!r} counts {counts}; counts are 0 to 2^40, cached within input"
            )
        if not record.id or not record.source or record.at.tzinfo is None:
            raise InvalidInput(f"usage {record.id!r} of {record.source!r} needs an id, a source and an aware time")


def unique(records: Sequence[TokenUsage]) -> list[TokenUsage]:
    """Each (source, id) once, the first time it appears, in an order that does not depend on how they arrived."""
    first: dict[tuple[str, str], TokenUsage] = {}
    for record in records:
        first.setdefault((record.source, record.id), record)
    return [first[name] for name in sorted(first)]


def summed(lines: Mapping[tuple[str, str], LineKey], records: Iterable[TokenUsage]) -> dict[LineKey, Quantities]:
    """What each line grows by."""
    growth: dict[LineKey, Quantities] = {}
    for record in records:
        line = lines[record.source, record.id]
        more = Quantities(record.input, record.cached_input, record.output, 1, record.at, record.at)
        growth[line] = growth.get(line, Quantities()).plus(more)
    return growth


def draw(due: int, leases: Sequence[tuple[int, int]], cash: int) -> tuple[list[tuple[int, int]], int, int]:
    """Where an amount comes from: (pending id, amount) of leases in order, then free cash, then nobody (a loss)."""
    assert 0 <= due <= MAX_AMOUNT, "a batch is charged in one piece"
    taken: list[tuple[int, int]] = []
    for pending_id, left in leases:
        if part := min(left, due):
            taken.append((pending_id, part))
            due -= part
    from_cash = min(due, max(0, cash))
    return taken, from_cash, due - from_cash
