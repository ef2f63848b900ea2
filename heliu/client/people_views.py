"""What the platform answers about firms, people, keys and quotas. Fields it adds later are ignored."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    """An answer, read-only."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Firm(View):
    id: str
    name: str
    state: str
    state_reason: str | None = None
    uscc: str | None = None
    doubts: list[str] = []
    industry_cluster: str | None = None
    district: str | None = None


class Session(View):
    """A signed-in member; `token` is a secret."""

    token: str
    member_id: str
    firm_id: str
    expires_at: datetime


class Me(View):
    kind: str
    id: str
    name: str | None
    email: str | None
    firm: Firm
    roles: list[str]
    scopes: list[str]


class Invitation(View):
    id: str
    email: str
    roles: list[str]
    expires_at: datetime


class Invited(View):
    """`token` belongs to the invited person and is shown once."""

    token: str
    invitation: Invitation


class Key(View):
    id: str
    firm_id: str
    project_id: str
    name: str
    scopes: list[str]
    models: list[str] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_at_once: int | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class IssuedKey(View):
    """`token` is the key itself, shown once."""

    token: str
    key: Key


class Project(View):
    id: str
    firm_id: str
    name: str


class Quota(View):
    firm_id: str
    pool: str
    nominal_gpu_milli: int
    effective_from: datetime
