"""`heliu statement`, `charge`: a month line by line, who paid each and why, and credit notes."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from kit.cli import JsonFlag, call, console, show
from kit.units import format_yuan
from quotas.cli_amounts import of_firm, priced, show_money
from quotas.cli_approvals import done
from quotas.cli_options import FirmOption, WhyNeeded
from quotas.pricing import BYTE_HOURS_PER_GB_MONTH

app = typer.Typer()
charge = typer.Typer(help="Single charges.", no_args_is_help=True)
app.add_typer(charge, name="charge")

LINE_COLUMNS = {
    "what": "charge; job, or key and model",
    "used": "used; at tariff",
    "amount": "amount",
    "voucher": "voucher",
    "cash": "cash",
    "why": "who paid, and why",
}


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
    month = call("GET", "/api/statements", params={"period": period, **of_firm(firm_id)})
    if as_json:
        show(month, as_json=True)
        return
    rows = [shown_line(line) for line in month["lines"]]
    show(rows, as_json=False, columns=LINE_COLUMNS, title=f"{month['firm_id']} {period} ({month['state']})")
    sums = priced(month)
    console.print(
        f"amount {sums['amount']} = voucher {sums['voucher']} + cash {sums['cash']}\n"
        f"opening {sums['opening']} + top-ups {sums['top_ups']} - cash {sums['cash']} = closing {sums['closing']}",
        highlight=False,
    )
    if month["closed_at"] is None:
        console.print("not closed yet: it may still grow")
    else:
        console.print(f"closed {month['closed_at']}, SHA-256 {month['hash']}", highlight=False, soft_wrap=True)


def shown_line(line: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a line, in words."""
    money = priced(line)
    tariff = f"at {line['tariff_id']}" if line["tariff_id"] else "at no price"
    off = f"\n{money['discount']} taken off" if line["discount_micro_yuan"] else ""
    return {
        "what": f"{line['charge_id']}\n{line['subject']}",
        "used": f"{_used(line)}\n{tariff}",
        "amount": money["amount"] + off,
        "voucher": money["voucher"],
        "cash": money["cash"],
        "why": "\n".join(_why(line)),
    }


def _why(line: Mapping[str, Any]) -> list[str]:
    """Which voucher paid how much, why others did not, and whatever else is said of the line."""
    said = list(line["explanation"])
    named = " ".join(said)
    said += [
        f"{voucher}: {format_yuan(amount)}"
        for voucher, amount in line["vouchers_micro_yuan"].items()
        if voucher not in named
    ]
    if line["loss_micro_yuan"]:
        said.append(f"{format_yuan(line['loss_micro_yuan'])} more was used; nobody paid it")
    return [*said, line["note"]] if line["note"] else said


def _used(line: Mapping[str, Any]) -> str:
    return "credit note" if line["reverses"] else _counted(line["quantities"])


def _counted(quantities: Mapping[str, int]) -> str:
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
        {**priced(line), "used": _counted(line), "payout": f"{line['payout_ppm'] / 10_000:g} %"}
        for line in month["lines"]
    ]
    columns = {"pool": "pool", "used": "lent", "list": "list price", "payout": "payout", "payable": "owed"}
    show(rows, as_json=False, columns=columns, title=f"{month['centre']} {month['period']}")
    console.print(f"owed {format_yuan(month['payable_micro_yuan'])}", highlight=False)


@charge.command("refund")
def refund(
    charge_id: Annotated[str, typer.Argument(help="A charge's id, as the statement shows it.")],
    reason: WhyNeeded,
    as_json: JsonFlag = False,
) -> None:
    """Give a charge back by a credit note."""
    note = done(call("POST", f"/api/charges/{charge_id}/refund", json={"reason": reason}), as_json=as_json)
    columns = {"id": "credit note", "subject": "of", "amount": "amount", "voucher": "voucher", "cash": "cash"}
    show_money(note, as_json, columns)
