"""`heliu tariff`, `programme`, `voucher`, `account`, `statement`, `charge`, `ledger`: prices, money, their proof."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from kit.cli import REFUSED, JsonFlag, call, console, show, wrong_usage
from kit.units import format_yuan, parse_yuan
from quotas.cli_approvals import done
from quotas.cli_options import FirmId, FirmOption, WhyNeeded
from quotas.pricing import BYTE_HOURS_PER_GB_MONTH
from quotas.vocabulary import UsageKind

app = typer.Typer()
tariff = typer.Typer(help="The price book: publish and list versions.", no_args_is_help=True)
programme = typer.Typer(help="Voucher programmes.", no_args_is_help=True)
voucher = typer.Typer(help="Vouchers of firms.", no_args_is_help=True)
account = typer.Typer(help="A firm's prepaid money.", no_args_is_help=True)
charge = typer.Typer(help="Single charges.", no_args_is_help=True)
ledger = typer.Typer(help="Examine the ledger.", no_args_is_help=True)
for name, group in {
    "tariff": tariff,
    "programme": programme,
    "voucher": voucher,
    "account": account,
    "charge": charge,
    "ledger": ledger,
}.items():
    app.add_typer(group, name=name)

KeyOption = Annotated[str | None, typer.Option("--key", help="Idempotency key: the same key does it once.")]


def _yuan(text: str) -> int:
    """Micro-yuan of what was typed; a wrong amount is a usage error."""
    try:
        return int(parse_yuan(text))
    except Exception as error:
        wrong_usage(str(error))


def _key(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key} if key else {}


def _priced(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with every `…_micro_yuan` shown as yuan under its short name."""
    return {
        name.removesuffix("_micro_yuan"): format_yuan(value)
        if name.endswith("_micro_yuan") and isinstance(value, int)
        else value
        for name, value in row.items()
    }


def _show_money(value: Any, as_json: bool, columns: Mapping[str, str], title: str | None = None) -> None:
    if not as_json:
        value = [_priced(row) for row in value] if isinstance(value, Sequence) else _priced(value)
    show(value, as_json=as_json, columns=columns, title=title)


@tariff.command("publish")
def publish(
    book: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON as POST /api/tariffs takes it.")],
    as_json: JsonFlag = False,
) -> None:
    """Publish a version of the whole price book."""
    try:
        body = json.loads(book.read_text())
    except ValueError as error:
        wrong_usage(f"{book} is not JSON: {error}")
    _show_tariffs([done(call("POST", "/api/tariffs", json=body), as_json=as_json)], as_json)


@tariff.command("list")
def list_tariffs(as_json: JsonFlag = False) -> None:
    """List every version, oldest first."""
    _show_tariffs(call("GET", "/api/tariffs"), as_json)


def _show_tariffs(book: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        show(book, as_json=True)
        return
    rows = [
        {
            "tariff": f"{one['id']} {one['name']}",
            "from": one["valid_from"],
            "until": one["valid_until"],
            "of": " ".join(filter(None, (rate["resource"], rate["qos"], rate["window"]))),
            "meter": rate["meter"],
            "price": format_yuan(rate["micro_yuan"]),
        }
        for one in book
        for rate in one["rates"]
    ]
    columns = {name: name for name in ("tariff", "from", "until", "of", "meter", "price")}
    show(
        rows,
        as_json=False,
        columns=columns,
        title="a GPU-hour, a million tokens, an image, a second of audio, a GB-month",
    )


PROGRAMME_COLUMNS = {
    "id": "programme",
    "name": "name",
    "funder": "funder",
    "share": "share",
    "left": "left",
    "pool": "pool",
    "cap_per_firm_year": "cap per firm and year",
    "valid_until": "until",
}


@programme.command("create")
def create_programme(
    title: Annotated[str, typer.Argument(metavar="NAME", help="What the programme is called.")],
    funder: Annotated[str, typer.Option(help="Who pays.")],
    share: Annotated[float, typer.Option(min=0.0001, max=100, help="Per cent of the cost it pays.")],
    pool: Annotated[str, typer.Option(help="Yuan in all.")],
    cap: Annotated[str, typer.Option(help="Yuan per firm and year.")],
    until: Annotated[str, typer.Option(help="When it ends, e.g. 2027-12-31T00:00:00+08:00.")],
    days: Annotated[int, typer.Option(min=1, max=1100, help="How long a voucher is valid.")] = 365,
    covers: Annotated[list[UsageKind] | None, typer.Option(help="What it pays for; compute when left out.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Open a voucher programme."""
    body = {
        "name": title,
        "funder": funder,
        "share_ppm": round(share * 10_000),
        "pool_micro_yuan": _yuan(pool),
        "cap_per_firm_year_micro_yuan": _yuan(cap),
        "valid_until": until,
        "voucher_days": days,
        "covers": [one.value for one in covers or [UsageKind.COMPUTE]],
    }
    _show_programmes([call("POST", "/api/programmes", json=body)], as_json)


@programme.command("list")
def list_programmes(as_json: JsonFlag = False) -> None:
    """List programmes and what is left of them."""
    _show_programmes(call("GET", "/api/programmes"), as_json)


def _show_programmes(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    shown = rows if as_json else [{**row, "share": f"{row['share_ppm'] / 10_000:g} %"} for row in rows]
    _show_money(shown, as_json, PROGRAMME_COLUMNS)


VOUCHER_COLUMNS = {
    "id": "voucher",
    "programme_id": "programme",
    "firm_id": "firm",
    "left": "left",
    "amount": "granted",
    "expires_at": "expires",
}


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
    body = {"programme_id": programme_id, "firm_id": firm_id, "amount_micro_yuan": _yuan(amount), "note": note}
    _show_money(
        done(call("POST", "/api/vouchers", json=body, headers=_key(key)), as_json=as_json), as_json, VOUCHER_COLUMNS
    )


@voucher.command("list")
def list_vouchers(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List a firm's vouchers in the order in which they pay."""
    _show_money(call("GET", "/api/vouchers", params=_of(firm_id)), as_json, VOUCHER_COLUMNS)


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
    _show_money(call("GET", "/api/account", params=_of(firm_id)), as_json, ACCOUNT_COLUMNS)


@account.command("top-up")
def top_up(
    firm_id: FirmId,
    amount: Annotated[str, typer.Argument(help="Yuan.")],
    evidence: Annotated[str, typer.Option(help="What proves it: a bank slip's number.")],
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Book money that reached the platform's bank account."""
    body = {"firm_id": firm_id, "amount_micro_yuan": _yuan(amount), "evidence": evidence}
    _show_money(
        done(call("POST", "/api/top-ups", json=body, headers=_key(key)), as_json=as_json), as_json, PAYMENT_COLUMNS
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
    body = {"firm_id": firm_id, "amount_micro_yuan": _yuan(amount), "evidence": evidence}
    _show_money(
        done(call("POST", "/api/withdrawals", json=body, headers=_key(key)), as_json=as_json), as_json, PAYMENT_COLUMNS
    )


@account.command("payments")
def payments(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List what a firm paid in and was paid back."""
    _show_money(call("GET", "/api/top-ups", params=_of(firm_id)), as_json, PAYMENT_COLUMNS)


@account.command("credit-line")
def credit_line(
    firm_id: FirmId,
    amount: Annotated[str, typer.Argument(help="Yuan; 0 makes it prepaid again.")],
    reason: WhyNeeded,
    as_json: JsonFlag = False,
) -> None:
    """Let a firm pay later, up to an amount."""
    body = {"amount_micro_yuan": _yuan(amount), "reason": reason}
    _show_money(
        done(call("PUT", f"/api/firms/{firm_id}/credit-line", json=body), as_json=as_json), as_json, ACCOUNT_COLUMNS
    )


@app.command("statement")
def statement(
    period: Annotated[str, typer.Argument(help="A month, e.g. 2026-11.")],
    firm_id: FirmOption = None,
    centre: Annotated[str | None, typer.Option(help="A centre's statement instead of a firm's.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a month of a firm, or what a centre is owed for it."""
    if centre is not None:
        month = call("GET", "/api/centre-statements", params={"centre": centre, "period": period})
        _show_centre(month, as_json)
        return
    month = call("GET", "/api/statements", params={"period": period, **_of(firm_id)})
    if as_json:
        show(month, as_json=True)
        return
    columns = {
        "subject": "job, or key and model",
        "used": "used",
        "tariff_id": "tariff",
        "discount": "discount",
        "amount": "amount",
        "voucher": "voucher",
        "cash": "cash",
        "note": "note",
    }
    rows = [{**_priced(line), "used": _used(line["quantities"])} for line in month["lines"]]
    show(rows, as_json=False, columns=columns, title=f"{month['firm_id']} {period} ({month['state']})")
    sums = _priced(month)
    console.print(
        f"amount {sums['amount']} = voucher {sums['voucher']} + cash {sums['cash']}\n"
        f"opening {sums['opening']} + top-ups {sums['top_ups']} - cash {sums['cash']} = closing {sums['closing']}",
        highlight=False,
    )


def _used(quantities: Mapping[str, int]) -> str:
    if "gpu_ms" in quantities:
        return f"{quantities['gpu_ms'] / 1000:,.1f} GPU-s"
    if "byte_hours" in quantities:
        return f"{quantities['byte_hours'] / BYTE_HOURS_PER_GB_MONTH:,.6f} GB-months"
    if "images" in quantities:
        return f"{quantities['images']:,} images ({quantities['requests']:,} requests)"
    if "audio_ms" in quantities:
        return f"{quantities['audio_ms'] / 1000:,.1f} s of audio ({quantities['requests']:,} requests)"
    return (
        f"{quantities['input']:,} in, {quantities['cached_input']:,} cached, {quantities['output']:,} out "
        f"({quantities['requests']:,} requests)"
    )


def _show_centre(month: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        show(month, as_json=True)
        return
    rows = [
        {**_priced(line), "used": _used(line), "payout": f"{line['payout_ppm'] / 10_000:g} %"}
        for line in month["lines"]
    ]
    columns = {"pool": "pool", "used": "lent", "list": "list price", "payout": "payout", "payable": "owed"}
    show(rows, as_json=False, columns=columns, title=f"{month['centre']} {month['period']}")
    console.print(f"owed {format_yuan(month['payable_micro_yuan'])}", highlight=False)


@charge.command("refund")
def refund(
    charge_id: Annotated[str, typer.Argument(help="A charge's id.")], reason: WhyNeeded, as_json: JsonFlag = False
) -> None:
    """Give a charge back by a credit note."""
    note = done(call("POST", f"/api/charges/{charge_id}/refund", json={"reason": reason}), as_json=as_json)
    columns = {"id": "credit note", "subject": "of", "amount": "amount", "voucher": "voucher", "cash": "cash"}
    _show_money(note, as_json, columns)


HOLD_COLUMNS = {
    "id": "hold",
    "kind": "kind",
    "subject": "held for",
    "firm_id": "firm",
    "amount": "amount",
    "expires_at": "expires",
}


@ledger.command("holds")
def holds(as_json: JsonFlag = False) -> None:
    """List what is on hold now, by name."""
    _show_money(call("GET", "/api/ledger/holds"), as_json, HOLD_COLUMNS)


@ledger.command("verify")
@ledger.command("check")
def check(as_json: JsonFlag = False) -> None:
    """Examine every invariant over the whole ledger; exit code 1 when one does not hold."""
    report = call("GET", "/api/ledger/check")
    if as_json:
        show(report, as_json=True)
    else:
        console.print(
            f"{report['accounts']:,} accounts, {report['transfers']:,} transfers, {report['blocks']:,} sealed blocks",
            highlight=False,
        )
        heads = f"{report['heads']:,} of {report['blocks']:,} blocks compared with the heads kept outside the database"
        console.print(f"{heads}; {report['unsealed']:,} transfers not sealed yet", highlight=False)
        for finding in report["findings"]:
            console.print(
                f"[red]{finding['invariant']}[/red] {escape(finding['about'])}: {escape(finding['detail'])}",
                highlight=False,
            )
        if report["open_holds"]:
            _show_money(report["open_holds"], False, HOLD_COLUMNS, title="on hold")
        console.print("[green]every invariant holds[/green]" if report["ok"] else "[red]the ledger is wrong[/red]")
    if not report["ok"]:
        raise typer.Exit(REFUSED)


def _of(firm_id: str | None) -> dict[str, str]:
    return {"firm_id": firm_id} if firm_id else {}
