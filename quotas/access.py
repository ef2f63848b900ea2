"""Who may do what: one matrix of roles, one of key scopes, one question (`require`).

A firm's people and keys act inside their own firm. The platform's staff act on every firm, within their role; on the
platform's own firm an administrator is also its owner. Somebody else's firm and a firm that does not exist get the
same answer.
"""

from enum import StrEnum
from typing import Final

from kit.auth import Principal, PrincipalKind
from kit.errors import Forbidden, NotFound
from quotas.vocabulary import PLATFORM_FIRM, FirmId, Role, Scope


class Action(StrEnum):
    """Everything that a caller may be allowed to do, as `noun:verb`."""

    FIRM_READ = "firm:read"
    FIRM_UPDATE = "firm:update"
    FIRM_REVIEW = "firm:review"
    MEMBER_READ = "member:read"
    MEMBER_MANAGE = "member:manage"
    PROJECT_READ = "project:read"
    PROJECT_MANAGE = "project:manage"
    KEY_READ = "key:read"
    KEY_MANAGE = "key:manage"
    KEY_REVOKE = "key:revoke"
    QUOTA_READ = "quota:read"
    QUOTA_REQUEST = "quota:request"
    QUOTA_SET = "quota:set"
    AUDIT_READ = "audit:read"
    BILLING_READ = "billing:read"
    BUDGET_MANAGE = "budget:manage"
    TARIFF_READ = "tariff:read"
    TARIFF_PUBLISH = "tariff:publish"
    PROGRAMME_READ = "programme:read"
    PROGRAMME_MANAGE = "programme:manage"
    VOUCHER_GRANT = "voucher:grant"
    TOPUP_RECORD = "topup:record"
    MONEY_CORRECT = "money:correct"
    MONEY_APPROVE = "money:approve"
    LEDGER_VERIFY = "ledger:verify"
    USAGE_INGEST = "usage:ingest"
    DOCUMENT_READ = "document:read"
    DOCUMENT_ADD = "document:add"
    CENTRE_BILLING_READ = "centre_billing:read"
    FLEET_READ = "fleet:read"
    FLEET_MANAGE = "fleet:manage"
    JOB_READ = "job:read"
    JOB_SUBMIT = "job:submit"
    JOB_CANCEL = "job:cancel"
    QUEUE_READ = "queue:read"
    QUEUE_MANAGE = "queue:manage"
    ARTIFACT_READ = "artifact:read"
    ARTIFACT_WRITE = "artifact:write"
    MODEL_READ = "model:read"
    MODEL_MANAGE = "model:manage"
    ADAPTER_MANAGE = "adapter:manage"
    DEPLOYMENT_READ = "deployment:read"
    DEPLOYMENT_MANAGE = "deployment:manage"
    INFER = "infer"


A = Action

PUBLIC: Final = frozenset({A.TARIFF_READ, A.PROGRAMME_READ, A.FLEET_READ, A.MODEL_READ})
"""About the platform, not about a firm: whoever's role has them may ask without naming a firm."""

_DEVELOPER: Final = PUBLIC | {
    A.FIRM_READ, A.MEMBER_READ, A.PROJECT_READ, A.QUOTA_READ, A.JOB_READ, A.JOB_SUBMIT, A.JOB_CANCEL, A.QUEUE_READ,
    A.ARTIFACT_READ, A.ARTIFACT_WRITE, A.ADAPTER_MANAGE, A.DEPLOYMENT_READ, A.DEPLOYMENT_MANAGE, A.INFER,
}  # fmt: skip
_FINANCE: Final = PUBLIC | {
    A.FIRM_READ, A.MEMBER_READ, A.PROJECT_READ, A.KEY_READ, A.QUOTA_READ, A.BILLING_READ, A.BUDGET_MANAGE, A.JOB_READ,
    A.QUEUE_READ, A.DEPLOYMENT_READ, A.DOCUMENT_READ,
}  # fmt: skip

ROLE_ACTIONS: Final[dict[Role, frozenset[Action]]] = {
    Role.FIRM_DEVELOPER: _DEVELOPER,
    Role.FIRM_FINANCE: _FINANCE,
    Role.FIRM_OWNER: _DEVELOPER | _FINANCE | {
        A.FIRM_UPDATE, A.MEMBER_MANAGE, A.PROJECT_MANAGE, A.KEY_MANAGE, A.KEY_REVOKE, A.QUOTA_REQUEST, A.AUDIT_READ,
        A.DOCUMENT_ADD,
    },
    Role.CENTRE_OPERATOR: PUBLIC | {A.FLEET_MANAGE, A.QUEUE_READ, A.CENTRE_BILLING_READ},
    Role.AUDITOR: PUBLIC | {
        A.FIRM_READ, A.MEMBER_READ, A.PROJECT_READ, A.KEY_READ, A.QUOTA_READ, A.AUDIT_READ, A.BILLING_READ,
        A.LEDGER_VERIFY, A.CENTRE_BILLING_READ, A.JOB_READ, A.QUEUE_READ, A.DEPLOYMENT_READ,
    },
    Role.PLATFORM_ADMIN: PUBLIC | {
        A.FIRM_READ, A.FIRM_UPDATE, A.FIRM_REVIEW, A.MEMBER_READ, A.MEMBER_MANAGE, A.PROJECT_READ, A.KEY_READ,
        A.KEY_REVOKE, A.QUOTA_READ, A.QUOTA_REQUEST, A.QUOTA_SET, A.AUDIT_READ, A.BILLING_READ, A.BUDGET_MANAGE,
        A.TARIFF_PUBLISH, A.PROGRAMME_MANAGE, A.VOUCHER_GRANT, A.TOPUP_RECORD, A.MONEY_CORRECT, A.MONEY_APPROVE,
        A.LEDGER_VERIFY, A.CENTRE_BILLING_READ, A.FLEET_MANAGE, A.JOB_READ, A.JOB_CANCEL, A.QUEUE_READ,
        A.QUEUE_MANAGE, A.MODEL_MANAGE, A.DEPLOYMENT_READ, A.DEPLOYMENT_MANAGE, A.USAGE_INGEST, A.DOCUMENT_READ,
    },
}  # fmt: skip
"""An administrator runs the platform but does not use a firm's things: no jobs, artifacts, keys or inference of it."""

PLATFORM_SCOPES: Final = frozenset({Scope.USAGE_INGEST})
"""Only keys of the platform's own firm may have these: they speak of every firm."""

SCOPE_ACTIONS: Final[dict[Scope, frozenset[Action]]] = {
    Scope.INFERENCE: frozenset({A.INFER, A.MODEL_READ}),
    Scope.JOBS_READ: frozenset({A.JOB_READ, A.QUEUE_READ, A.FLEET_READ, A.TARIFF_READ}),
    Scope.JOBS_WRITE: frozenset(
        {A.JOB_READ, A.JOB_SUBMIT, A.JOB_CANCEL, A.QUEUE_READ, A.FLEET_READ, A.TARIFF_READ, A.ARTIFACT_WRITE}
    ),
    Scope.ARTIFACTS_READ: frozenset({A.ARTIFACT_READ}),
    Scope.ARTIFACTS_WRITE: frozenset({A.ARTIFACT_READ, A.ARTIFACT_WRITE}),
    Scope.MODELS_READ: frozenset({A.MODEL_READ}),
    Scope.DEPLOYMENTS_READ: frozenset({A.DEPLOYMENT_READ, A.MODEL_READ}),
    Scope.DEPLOYMENTS_WRITE: frozenset(
        {A.DEPLOYMENT_READ, A.DEPLOYMENT_MANAGE, A.ADAPTER_MANAGE, A.MODEL_READ, A.TARIFF_READ}
    ),
    Scope.BILLING_READ: frozenset({A.BILLING_READ, A.TARIFF_READ, A.PROGRAMME_READ}),
    Scope.QUOTAS_READ: frozenset({A.QUOTA_READ, A.FLEET_READ}),
    Scope.USAGE_INGEST: frozenset({A.USAGE_INGEST}),
}


def is_staff(principal: Principal) -> bool:
    """Whether this is one of the platform's own people, who belong to no firm."""
    return principal.kind is PrincipalKind.MEMBER and principal.firm_id is None


def home_firm(principal: Principal) -> FirmId:
    """The firm that a caller acts for when it names none; the platform's own for its staff."""
    return FirmId(principal.firm_id) if principal.firm_id is not None else PLATFORM_FIRM


def allowed_actions(principal: Principal, *, firm_id: FirmId | None) -> frozenset[Action]:
    """What `principal` may do to `firm_id` (None: to the platform, or to all firms at once)."""
    if principal.kind is PrincipalKind.SYSTEM:
        return frozenset(Action)
    granted: frozenset[Action] = frozenset()
    for role in principal.roles:
        granted |= ROLE_ACTIONS[Role(role)]
    for scope in principal.scopes:
        granted |= SCOPE_ACTIONS[Scope(scope)]
    if is_staff(principal):
        owns = firm_id == PLATFORM_FIRM and Role.PLATFORM_ADMIN in principal.roles
        return granted | ROLE_ACTIONS[Role.FIRM_OWNER] if owns else granted
    if firm_id is None:
        reports = principal.kind is PrincipalKind.API_KEY and principal.firm_id == PLATFORM_FIRM
        return granted & (PUBLIC | {A.USAGE_INGEST}) if reports else granted & PUBLIC
    return granted if firm_id == principal.firm_id else frozenset()


def require(principal: Principal, action: Action, *, firm_id: FirmId | None, missing: NotFound | None = None) -> None:
    """Return if `principal` may do `action` to `firm_id`; None means the platform itself or all firms at once.

    Raises NotFound for a firm the caller may not know about, else Forbidden naming what is missing. Where the firm
    came from something looked up by its id, `missing` is what is raised when no such thing exists: the same answer.
    """
    allowed = allowed_actions(principal, firm_id=firm_id)
    if action in allowed:
        return
    knows = firm_id is None or firm_id == principal.firm_id or Action.FIRM_READ in allowed
    if not knows:
        raise missing or firm_not_found(firm_id)
    holds = sorted(principal.scopes) if principal.kind is PrincipalKind.API_KEY else sorted(principal.roles)
    raise Forbidden(
        f"{_who(principal)} may not do '{action}' here.",
        code="not_allowed",
        hint=_who_may(principal, action),
        details={"action": action.value, "holds": holds},
    )


def require_person(principal: Principal) -> None:
    """Return for a signed-in person. Raises Forbidden for keys and workloads."""
    if principal.kind is not PrincipalKind.MEMBER:
        raise Forbidden("Only a signed-in person may do this.", code="not_a_person", hint="Sign in: heliu login")


def firm_not_found(firm_id: FirmId | None) -> NotFound:
    """The one answer for a firm that does not exist and for one that is not the caller's."""
    return NotFound(
        f"There is no firm {firm_id}.",
        code="firm_not_found",
        hint="leave it out for your own firm; the platform's staff see: heliu firm list",
    )


def _who(principal: Principal) -> str:
    match principal.kind:
        case PrincipalKind.API_KEY:
            return f"A key with the scopes {', '.join(sorted(principal.scopes)) or '(none)'}"
        case _:
            return f"A member with the roles {', '.join(sorted(principal.roles)) or '(none)'}"


def _who_may(principal: Principal, action: Action) -> str:
    if principal.kind is PrincipalKind.API_KEY:
        scopes = [scope.value for scope, actions in SCOPE_ACTIONS.items() if action in actions]
        return f"Scopes that allow it: {', '.join(scopes)}." if scopes else "No key may do this; sign in as a member."
    roles = [role.value for role, actions in ROLE_ACTIONS.items() if action in actions]
    return f"Roles that allow it: {', '.join(roles)}."
