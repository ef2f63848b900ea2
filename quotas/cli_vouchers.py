"""`heliu programme`, `voucher`: subsidy schemes and what firms were granted under them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from kit.cli import JsonFlag, call
from quotas.cli_amounts import KeyOption, key_header, of_firm, per_cent, show_money, yuan
from quotas.cli_approvals import done
from quotas.cli_options import FirmId, FirmOption
from quotas.vocabulary import UsageKind

app = typer.Typer()
programme = typer.Typer(help="Voucher programmes.", no_args_is_help=True)
voucher = typer.Typer(help="Vouchers of firms.", no_args_is_help=True)
app.add_typer(programme, name="programme")
app.add_typer(voucher, name="voucher")

PROGRAMME_COLUMNS = {
    "id": "programme",
    "name": "name",
    "funder": "funder",
    "share": "share",
    "of": "of",
    "left": "left",
    "pool": "pool",
    "cap_per_firm_year": "cap per firm and year",
    "priority": "priority",
    "valid_from": "from",
    "valid_until": "until",
}
VOUCHER_COLUMNS = {
    "id": "voucher",
    "programme_id": "programme",
    "firm_id": "firm",
    "left": "left",
    "amount": "granted",
    "expires_at": "expires",
}


@programme.command("create")
def create_programme(
    title: Annotated[str, typer.Argument(metavar="NAME", help="What the programme is called.")],
    funder: Annotated[str, typer.Option(help="Who pays.")],
    share: Annotated[str, typer.Option(help="Per cent of the cost it pays, e.g. 50 or 12.5.")],
    pool: Annotated[str, typer.Option(help="Yuan in all.")],
    cap: Annotated[str, typer.Option(help="Yuan per firm and year.")],
    until: Annotated[str, typer.Option(help="When it ends, e.g. 2027-12-31T00:00:00+08:00.")],
    since: Annotated[str | None, typer.Option("--from", help="When it begins; by default now.")] = None,
    days: Annotated[int, typer.Option(min=1, max=1100, help="How long a voucher is valid.")] = 365,
    covers: Annotated[list[UsageKind] | None, typer.Option(help="What it pays for; compute when left out.")] = None,
    on: Annotated[list[str] | None, typer.Option(help="Only GPU time of this pool; may be repeated.")] = None,
    priority: Annotated[int, typer.Option(min=0, max=1_000_000, help="Of two vouchers the lower pays first.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """Open a voucher programme."""
    body = {
        "name": title,
        "funder": funder,
        "share_ppm": per_cent(share),
        "pool_micro_yuan": yuan(pool),
        "cap_per_firm_year_micro_yuan": yuan(cap),
        "valid_from": since,
        "valid_until": until,
        "voucher_days": days,
        "covers": [one.value for one in covers or [UsageKind.COMPUTE]],
        "pools": on or None,
        "priority": priority,
    }
    _show_programmes([call("POST", "/api/programmes", json=body)], as_json)


@programme.command("list")
def list_programmes(as_json: JsonFlag = False) -> None:
    """List programmes and what is left of them."""
    _show_programmes(call("GET", "/api/programmes"), as_json)


def _show_programmes(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    shown = rows if as_json else [{**row, "share": f"{row['share_ppm'] / 10_000:g} %", "of": _of(row)} for row in rows]
    show_money(shown, as_json, PROGRAMME_COLUMNS)


def _of(row: Mapping[str, Any]) -> str:
    """What a programme pays for, in words."""
    kinds = ", ".join(row["covers"])
    return f"{kinds}; GPU time of {', '.join(row['pools'])} only" if row["pools"] else kinds


@voucher.command("grant")
def grant(
    programme_id: Annotated[str, typer.Argument(help="A programme's id.")],
    firm_id: FirmId,
    amount: Annotated[str, typer.Argument(help="Yuan.")],
    note: Annotated[str, typer.Option(help="What the firm reads with it.")] = "",
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Grant a firm part of a programme's pool."""
    body = {"programme_id": programme_id, "firm_id": firm_id, "amount_micro_yuan": yuan(amount), "note": note}
    answer = done(call("POST", "/api/vouchers", json=body, headers=key_header(key)), as_json=as_json)
    show_money(answer, as_json, VOUCHER_COLUMNS)


@voucher.command("list")
def list_vouchers(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List a firm's vouchers in the order in which they pay."""
    show_money(call("GET", "/api/vouchers", params=of_firm(firm_id)), as_json, VOUCHER_COLUMNS)
