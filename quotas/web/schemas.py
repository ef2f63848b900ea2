"""What the routes of firms and people take and give."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query
from pydantic import AfterValidator, AwareDatetime, Field, SecretStr, StringConstraints

from kit.patterns import Pattern
from kit.web import Body, View
from quotas.limits import MAX_NOMINAL
from quotas.sessions import PASSWORD_LENGTH
from quotas.vocabulary import FirmKind, FirmState, IndustryCluster, RequestState, ReviewStep, Role, Scope
from quotas.web.names import Cohort, Pool

_EARLIEST, _LATEST = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
INT32_MAX = 2**31 - 1
TOKENS_MAX = 2**53


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters are not allowed")
    return text


def _of_our_time(instant: datetime) -> datetime:
    if not _EARLIEST <= instant <= _LATEST:
        raise ValueError("give an instant between 2020 and 2120")
    return instant.astimezone(UTC)


Line = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
ShortLine = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_printable)]
Paragraph = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Email = Annotated[
    str,
    StringConstraints(max_length=254, to_lower=True),
    Pattern(r"^[^@\s]+@[^@\s]+\.[^@\s]+$", "an e-mail address has one @, a domain and no spaces", "li@studio.example"),
    AfterValidator(_printable),
]
Phone = Annotated[
    str,
    Pattern(r"^[0-9+() -]{5,30}$", "a phone number is 5 to 30 of 0-9, '+', '(', ')', '-', ' '", "+86 27 5920"),
]
Password = Annotated[SecretStr, Field(min_length=PASSWORD_LENGTH[0], max_length=PASSWORD_LENGTH[1])]
Token = Annotated[SecretStr, Field(min_length=1, max_length=200)]
Instant = Annotated[AwareDatetime, AfterValidator(_of_our_time)]
Id = Annotated[str, StringConstraints(max_length=64)]

Milli = Annotated[int, Field(ge=0, le=MAX_NOMINAL)]
"""Thousandths of an accelerator."""

FirmQuery = Annotated[str | None, Query(alias="firm_id", max_length=64, description="default: your own firm")]
Limit = Annotated[int, Query(ge=1, le=500)]


class ApplyIn(Body):
    uscc: Annotated[str, StringConstraints(max_length=64)]
    name: Line
    industry_cluster: IndustryCluster
    district: ShortLine
    contact_name: ShortLine
    contact_email: Email
    contact_phone: Phone | None = None
    owner_name: ShortLine
    owner_email: Email
    owner_password: Password


class ReviewIn(Body):
    step: ReviewStep
    reason: Paragraph | None = None


class FirmOut(View):
    id: str
    kind: FirmKind
    name: str
    state: FirmState
    state_reason: str | None
    state_since: datetime
    uscc: str | None
    doubts: list[str]
    industry_cluster: IndustryCluster | None
    district: str | None
    contact_name: str | None
    contact_email: str | None
    contact_phone: str | None
    reviewer_id: str | None
    applied_at: datetime


class SignInIn(Body):
    email: Email
    password: Annotated[SecretStr, Field(max_length=PASSWORD_LENGTH[1])]


class SessionOut(View):
    """`token` is shown this once."""

    token: str
    member_id: str
    firm_id: str
    expires_at: datetime


class PasswordIn(Body):
    old: Annotated[SecretStr, Field(max_length=PASSWORD_LENGTH[1])]
    new: Password


class MeOut(View):
    kind: str
    id: str
    name: str | None
    email: str | None
    firm: FirmOut
    roles: list[str]
    scopes: list[str]
    may: list[str]


class MemberOut(View):
    id: str
    firm_id: str
    email: str
    name: str
    roles: list[Role]
    state: str
    created_at: datetime
    left_at: datetime | None


class RolesIn(Body):
    roles: Annotated[frozenset[Role], Field(min_length=1)]


class InviteIn(Body):
    firm_id: Id | None = None
    email: Email
    roles: Annotated[frozenset[Role], Field(min_length=1)]


class InvitationOut(View):
    id: str
    firm_id: str
    email: str
    roles: list[Role]
    invited_by: str
    created_at: datetime
    expires_at: datetime
    accepted_at: datetime | None
    revoked_at: datetime | None


class InvitedOut(View):
    """`token` is shown this once; it goes to the invited person."""

    token: str
    invitation: InvitationOut


class AcceptIn(Body):
    token: Token
    name: ShortLine
    password: Password


class ClaimIn(Body):
    token: Token
    email: Email
    name: ShortLine = "Administrator"
    password: Password


class KeyIn(Body):
    firm_id: Id | None = None
    name: ShortLine
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    project_id: Id | None = None
    models: Annotated[tuple[ShortLine, ...], Field(min_length=1, max_length=200)] | None = None
    ip_ranges: Annotated[tuple[ShortLine, ...], Field(min_length=1, max_length=100)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=TOKENS_MAX)] | None = None
    requests_at_once: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    expires_at: Instant | None = None


class KeyOut(View):
    id: str
    firm_id: str
    project_id: str
    name: str
    scopes: list[Scope]
    models: list[str] | None
    ip_ranges: list[str] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    requests_at_once: int | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_why: str | None
    replaced_by: str | None
    last_used_at: datetime | None


class IssuedKeyOut(View):
    """`token` is shown this once."""

    token: str
    key: KeyOut


class RotateIn(Body):
    overlap_seconds: Annotated[int, Field(ge=0, le=30 * 86_400)] = 86_400


class RevokeIn(Body):
    reason: ShortLine = "revoked"


class ProjectIn(Body):
    firm_id: Id | None = None
    name: ShortLine


class ProjectOut(View):
    id: str
    firm_id: str
    name: str


class QuotaIn(Body):
    firm_id: Id
    pool: Pool
    nominal_gpu_milli: Milli
    borrowing_gpu_milli: Milli | None = None
    lending_gpu_milli: Milli | None = None
    effective_from: Instant | None = None
    reason: Paragraph | None = None


class QuotaOut(View):
    firm_id: str
    pool: str
    nominal_gpu_milli: int
    borrowing_gpu_milli: int | None
    lending_gpu_milli: int | None
    effective_from: datetime
    set_at: datetime
    set_by: str
    reason: str | None
    request_id: str | None


class QuotaRequestIn(Body):
    firm_id: Id | None = None
    pool: Pool
    nominal_gpu_milli: Milli
    effective_from: Instant | None = None
    reason: Paragraph


class GrantIn(Body):
    """Left out: all that was asked, from the day that was asked for, without limits or condition."""

    nominal_gpu_milli: Milli | None = None
    effective_from: Instant | None = None
    borrowing_gpu_milli: Milli | None = None
    lending_gpu_milli: Milli | None = None
    condition: Paragraph | None = None
    reason: Paragraph | None = None


class RefuseIn(Body):
    reason: Paragraph


class QuotaRequestOut(View):
    id: str
    firm_id: str
    pool: str
    asked_gpu_milli: int
    effective_from: datetime | None
    reason: str
    state: RequestState
    requested_by: str
    requested_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    decision_reason: str | None
    granted_gpu_milli: int | None
    condition: str | None


class PlacementIn(Body):
    parent: Cohort | None = None
    weight_milli: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    effective_from: Instant | None = None
    reason: Paragraph | None = None


class PlacementOut(View):
    node: str
    parent: str | None
    weight_milli: int
    effective_from: datetime


class AuditOut(View):
    seq: int
    at: datetime
    actor_kind: str
    actor_id: str
    actor_firm_id: str | None
    origin: str | None
    action: str
    subject: str
    firm_id: str | None
    before: dict[str, object] | None
    after: dict[str, object] | None
    reason: str | None
