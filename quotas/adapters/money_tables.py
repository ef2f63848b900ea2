"""Tables of money's nouns, as the migrations make them. The ledger's own tables are written only by `quotas.post`."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSTZRANGE, Range
from sqlmodel import Field, SQLModel

SCHEMA = "quotas"


def _column(
    kind: Any,
    *,
    to: str | None = None,
    null: bool = False,
    key: bool = False,
    **options: Any,
) -> Any:
    links = [ForeignKey(f"{SCHEMA}.{to}.id")] if to else []
    return Field(
        default=None,
        sa_column=Column(kind, *links, nullable=null, primary_key=key, **options),
    )


def _text(**options: Any) -> Any:
    return _column(Text, **options)


def _number(**options: Any) -> Any:
    return _column(BigInteger, **options)


def _instant(**options: Any) -> Any:
    return _column(DateTime(timezone=True), **options)


def _json() -> Any:
    return _column(JSONB)


class _Row(SQLModel):
    """What every table of money is."""

    __tablename__: ClassVar[Any]


class TariffRow(_Row, table=True):
    """A version of the price book."""

    __tablename__ = "tariff"
    __table_args__ = {"schema": SCHEMA}

    id: str = _text(key=True)
    name: str = _text()
    validity: Range[datetime] = _column(TSTZRANGE)
    windows: list[dict[str, Any]] = _json()
    published_by: str = _text()
    published_at: datetime = _instant()


class RateRow(_Row, table=True):
    """One price of a tariff."""

    __tablename__ = "rate"
    __table_args__ = {"schema": SCHEMA}

    tariff_id: str = _text(to="tariff", key=True)
    meter: str = _text(key=True)
    resource: str = _text(key=True)
    qos: str = _text(key=True)
    window: str = _text(key=True)
    micro_yuan: int = _number()


class DiscountRow(_Row, table=True):
    """What a firm's contract takes off the rates of a kind of usage."""

    __tablename__ = "discount"
    __table_args__ = {"schema": SCHEMA}

    id: str = _text(key=True)
    firm_id: str = _text(to="firm")
    kind: str = _text()
    resource: str = _text()
    off_ppm: int = _number()
    validity: Range[datetime] = _column(TSTZRANGE)
    contract: str = _text()
    granted_by: str = _text()
    granted_at: datetime = _instant()


class CentreContractRow(_Row, table=True):
    """What part of the list price a centre is paid."""

    __tablename__ = "centre_contract"
    __table_args__ = {"schema": SCHEMA}

    id: str = _text(key=True)
    centre: str = _text()
    payout_ppm: int = _number()
    validity: Range[datetime] = _column(TSTZRANGE)


class ProgrammeRow(_Row, table=True):
    """A subsidy scheme."""

    __tablename__ = "programme"
    __table_args__ = {"schema": SCHEMA}

    id: str = _text(key=True)
    name: str = _text(unique=True)
    funder: str = _text()
    share_ppm: int = _number()
    pool: int = _number()
    cap_per_firm_year: int = _number()
    validity: Range[datetime] = _column(TSTZRANGE)
    voucher_days: int = _number()
    priority: int = _number()
    covers: list[str] = _column(ARRAY(Text))
    pools: list[str] | None = _column(ARRAY(Text), null=True)
    created_by: str = _text()
    created_at: datetime = _instant()


class VoucherRow(_Row, table=True):
    """One firm's grant under a programme; what it still holds is in the ledger."""

    __tablename__ = "voucher"
    __table_args__ = (
        Index("voucher_firm", "firm_id"),
        Index("voucher_programme", "programme_id", "firm_id"),
        Index("voucher_expiry", "expires_at"),
        {"schema": SCHEMA},
    )

    id: str = _text(key=True)
    programme_id: str = _text(to="programme")
    firm_id: str = _text(to="firm")
    amount: int = _number()
    valid_from: datetime = _instant()
    expires_at: datetime = _instant()
    granted_by: str = _text()
    granted_at: datetime = _instant()
    note: str = _text()


class CashMovementRow(_Row, table=True):
    """Money that a firm paid in or was paid back, with its evidence."""

    __tablename__ = "cash_movement"
    __table_args__ = (
        Index("cash_movement_firm", "firm_id", "period"),
        {"schema": SCHEMA},
    )

    id: str = _text(key=True)
    firm_id: str = _text(to="firm")
    amount: int = _number()
    evidence: str = _text()
    recorded_by: str = _text()
    at: datetime = _instant()
    period: str = _text()
    operation_id: int = _number()


class ChargeRow(_Row, table=True):
    """One line of a statement: complete for compute, growing until the month closes for tokens."""

    __tablename__ = "charge"
    __table_args__ = (
        Index("charge_firm", "firm_id", "period"),
        Index(
            "charge_centre",
            "centre",
            "period",
            postgresql_where=text("centre IS NOT NULL"),
        ),
        Index("charge_subject", "subject"),
        CheckConstraint("amount = voucher + cash", name="charge_is_paid"),
        {"schema": SCHEMA},
    )

    id: str = _text(key=True)
    line_key: str = _text(unique=True)
    kind: str = _text()
    firm_id: str = _text(to="firm")
    project_id: str = _text()
    subject: str = _text()
    period: str = _text()
    service_period: str = _text()
    tariff_id: str | None = _text(to="tariff", null=True)
    key_id: str | None = _text(null=True)
    model: str | None = _text(null=True)
    pool: str | None = _text(null=True)
    centre: str | None = _text(null=True)
    qos: str | None = _text(null=True)
    gpu_ms: int = _number(server_default="0")
    input: int = _number(server_default="0")
    cached_input: int = _number(server_default="0")
    output: int = _number(server_default="0")
    requests: int = _number(server_default="0")
    rates: dict[str, int] = _json()
    amount: int = _number()
    voucher: int = _number()
    cash: int = _number()
    vouchers: dict[str, int] = _json()
    loss: int = _number(server_default="0")
    list_amount: int = _number()
    payout_ppm: int = _number(server_default="0")
    payable: int = _number(server_default="0")
    residue: int = _number(server_default="0")
    first_at: datetime = _instant()
    last_at: datetime = _instant()
    explanation: list[str] = _json()
    reverses: str | None = _text(to="charge", null=True, unique=True)
    note: str = _text(server_default="")
    quantity: int = _number(server_default="0")
    discount: int = _number(server_default="0")
    discount_id: str | None = _text(to="discount", null=True)
    contract_rates: dict[str, int] = _column(JSONB, server_default="{}")
    voucher_bases: dict[str, int] = _column(JSONB, server_default="{}")


class StatementRow(_Row, table=True):
    """A closed month."""

    __tablename__ = "statement"
    __table_args__ = {"schema": SCHEMA}

    firm_id: str = _text(to="firm", key=True)
    period: str = _text(key=True)
    hash: str = _text()
    body: dict[str, Any] = _json()
    closed_at: datetime = _instant()


class ComputeHoldRow(_Row, table=True):
    """Money put aside for a workload. `parts` are the vouchers' shares, each with its pending transfer."""

    __tablename__ = "compute_hold"
    __table_args__ = (
        Index("compute_hold_open", "expires_at", postgresql_where=text("state = 'open'")),
        Index("compute_hold_subject", "subject"),
        {"schema": SCHEMA},
    )

    id: str = _text(key=True)
    firm_id: str = _text(to="firm")
    project_id: str = _text()
    subject: str = _text()
    pool: str = _text()
    qos: str = _text()
    gpu_milli: int = _number()
    seconds_max: int = _number()
    tariff_id: str = _text(to="tariff")
    amount: int = _number()
    cash: int = _number()
    cash_pending_id: int | None = _number(null=True)
    parts: list[dict[str, Any]] = _json()
    explanation: list[str] = _json()
    state: str = _text()
    created_at: datetime = _instant()
    expires_at: datetime = _instant()
    closed_at: datetime | None = _instant(null=True)
    close_reason: str | None = _text(null=True)
    request_key: str = _text(unique=True)
    request_hash: bytes = _column(LargeBinary)
    key_id: str | None = _text(to="api_key", null=True)


class AllowanceLeaseRow(_Row, table=True):
    """A slice of a firm's money in a gateway's hands."""

    __tablename__ = "allowance_lease"
    __table_args__ = (
        Index("allowance_lease_open", "firm_id", postgresql_where=text("state = 'open'")),
        {"schema": SCHEMA},
    )

    id: str = _text(key=True)
    holder: str = _text()
    firm_id: str = _text(to="firm")
    pending_id: int = _number()
    state: str = _text()
    created_at: datetime = _instant()
    expires_at: datetime = _instant()
    recalled_at: datetime | None = _instant(null=True)
    closed_at: datetime | None = _instant(null=True)
    project_id: str | None = _text(to="project", null=True)
    key_id: str | None = _text(to="api_key", null=True)
    tokens_left: int = _number(server_default="0")
    vouchers: dict[str, int] = _column(JSONB, server_default="{}")


class ComputeUsageRow(_Row, table=True):
    """GPU time that was charged, once."""

    __tablename__ = "compute_usage"
    __table_args__ = {"schema": SCHEMA}

    attempt_id: str = _text(key=True)
    started_at: datetime = _instant(key=True)
    ended_at: datetime = _instant()
    gpu_ms: int = _number()
    request_hash: bytes = _column(LargeBinary)
    charge_id: str = _text(to="charge")


class TokenUsageRow(_Row, table=True):
    """What one request used, or storage in an hour, and the line it is charged on."""

    __tablename__ = "token_usage"
    __table_args__ = (
        Index("token_usage_charge", "charge_id"),
        Index("token_usage_at", "at", postgresql_using="brin"),
        {"schema": SCHEMA},
    )

    source: str = _text(key=True)
    id: str = _text(key=True)
    firm_id: str = _text()
    project_id: str = _text()
    key_id: str = _text()
    model: str = _text()
    base_model: str = _text()
    input: int = _number()
    cached_input: int = _number()
    output: int = _number()
    at: datetime = _instant()
    outcome: str = _text()
    lease_id: str | None = _text(null=True)
    dedicated: bool = _column(Boolean)
    charge_id: str | None = _text(null=True)
    ingested_at: datetime = _instant()
    kind: str = _text(server_default="tokens")
    quantity: int = _number(server_default="0")
