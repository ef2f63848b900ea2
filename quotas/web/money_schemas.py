"""What the routes of money take and give. Amounts are integer micro-yuan and say so in their names."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, StringConstraints

from kit.units import MAX_AMOUNT, PPM, MicroYuan, Ppm
from kit.web import Body, View
from quotas.cash import Account, CashMovement
from quotas.programmes import Programme, ProgrammeSpec, Voucher
from quotas.vocabulary import Charge, Statement, StatementLine, UsageKind
from quotas.web.schemas import FirmOut, Id, Instant, Line, Paragraph, Pool

Amount = Annotated[int, Field(ge=1, le=MAX_AMOUNT)]


class ProgrammeIn(Body):
    name: Line
    funder: Line
    share_ppm: Annotated[int, Field(ge=1, le=PPM)]
    pool_micro_yuan: Amount
    cap_per_firm_year_micro_yuan: Amount
    valid_from: Instant | None = None
    valid_until: Instant
    voucher_days: Annotated[int, Field(ge=1, le=1100)] = 365
    priority: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    covers: Annotated[list[UsageKind], Field(min_length=1, max_length=len(UsageKind))] = Field(
        default_factory=lambda: [UsageKind.COMPUTE], description="the kinds of usage it pays for"
    )
    pools: Annotated[list[Pool], Field(min_length=1, max_length=100)] | None = None

    def spec(self, now: datetime) -> ProgrammeSpec:
        """The programme that is described."""
        return ProgrammeSpec(
            name=self.name,
            funder=self.funder,
            share_ppm=Ppm(self.share_ppm),
            pool=MicroYuan(self.pool_micro_yuan),
            cap_per_firm_year=MicroYuan(self.cap_per_firm_year_micro_yuan),
            valid_from=self.valid_from or now,
            valid_until=self.valid_until,
            voucher_days=self.voucher_days,
            priority=self.priority,
            covers=frozenset(self.covers),
            pools=None if self.pools is None else frozenset(self.pools),
        )


class ProgrammeOut(View):
    id: str
    name: str
    funder: str
    share_ppm: int
    pool_micro_yuan: int
    left_micro_yuan: int
    cap_per_firm_year_micro_yuan: int
    valid_from: datetime
    valid_until: datetime
    voucher_days: int
    priority: int
    covers: list[str]
    pools: list[str] | None

    @classmethod
    def of(cls, one: Programme) -> Self:
        """A programme as it is shown."""
        spec = one.spec
        return cls(
            id=one.id,
            name=spec.name,
            funder=spec.funder,
            share_ppm=spec.share_ppm,
            pool_micro_yuan=spec.pool,
            left_micro_yuan=one.left,
            cap_per_firm_year_micro_yuan=spec.cap_per_firm_year,
            valid_from=spec.valid_from,
            valid_until=spec.valid_until,
            voucher_days=spec.voucher_days,
            priority=spec.priority,
            covers=sorted(spec.covers),
            pools=None if spec.pools is None else sorted(spec.pools),
        )


class VoucherIn(Body):
    programme_id: Id
    firm_id: Id
    amount_micro_yuan: Amount
    note: Annotated[str, StringConstraints(max_length=500)] = ""


class VoucherOut(View):
    id: str
    programme_id: str
    firm_id: str
    amount_micro_yuan: int
    left_micro_yuan: int
    share_ppm: int
    priority: int
    valid_from: datetime
    expires_at: datetime
    granted_by: str
    note: str

    @classmethod
    def of(cls, one: Voucher) -> Self:
        """A voucher as it is shown."""
        terms = one.terms
        return cls(
            id=terms.id,
            programme_id=terms.programme_id,
            firm_id=terms.firm_id,
            amount_micro_yuan=one.amount,
            left_micro_yuan=terms.left,
            share_ppm=terms.share_ppm,
            priority=terms.priority,
            valid_from=terms.valid_from,
            expires_at=terms.expires_at,
            granted_by=one.granted_by,
            note=one.note,
        )


class CashIn(Body):
    firm_id: Id
    amount_micro_yuan: Amount
    evidence: Line


class CashOut(View):
    id: str
    firm_id: str
    amount_micro_yuan: int
    evidence: str
    recorded_by: str
    at: datetime

    @classmethod
    def of(cls, one: CashMovement) -> Self:
        """A payment as it is shown."""
        return cls(
            id=one.id,
            firm_id=one.firm_id,
            amount_micro_yuan=one.amount,
            evidence=one.evidence,
            recorded_by=one.recorded_by,
            at=one.at,
        )


class CreditLineIn(Body):
    amount_micro_yuan: Annotated[int, Field(ge=0, le=MAX_AMOUNT)]
    reason: Paragraph


class AccountOut(View):
    firm_id: str
    balance_micro_yuan: int
    held_micro_yuan: int
    credit_line_micro_yuan: int
    available_micro_yuan: int

    @classmethod
    def of(cls, one: Account) -> Self:
        """A firm's money as it is shown."""
        return cls(
            firm_id=one.firm_id,
            balance_micro_yuan=one.balance,
            held_micro_yuan=one.held,
            credit_line_micro_yuan=one.credit_line,
            available_micro_yuan=one.available,
        )


class ReviewedOut(FirmOut):
    """`account`: the money of a firm that was suspended, closed or rejected; it may have some, or owe."""

    account: AccountOut | None = None


class RefundIn(Body):
    reason: Paragraph


class ChargeOut(View):
    id: str
    firm_id: str
    kind: UsageKind
    subject: str
    tariff_id: str | None
    amount_micro_yuan: int
    voucher_micro_yuan: int
    cash_micro_yuan: int
    period: str

    @classmethod
    def of(cls, one: Charge) -> Self:
        """A charge as it is shown."""
        return cls(
            id=one.id,
            firm_id=one.firm_id,
            kind=one.kind,
            subject=one.subject,
            tariff_id=one.tariff_id,
            amount_micro_yuan=one.amount,
            voucher_micro_yuan=one.voucher,
            cash_micro_yuan=one.cash,
            period=one.period,
        )


class LineOut(View):
    """`loss`: used, and nobody paid it. `reverses`: the charge that a credit note gives back."""

    charge_id: str
    kind: UsageKind
    subject: str
    project_id: str
    tariff_id: str | None
    service_period: str
    first_at: datetime
    last_at: datetime
    about: dict[str, str]
    quantities: dict[str, int]
    rates_micro_yuan: dict[str, int]
    contract_rates_micro_yuan: dict[str, int]
    discount_micro_yuan: int
    amount_micro_yuan: int
    voucher_micro_yuan: int
    cash_micro_yuan: int
    loss_micro_yuan: int
    vouchers_micro_yuan: dict[str, int]
    explanation: list[str]
    note: str
    reverses: str | None

    @classmethod
    def of(cls, line: StatementLine) -> Self:
        """A line as it is shown."""
        return cls(
            charge_id=line.charge_id,
            kind=line.kind,
            subject=line.subject,
            project_id=line.project_id,
            tariff_id=line.tariff_id,
            service_period=line.service_period,
            first_at=line.first_at,
            last_at=line.last_at,
            about=line.about,
            quantities=line.quantities,
            rates_micro_yuan=line.rates,
            contract_rates_micro_yuan=line.contract_rates,
            discount_micro_yuan=line.discount,
            amount_micro_yuan=line.amount,
            voucher_micro_yuan=line.voucher,
            cash_micro_yuan=line.cash,
            loss_micro_yuan=line.loss,
            vouchers_micro_yuan=line.vouchers,
            explanation=list(line.explanation),
            note=line.note,
            reverses=line.reverses,
        )


class StatementOut(View):
    firm_id: str
    period: str
    starts_at: datetime
    ends_at: datetime
    state: str
    lines: list[LineOut]
    discount_micro_yuan: int
    amount_micro_yuan: int
    voucher_micro_yuan: int
    cash_micro_yuan: int
    opening_micro_yuan: int
    top_ups_micro_yuan: int
    closing_micro_yuan: int
    hash: str
    closed_at: datetime | None

    @classmethod
    def of(cls, one: Statement) -> Self:
        """A statement as it is shown."""
        return cls(
            firm_id=one.firm_id,
            period=one.period,
            starts_at=one.starts_at,
            ends_at=one.ends_at,
            state=one.state,
            lines=[LineOut.of(line) for line in one.lines],
            discount_micro_yuan=one.discount,
            amount_micro_yuan=one.amount,
            voucher_micro_yuan=one.voucher,
            cash_micro_yuan=one.cash,
            opening_micro_yuan=one.opening,
            top_ups_micro_yuan=one.top_ups,
            closing_micro_yuan=one.closing,
            hash=one.hash,
            closed_at=one.closed_at,
        )
