"""The words of firms and people; `quotas.vocabulary` re-exports them, others import them from there."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NewType

FirmId = NewType("FirmId", str)  # "firm_…"
ProjectId = NewType("ProjectId", str)  # "prj_…"
MemberId = NewType("MemberId", str)  # "mem_…"
KeyId = NewType("KeyId", str)  # "key_…"
RateSubject = str  # a key, a firm, or "<firm>/<base model>"
CohortName = NewType("CohortName", str)  # a slug, e.g. "film-studios"

PLATFORM_FIRM = FirmId("firm_platform")
"""The platform itself: shared deployments are its workloads, their GPU time is its cost."""

DEFAULT_PROJECT = "default"
"""Name of the project that every firm has from its first day."""

KEYS_CHANNEL = "heliu_keys"
"""PostgreSQL NOTIFY; the payload is a key id, or "*" when any key may have changed."""

RATES_CHANNEL = "heliu_rates"
PLACES_CHANNEL = "heliu_places"
"""PostgreSQL NOTIFY; the payload is `<key id> <minute> <holder>`: that holder asks for what others do not use."""

ALLOWANCES_CHANNEL = "heliu_allowances"
"""PostgreSQL NOTIFY; the payload is `<holder> <firm id>`: that holder asks for unused leases of the firm; `-`: a rule
over the firm's spending has changed."""


class FirmKind(StrEnum):
    COMPANY = "company"
    PLATFORM = "platform"


class FirmState(StrEnum):
    APPLIED = "applied"
    IN_REVIEW = "in_review"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    CLOSED = "closed"
    REJECTED = "rejected"


class ReviewStep(StrEnum):
    """What an administrator does to a firm."""

    TAKE = "take"
    APPROVE = "approve"
    REJECT = "reject"
    SUSPEND = "suspend"
    RESUME = "resume"
    CLOSE = "close"


class IndustryCluster(StrEnum):
    """The six clusters of Wuhan's 2024–2026 digital-content plan."""

    ONLINE_AUDIOVISUAL = "online_audiovisual"
    ONLINE_GAMES = "online_games"
    DIGITAL_PUBLISHING = "digital_publishing"
    CONTENT_SECURITY = "content_security"
    CULTURE_METAVERSE = "culture_metaverse"
    CREATIVE_DESIGN = "creative_design"


CLUSTER_NAMES = {
    IndustryCluster.ONLINE_AUDIOVISUAL: "网络视听",
    IndustryCluster.ONLINE_GAMES: "网络游戏",
    IndustryCluster.DIGITAL_PUBLISHING: "数字出版传媒",
    IndustryCluster.CONTENT_SECURITY: "数字内容安全",
    IndustryCluster.CULTURE_METAVERSE: "数字文创元宇宙",
    IndustryCluster.CREATIVE_DESIGN: "数字创意设计",
}
"""The clusters as the plan names them."""


class Role(StrEnum):
    PLATFORM_ADMIN = "platform_admin"
    CENTRE_OPERATOR = "centre_operator"
    AUDITOR = "auditor"
    FIRM_OWNER = "firm_owner"
    FIRM_FINANCE = "firm_finance"
    FIRM_DEVELOPER = "firm_developer"


STAFF_ROLES = frozenset({Role.PLATFORM_ADMIN, Role.CENTRE_OPERATOR, Role.AUDITOR})
FIRM_ROLES = frozenset({Role.FIRM_OWNER, Role.FIRM_FINANCE, Role.FIRM_DEVELOPER})


class ExportFormat(StrEnum):
    """How a log leaves the platform: exact JSON lines, or for a spreadsheet."""

    JSONL = "jsonl"
    CSV = "csv"


class RequestState(StrEnum):
    """What became of a firm's request for quota."""

    OPEN = "open"
    GRANTED = "granted"
    PARTLY_GRANTED = "partly_granted"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"


class MoneyAction(StrEnum):
    """What needs a second administrator above a set amount."""

    VOUCHER_GRANT = "voucher_grant"
    TOP_UP = "top_up"
    WITHDRAWAL = "withdrawal"
    CREDIT_LINE = "credit_line"
    REFUND = "refund"
    TARIFF = "tariff"
    DISCOUNT = "discount"
    POLICY = "policy"
    CENTRE_CONTRACT = "centre_contract"


class ProposalState(StrEnum):
    OPEN = "open"
    APPROVED = "approved"
    REFUSED = "refused"


class LimitKind(StrEnum):
    """Limits beyond nominal quota, in the order in which they are checked."""

    JOBS_AT_ONCE = "jobs_at_once"
    GPUS_AT_ONCE = "gpus_at_once"
    GPU_TIME = "gpu_time"
    TOKENS = "tokens"


class ChannelKind(StrEnum):
    """How an alert reaches a firm."""

    WEBHOOK = "webhook"
    EMAIL = "email"


class Scope(StrEnum):
    """What an API key may be used for; a key has at least one."""

    INFERENCE = "inference"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    ARTIFACTS_READ = "artifacts:read"
    ARTIFACTS_WRITE = "artifacts:write"
    MODELS_READ = "models:read"
    DEPLOYMENTS_READ = "deployments:read"
    DEPLOYMENTS_WRITE = "deployments:write"
    BILLING_READ = "billing:read"
    QUOTAS_READ = "quotas:read"
    USAGE_INGEST = "usage:ingest"


@dataclass(frozen=True, slots=True)
class FirmView:
    """A firm as other packages see it."""

    id: FirmId
    kind: FirmKind
    name: str
    state: FirmState
    uscc: str | None
    industry_cluster: IndustryCluster | None
    district: str | None


@dataclass(frozen=True, slots=True)
class ProjectView:
    id: ProjectId
    firm_id: FirmId
    name: str


@dataclass(frozen=True, slots=True)
class Payer:
    """Whose spending money is put aside for: a firm's, and where it matters a project's, and the line of a key's.

    A key's line is its first key's id, the same through every rotation.
    """

    firm_id: FirmId
    project_id: ProjectId | None = None
    line_id: KeyId | None = None

    @classmethod
    def named(cls, name: str) -> "Payer":
        """The payer that goes by a name: its ids, a space between."""
        firm, project, line, *_ = (*name.split(" "), "", "")
        return cls(FirmId(firm), ProjectId(project) if project else None, KeyId(line) if line else None)


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Requests and tokens a minute, and requests at once. None means: no such limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_at_once: int | None = None


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Limits as they were set: over a firm, over every firm at a model, or over one firm at one model."""

    firm_id: FirmId | None
    model: str | None
    limits: RateLimits
    set_at: datetime
    set_by: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class KeyGrant:
    """What a valid key allows; a gateway keeps it until it is told otherwise. None means: no limit of its own."""

    key_id: KeyId
    firm_id: FirmId
    project_id: ProjectId
    scopes: frozenset[Scope]
    models: frozenset[str] | None
    ip_ranges: tuple[str, ...] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    expires_at: datetime | None
    revoked_at: datetime | None
    firm_state: FirmState
    own_purse: tuple[str, ...] = ()
    """Its project, and its line, where a rule is over just their spending: it is leased apart from the firm's."""
    counts_tokens: bool = False
    """Whether a month's limit on tokens is over it."""
    requests_at_once: int | None = None
    rates: tuple[tuple[str, RateLimits], ...] = ()
    """Limits shared with the firm's other keys: ("", in all) and (model, at that base model)."""

    @property
    def payer(self) -> str:
        """The name of whose spending its requests are; see `Payer.named`."""
        return self.firm_id if not self.own_purse else " ".join((self.firm_id, *self.own_purse))

    def usable(self, *, now: datetime) -> bool:
        """Whether the key opens anything at `now`: not revoked, not expired, its firm active."""
        expired = self.expires_at is not None and self.expires_at <= now
        return self.revoked_at is None and not expired and self.firm_state is FirmState.ACTIVE


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The most that may be used, at once and in a month of Asia/Shanghai. None means: no such limit."""

    gpu_milli_at_once: int | None = None
    jobs_at_once: int | None = None
    gpu_ms_per_period: int | None = None
    tokens_per_period: int | None = None


@dataclass(frozen=True, slots=True)
class EffectiveLimits:
    """The ceilings over a project's work at an instant: its firm's, its own, and of each the tighter."""

    firm_id: FirmId
    project_id: ProjectId
    at: datetime
    firm: Ceilings
    project: Ceilings
    effective: Ceilings


@dataclass(frozen=True, slots=True)
class Use:
    """What counts against ceilings: work that is not over, and what a month has used."""

    jobs: int = 0
    gpu_milli: int = 0
    gpu_ms: int = 0
    tokens: int = 0

    def plus(self, other: "Use") -> "Use":
        """Both together."""
        return Use(
            self.jobs + other.jobs,
            self.gpu_milli + other.gpu_milli,
            self.gpu_ms + other.gpu_ms,
            self.tokens + other.tokens,
        )


@dataclass(frozen=True, slots=True)
class Overrun:
    """A limit that would be broken: `used` counts already and `asked` comes on top of it."""

    kind: LimitKind
    scope: str
    limit: int
    used: int
    asked: int


@dataclass(frozen=True, slots=True)
class RateAsk:
    """How much of a subject's minute a holder wants to have, or to keep, in all."""

    subject: RateSubject
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class RateLease:
    """What a holder has of a subject's minute, in all; `*_free`: what nobody has yet (None: no limit of that kind)."""

    subject: RateSubject
    minute: int
    holder: str
    requests: int
    tokens: int
    requests_free: int | None
    tokens_free: int | None
    recalled: bool = False


@dataclass(frozen=True, slots=True)
class PlaceAsk:
    """How many requests of a subject a holder wants to be able to run at once, and runs now."""

    subject: RateSubject
    wanted: int
    used: int


@dataclass(frozen=True, slots=True)
class PlaceLease:
    """How many it may run; `free`: what nobody has; `asked`: another holder was asked to give and has not answered."""

    subject: RateSubject
    places: int
    free: int
    recalled: bool
    asked: bool
