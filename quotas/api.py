"""The door to `quotas` for the packages above it. Functions take the caller's open transaction."""

from pathlib import Path

from quotas import audit as audit
from quotas.access import Action as Action
from quotas.access import allowed_actions as allowed_actions
from quotas.access import home_firm as home_firm
from quotas.access import is_staff as is_staff
from quotas.access import require as require
from quotas.applications import firm_of as firm_of
from quotas.applications import require_active as require_active
from quotas.authentication import authenticate as authenticate
from quotas.authentication import key_limits as key_limits
from quotas.authentication import load_key as load_key
from quotas.authentication import principal_of as principal_of
from quotas.bearers import ip_allowed as ip_allowed
from quotas.members import issue_admin_link as issue_admin_link
from quotas.projects import project_of as project_of
from quotas.quota_versions import quota_nominal as quota_nominal
from quotas.quota_versions import set_quota as set_quota
from quotas.web.deps import CurrentPrincipal as CurrentPrincipal
from quotas.web.deps import Db as Db
from quotas.web.deps import Now as Now
from quotas.web.deps import Origin as Origin

MIGRATIONS: Path = Path(__file__).parent / "adapters" / "migrations"
