"""Tables of four eyes: proposals, and the policy that asks for them."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Identity, Index, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from quotas.adapters.tables import SCHEMA


class ApprovalPolicyRow(SQLModel, table=True):
    """From which amounts on a second administrator is needed. Rows are only ever added; the last one holds."""

    __tablename__: ClassVar[Any] = "approval_policy"
    __table_args__ = ({"schema": SCHEMA},)

    seq: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    amount_above: int = Field(sa_column=Column(BigInteger, nullable=False))
    rate_above: int = Field(sa_column=Column(BigInteger, nullable=False))
    set_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    set_by: str = Field(sa_column=Column(Text, nullable=False))
    reason: str = Field(sa_column=Column(Text, nullable=False))


class ProposalRow(SQLModel, table=True):
    """Something with money that one administrator asked for and another decides."""

    __tablename__: ClassVar[Any] = "proposal"
    __table_args__ = (
        UniqueConstraint("action", "key", name="proposal_once"),
        Index("proposal_queue", "state", "proposed_at"),
        {"schema": SCHEMA},
    )

    id: str = Field(sa_column=Column(Text, primary_key=True))
    action: str = Field(sa_column=Column(Text, nullable=False))
    key: str = Field(sa_column=Column(Text, nullable=False))
    firm_id: str | None = Field(default=None, sa_column=Column(Text, ForeignKey(f"{SCHEMA}.firm.id"), nullable=True))
    amount: int = Field(sa_column=Column(BigInteger, nullable=False))
    body: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    state: str = Field(sa_column=Column(Text, nullable=False))
    proposed_by: str = Field(sa_column=Column(Text, nullable=False))
    proposed_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    decided_by: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    decided_at: datetime | None = Field(default=None, sa_column=Column(DateTime(timezone=True), nullable=True))
    decision_reason: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    result_id: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
