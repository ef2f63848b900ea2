"""Tables of firms and people, as the migrations make them. They validate nothing themselves: the database does."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Identity, Index, Integer, LargeBinary, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlmodel import Field, SQLModel

SCHEMA = "quotas"


def _text(*, nullable: bool = False, to: str | None = None, primary_key: bool = False) -> Any:
    keys = [ForeignKey(f"{SCHEMA}.{to}")] if to else []
    return Field(default=None, sa_column=Column(Text, *keys, nullable=nullable, primary_key=primary_key))


def _instant(*, nullable: bool = False) -> Any:
    return Field(default=None, sa_column=Column(DateTime(timezone=True), nullable=nullable))


def _texts(*, nullable: bool = False) -> Any:
    return Field(default=None, sa_column=Column(ARRAY(Text), nullable=nullable))


def _integer(*, nullable: bool = False, big: bool = False) -> Any:
    return Field(default=None, sa_column=Column(BigInteger if big else Integer, nullable=nullable))


def _hash() -> Any:
    return Field(default=None, sa_column=Column(LargeBinary, nullable=False))


def _json(*, nullable: bool = False) -> Any:
    return Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=nullable))


def _sequence() -> Any:
    return Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))


class _Row(SQLModel):
    """What every table here is made of."""

    __tablename__: ClassVar[Any]


class FirmRow(_Row, table=True):
    """A firm and where it stands in its life. `doubts` are what a reviewer must look at."""

    __tablename__ = "firm"
    __table_args__ = (
        Index("firm_uscc", "uscc", unique=True, postgresql_where=text("state NOT IN ('rejected', 'closed')")),
        Index("firm_queue", "state", "applied_at"),
        {"schema": SCHEMA},
    )

    id: str = _text(primary_key=True)
    kind: str = _text()
    name: str = _text()
    state: str = _text()
    state_reason: str | None = _text(nullable=True)
    uscc: str | None = _text(nullable=True)
    doubts: list[str] = _texts()
    industry_cluster: str | None = _text(nullable=True)
    district: str | None = _text(nullable=True)
    contact_name: str | None = _text(nullable=True)
    contact_email: str | None = _text(nullable=True)
    contact_phone: str | None = _text(nullable=True)
    reviewer_id: str | None = _text(nullable=True)
    applied_at: datetime = _instant()
    state_since: datetime = _instant()


class ProjectRow(_Row, table=True):
    """A production inside a firm."""

    __tablename__ = "project"
    __table_args__ = (Index("project_name", "firm_id", "name", unique=True), {"schema": SCHEMA})

    id: str = _text(primary_key=True)
    firm_id: str = _text(to="firm.id")
    name: str = _text()
    created_at: datetime = _instant()


class MemberRow(_Row, table=True):
    """A person of a firm, or of the platform. An address belongs to one person who may still sign in."""

    __tablename__ = "member"
    __table_args__ = (
        Index("member_email", "email", unique=True, postgresql_where=text("state = 'active'")),
        Index("member_firm", "firm_id"),
        {"schema": SCHEMA},
    )

    id: str = _text(primary_key=True)
    firm_id: str = _text(to="firm.id")
    email: str = _text()
    name: str = _text()
    password_hash: str = _text()
    roles: list[str] = _texts()
    state: str = _text()
    created_at: datetime = _instant()
    left_at: datetime | None = _instant(nullable=True)


class SessionRow(_Row, table=True):
    """A signed-in member; only the token's hash is kept."""

    __tablename__ = "session"
    __table_args__ = (
        Index("session_token", "token_hash", unique=True),
        Index("session_member", "member_id"),
        {"schema": SCHEMA},
    )

    id: str = _text(primary_key=True)
    member_id: str = _text(to="member.id")
    token_hash: bytes = _hash()
    created_at: datetime = _instant()
    expires_at: datetime = _instant()
    ended_at: datetime | None = _instant(nullable=True)
    origin: str | None = _text(nullable=True)


class SignInAttemptRow(_Row, table=True):
    """One try at a password; written before the password is looked at, so that parallel tries count too."""

    __tablename__ = "sign_in_attempt"
    __table_args__ = (
        Index("sign_in_attempt_email", "email", "at"),
        Index("sign_in_attempt_origin", "origin", "at"),
        {"schema": SCHEMA},
    )

    seq: int | None = _sequence()
    email: str = _text()
    origin: str | None = _text(nullable=True)
    at: datetime = _instant()
    succeeded: bool = False


class InvitationRow(_Row, table=True):
    """A place in a firm that is offered to an address; good for one use."""

    __tablename__ = "invitation"
    __table_args__ = (
        Index("invitation_token", "token_hash", unique=True),
        Index("invitation_firm", "firm_id"),
        {"schema": SCHEMA},
    )

    id: str = _text(primary_key=True)
    firm_id: str = _text(to="firm.id")
    email: str = _text()
    roles: list[str] = _texts()
    token_hash: bytes = _hash()
    invited_by: str = _text()
    created_at: datetime = _instant()
    expires_at: datetime = _instant()
    accepted_at: datetime | None = _instant(nullable=True)
    revoked_at: datetime | None = _instant(nullable=True)


class AdminLinkRow(_Row, table=True):
    """A one-time link that makes its holder an administrator."""

    __tablename__ = "admin_link"
    __table_args__ = (Index("admin_link_token", "token_hash", unique=True), {"schema": SCHEMA})

    id: str = _text(primary_key=True)
    token_hash: bytes = _hash()
    created_at: datetime = _instant()
    expires_at: datetime = _instant()
    used_at: datetime | None = _instant(nullable=True)


class ApiKeyRow(_Row, table=True):
    """An API key; only its secret's hash is kept. NULL limits mean: none of its own."""

    __tablename__ = "api_key"
    __table_args__ = (Index("api_key_firm", "firm_id"), Index("api_key_project", "project_id"), {"schema": SCHEMA})

    id: str = _text(primary_key=True)
    firm_id: str = _text(to="firm.id")
    project_id: str = _text(to="project.id")
    name: str = _text()
    secret_hash: bytes = _hash()
    scopes: list[str] = _texts()
    models: list[str] | None = _texts(nullable=True)
    ip_ranges: list[str] | None = _texts(nullable=True)
    requests_per_minute: int | None = _integer(nullable=True)
    tokens_per_minute: int | None = _integer(nullable=True, big=True)
    requests_at_once: int | None = _integer(nullable=True)
    created_by: str = _text()
    created_at: datetime = _instant()
    expires_at: datetime | None = _instant(nullable=True)
    revoked_at: datetime | None = _instant(nullable=True)
    revoked_why: str | None = _text(nullable=True)
    replaced_by: str | None = _text(nullable=True, to="api_key.id")
    last_used_at: datetime | None = _instant(nullable=True)
    line_id: str = _text(to="api_key.id")


class QuotaRequestRow(_Row, table=True):
    """What a firm asked for, and what an administrator made of it."""

    __tablename__ = "quota_request"
    __table_args__ = (
        Index("quota_request_open", "firm_id", "pool", unique=True, postgresql_where=text("state = 'open'")),
        Index("quota_request_queue", "state", "requested_at"),
        {"schema": SCHEMA},
    )

    id: str = _text(primary_key=True)
    firm_id: str = _text(to="firm.id")
    pool: str = _text()
    asked_gpu_milli: int = _integer(big=True)
    effective_from: datetime | None = _instant(nullable=True)
    reason: str = _text()
    state: str = _text()
    requested_by: str = _text()
    requested_at: datetime = _instant()
    decided_by: str | None = _text(nullable=True)
    decided_at: datetime | None = _instant(nullable=True)
    decision_reason: str | None = _text(nullable=True)
    granted_gpu_milli: int | None = _integer(nullable=True, big=True)
    condition: str | None = _text(nullable=True)


class QuotaVersionRow(_Row, table=True):
    """What a firm may use of a pool from an instant on. Rows are only ever added."""

    __tablename__ = "quota_version"
    __table_args__ = (Index("quota_version_order", "firm_id", "pool", "effective_from", "seq"), {"schema": SCHEMA})

    seq: int | None = _sequence()
    firm_id: str = _text(to="firm.id")
    pool: str = _text()
    nominal_gpu_milli: int = _integer(big=True)
    borrowing_gpu_milli: int | None = _integer(nullable=True, big=True)
    lending_gpu_milli: int | None = _integer(nullable=True, big=True)
    effective_from: datetime = _instant()
    set_at: datetime = _instant()
    set_by: str = _text()
    reason: str | None = _text(nullable=True)
    request_id: str | None = _text(nullable=True, to="quota_request.id")


class CohortPlacementRow(_Row, table=True):
    """Where a firm or a cohort hangs in the tree from an instant on. Rows are only ever added."""

    __tablename__ = "cohort_placement"
    __table_args__ = (Index("cohort_placement_node", "node", "effective_from"), {"schema": SCHEMA})

    version: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    node: str = _text()
    parent: str | None = _text(nullable=True)
    weight_milli: int = _integer()
    effective_from: datetime = _instant()
    set_at: datetime = _instant()
    set_by: str = _text()
    reason: str | None = _text(nullable=True)


class AuditRow(_Row, table=True):
    """Who did what to whom, when, from where, and what it changed. Rows are only ever added."""

    __tablename__ = "audit_entry"
    __table_args__ = (
        Index("audit_entry_firm", "firm_id", "seq"),
        Index("audit_entry_subject", "subject", "seq"),
        {"schema": SCHEMA},
    )

    seq: int | None = _sequence()
    at: datetime = _instant()
    actor_kind: str = _text()
    actor_id: str = _text()
    actor_firm_id: str | None = _text(nullable=True)
    origin: str | None = _text(nullable=True)
    action: str = _text()
    subject: str = _text()
    firm_id: str | None = _text(nullable=True)
    before: dict[str, Any] | None = _json(nullable=True)
    after: dict[str, Any] | None = _json(nullable=True)
    reason: str | None = _text(nullable=True)
