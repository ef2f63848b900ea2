"""`heliu account`: a firm's prepaid money and its credit line."""

from typing import Annotated

import typer

from kit.cli import JsonFlag, call
from quotas.cli_amounts import KeyOption, key_header, of_firm, show_money, yuan
from quotas.cli_approvals import done
from quotas.cli_options import FirmId, FirmOption, WhyNeeded

app = typer.Typer()
account = typer.Typer(help="A firm's prepaid money.", no_args_is_help=True)
app.add_typer(account, name="account")

ACCOUNT_COLUMNS = {
    "firm_id": "firm",
    "balance": "balance",
    "held": "on hold",
    "credit_line": "credit line",
    "available": "available",
}
PAYMENT_COLUMNS = {"id": "payment", "firm_id": "firm", "amount": "amount", "evidence": "evidence", "at": "at"}


@account.command("show")
def show_account(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """Show a firm's money as it stands now."""
    show_money(call("GET", "/api/account", params=of_firm(firm_id)), as_json, ACCOUNT_COLUMNS)


@account.command("top-up")
def top_up(
    firm_id: FirmId,
    amount: Annotated[str, typer.Argument(help="Yuan.")],
    evidence: Annotated[str, typer.Option(help="What proves it: a bank slip's number.")],
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Book money that reached the platform's bank account."""
    body = {"firm_id": firm_id, "amount_micro_yuan": yuan(amount), "evidence": evidence}
    show_money(
        done(call("POST", "/api/top-ups", json=body, headers=key_header(key)), as_json=as_json),
        as_json,
        PAYMENT_COLUMNS,
    )


@account.command("withdraw")
def withdraw(
    firm_id: FirmId,
    amount: Annotated[str, typer.Argument(help="Yuan.")],
    evidence: Annotated[str, typer.Option(help="What proves it.")],
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Book money that was paid back to a firm."""
    body = {"firm_id": firm_id, "amount_micro_yuan": yuan(amount), "evidence": evidence}
    show_money(
        done(call("POST", "/api/withdrawals", json=body, headers=key_header(key)), as_json=as_json),
        as_json,
        PAYMENT_COLUMNS,
    )


@account.command("payments")
def payments(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List what a firm paid in and was paid back."""
    show_money(call("GET", "/api/top-ups", params=of_firm(firm_id)), as_json, PAYMENT_COLUMNS)


@account.command("credit-line")
def credit_line(
    firm_id: FirmId,
    amount: Annotated[str, typer.Argument(help="Yuan; 0 makes it prepaid again.")],
    reason: WhyNeeded,
    as_json: JsonFlag = False,
) -> None:
    """Let a firm pay later, up to an amount."""
    body = {"amount_micro_yuan": yuan(amount), "reason": reason}
    show_money(
        done(call("PUT", f"/api/firms/{firm_id}/credit-line", json=body), as_json=as_json), as_json, ACCOUNT_COLUMNS
    )
