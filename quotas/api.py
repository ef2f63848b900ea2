"""The door to `quotas` for the packages above it. Functions take the caller's open transaction."""

from pathlib import Path

from quotas import audit as audit
from quotas.access import Action as Action
from quotas.access import allowed_actions as allowed_actions
from quotas.access import home_firm as home_firm
from quotas.access import is_staff as is_staff
from quotas.access import require as require
from quotas.allowances import lease_allowance as lease_allowance
from quotas.allowances import open_leases as open_leases
from quotas.allowances import recall_allowances as recall_allowances
from quotas.allowances import renew_allowance as renew_allowance
from quotas.allowances import return_allowance as return_allowance
from quotas.applications import Application as Application
from quotas.applications import apply as apply
from quotas.applications import firm_of as firm_of
from quotas.applications import halted_firms as halted_firms
from quotas.applications import require_active as require_active
from quotas.applications import review as review
from quotas.authentication import authenticate as authenticate
from quotas.authentication import principal_of as principal_of
from quotas.bearers import ip_allowed as ip_allowed
from quotas.budgets import key_limits as key_limits
from quotas.budgets import load_key as load_key
from quotas.budgets import require_budget as require_budget
from quotas.cash import account_of as account_of
from quotas.cash import record_topup as record_topup
from quotas.ceilings import effective_limits as effective_limits
from quotas.ceilings import require_within as require_within
from quotas.ceilings import used_this_month as used_this_month
from quotas.charges import charge_of as charge_of
from quotas.charges import charges_of as charges_of
from quotas.charges import renew_compute as renew_compute
from quotas.charges import settle_compute as settle_compute
from quotas.cohort_tree import cohort_tree as cohort_tree
from quotas.holds import hold_compute as hold_compute
from quotas.holds import quote_compute as quote_compute
from quotas.holds import release_hold as release_hold
from quotas.keys import KeySpec as KeySpec
from quotas.keys import issue_key as issue_key
from quotas.ledger_service import check_ledger as check_ledger
from quotas.ledger_service import open_holds as open_holds
from quotas.ledger_service import sweep as sweep
from quotas.members import issue_admin_link as issue_admin_link
from quotas.pricing import Meter as Meter
from quotas.pricing import RateKey as RateKey
from quotas.programmes import vouchers_of as vouchers_of
from quotas.projects import project_of as project_of
from quotas.quota_versions import quota_limits as quota_limits
from quotas.quota_versions import quota_nominal as quota_nominal
from quotas.quota_versions import set_quota as set_quota
from quotas.refunds import refund_charge as refund_charge
from quotas.statement_service import centre_statement as centre_statement
from quotas.statement_service import statement as statement
from quotas.statements import period_of as period_of
from quotas.tariffs import gpu_rate as gpu_rate
from quotas.tariffs import publish_tariff as publish_tariff
from quotas.tariffs import token_rate as token_rate
from quotas.usage import ingest_tokens as ingest_tokens
from quotas.uscc import check_character as check_character
from quotas.web.deps import CurrentPrincipal as CurrentPrincipal
from quotas.web.deps import Db as Db
from quotas.web.deps import Now as Now
from quotas.web.deps import Origin as Origin

MIGRATIONS: Path = Path(__file__).parent / "adapters" / "migrations"
