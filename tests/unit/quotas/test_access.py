"""The matrix role × action and scope × action, written down a second time: a change has to be meant."""

import itertools

import pytest

from kit.auth import SYSTEM, Principal, PrincipalKind
from kit.errors import Forbidden, NotFound
from quotas.access import ROLE_ACTIONS, SCOPE_ACTIONS, Action, home_firm, require
from quotas.vocabulary import FIRM_ROLES, PLATFORM_FIRM, STAFF_ROLES, FirmId, Role, Scope

OWN, OTHER = FirmId("firm_own"), FirmId("firm_other")

# One letter per role: a=platform_admin c=centre_operator u=auditor o=firm_owner f=firm_finance d=firm_developer
GOLDEN = {
    "firm:read": "a-uofd", "firm:update": "a--o--", "firm:review": "a-----",
    "member:read": "a-uofd", "member:manage": "a--o--",
    "project:read": "a-uofd", "project:manage": "---o--",
    "key:read": "a-uof-", "key:manage": "---o--", "key:revoke": "a--o--",
    "quota:read": "a-uofd", "quota:request": "a--o--", "quota:set": "a-----",
    "audit:read": "a-uo--",
    "billing:read": "a-uof-", "budget:manage": "a--of-",
    "tariff:read": "acuofd", "tariff:publish": "a-----",
    "programme:read": "acuofd", "programme:manage": "a-----", "voucher:grant": "a-----",
    "topup:record": "a-----", "money:correct": "a-----", "money:approve": "a-----",
    "ledger:verify": "a-u---", "centre_billing:read": "acu---",
    "fleet:read": "acuofd", "fleet:manage": "ac----",
    "job:read": "a-uofd", "job:submit": "---o-d", "job:cancel": "a--o-d",
    "queue:read": "acuofd", "queue:manage": "a-----",
    "artifact:read": "---o-d", "artifact:write": "---o-d",
    "model:read": "acuofd", "model:manage": "a-----", "adapter:manage": "---o-d",
    "deployment:read": "a-uofd", "deployment:manage": "a--o-d",
    "infer": "---o-d",
    "usage:ingest": "a-----", "document:read": "a--of-", "document:add": "---o--",
}  # fmt: skip
COLUMNS = (
    Role.PLATFORM_ADMIN,
    Role.CENTRE_OPERATOR,
    Role.AUDITOR,
    Role.FIRM_OWNER,
    Role.FIRM_FINANCE,
    Role.FIRM_DEVELOPER,
)

GOLDEN_SCOPES = {
    "inference": {"infer", "model:read"},
    "jobs:read": {"job:read", "queue:read", "fleet:read", "tariff:read"},
    "jobs:write": {
        "job:read", "job:submit", "job:cancel", "queue:read", "fleet:read", "tariff:read", "artifact:write",
    },
    "artifacts:read": {"artifact:read"},
    "artifacts:write": {"artifact:read", "artifact:write"},
    "models:read": {"model:read"},
    "deployments:read": {"deployment:read", "model:read"},
    "deployments:write": {"deployment:read", "deployment:manage", "adapter:manage", "model:read", "tariff:read"},
    "billing:read": {"billing:read", "tariff:read", "programme:read"},
    "quotas:read": {"quota:read", "fleet:read"},
    "usage:ingest": {"usage:ingest"},
}  # fmt: skip


def member(*roles: Role) -> Principal:
    firm = None if set(roles) <= STAFF_ROLES else OWN
    return Principal(PrincipalKind.MEMBER, "mem_1", firm, roles=frozenset(roles))


def key(*scopes: Scope) -> Principal:
    return Principal(PrincipalKind.API_KEY, "key_1", OWN, scopes=frozenset(scopes))


def outcome(principal: Principal, action: Action, firm_id: FirmId | None) -> str:
    try:
        require(principal, action, firm_id=firm_id)
    except NotFound:
        return "not found"
    except Forbidden:
        return "forbidden"
    return "yes"


def test_the_golden_tables_speak_of_every_action_role_and_scope() -> None:
    assert set(GOLDEN) == {action.value for action in Action}
    assert set(COLUMNS) == set(Role) == set(ROLE_ACTIONS)
    assert set(GOLDEN_SCOPES) == {scope.value for scope in Scope} == {scope.value for scope in SCOPE_ACTIONS}


@pytest.mark.parametrize(("role", "action"), list(itertools.product(COLUMNS, Action)))
def test_a_role_may_do_in_its_reach_what_the_golden_table_says(role: Role, action: Action) -> None:
    may = GOLDEN[action.value][COLUMNS.index(role)] != "-"
    reach = OTHER if role in STAFF_ROLES else OWN
    seen = outcome(member(role), action, reach)
    knows_no_firm = role is Role.CENTRE_OPERATOR
    assert seen == ("yes" if may else "not found" if knows_no_firm else "forbidden")


@pytest.mark.parametrize(("role", "action"), list(itertools.product(sorted(FIRM_ROLES), Action)))
def test_nobody_of_a_firm_learns_that_another_firm_exists(role: Role, action: Action) -> None:
    assert outcome(member(role), action, OTHER) == "not found"
    assert outcome(member(role), action, PLATFORM_FIRM) == "not found"


@pytest.mark.parametrize(("role", "action"), list(itertools.product(sorted(FIRM_ROLES), Action)))
def test_without_a_firm_people_of_firms_may_only_ask_about_the_platform(role: Role, action: Action) -> None:
    public = {"tariff:read", "programme:read", "fleet:read", "model:read"}
    assert outcome(member(role), action, None) == ("yes" if action.value in public else "forbidden")


@pytest.mark.parametrize(("scope", "action"), list(itertools.product(Scope, Action)))
def test_a_key_may_do_in_its_firm_what_its_scope_says_and_nothing_elsewhere(scope: Scope, action: Action) -> None:
    assert outcome(key(scope), action, OWN) == ("yes" if action.value in GOLDEN_SCOPES[scope] else "forbidden")
    assert outcome(key(scope), action, OTHER) == "not found"


def test_a_key_of_the_platform_may_report_usage_of_every_firm_and_a_firm_s_key_of_none_but_its_own() -> None:
    platform = Principal(PrincipalKind.API_KEY, "key_2", PLATFORM_FIRM, scopes=frozenset({Scope.USAGE_INGEST}))
    assert outcome(platform, Action.USAGE_INGEST, None) == "yes"
    assert outcome(platform, Action.TARIFF_PUBLISH, None) == "forbidden"
    assert outcome(key(Scope.USAGE_INGEST), Action.USAGE_INGEST, None) == "forbidden"


def test_roles_and_scopes_add_up() -> None:
    assert outcome(member(Role.FIRM_FINANCE, Role.FIRM_DEVELOPER), Action.BILLING_READ, OWN) == "yes"
    assert outcome(member(Role.FIRM_FINANCE, Role.FIRM_DEVELOPER), Action.JOB_SUBMIT, OWN) == "yes"
    assert outcome(key(Scope.INFERENCE, Scope.QUOTAS_READ), Action.QUOTA_READ, OWN) == "yes"


def test_an_administrator_owns_the_platforms_own_firm() -> None:
    admin = member(Role.PLATFORM_ADMIN)
    assert home_firm(admin) == PLATFORM_FIRM
    assert outcome(admin, Action.JOB_SUBMIT, PLATFORM_FIRM) == "yes"
    assert outcome(admin, Action.JOB_SUBMIT, OTHER) == "forbidden"
    assert outcome(member(Role.AUDITOR), Action.JOB_SUBMIT, PLATFORM_FIRM) == "forbidden"


def test_the_system_may_do_everything_and_a_nobody_nothing() -> None:
    nobody = Principal(PrincipalKind.WORKLOAD, "att_1", OWN)
    for action in Action:
        assert outcome(SYSTEM, action, OTHER) == "yes"
        assert outcome(nobody, action, OWN) == "forbidden"


def test_the_answer_for_a_foreign_thing_is_the_one_for_an_absent_thing() -> None:
    absent = NotFound("There is no job job_1.", code="job_not_found")
    with pytest.raises(NotFound) as refusal:
        require(member(Role.FIRM_OWNER), Action.JOB_READ, firm_id=OTHER, missing=absent)
    assert refusal.value is absent


def test_a_refusal_names_who_may() -> None:
    with pytest.raises(Forbidden) as refusal:
        require(member(Role.FIRM_DEVELOPER), Action.KEY_MANAGE, firm_id=OWN)
    assert refusal.value.hint == "Roles that allow it: firm_owner."
    with pytest.raises(Forbidden) as refusal:
        require(key(Scope.INFERENCE), Action.JOB_SUBMIT, firm_id=OWN)
    assert refusal.value.hint == "Scopes that allow it: jobs:write."
