"""The `heliu` commands of this package."""

import typer

from quotas import (
    cli_approvals,
    cli_audit,
    cli_budgets,
    cli_cohorts,
    cli_documents,
    cli_ledger,
    cli_limits,
    cli_money,
    cli_people,
    cli_prices,
    cli_quotas,
    cli_statements,
    cli_usage,
    cli_vouchers,
)

app = typer.Typer()
for part in (
    cli_people,
    cli_quotas,
    cli_cohorts,
    cli_documents,
    cli_limits,
    cli_budgets,
    cli_audit,
    cli_prices,
    cli_vouchers,
    cli_money,
    cli_statements,
    cli_ledger,
    cli_usage,
    cli_approvals,
):
    app.registered_groups.extend(part.app.registered_groups)
    app.registered_commands.extend(part.app.registered_commands)
