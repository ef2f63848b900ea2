"""`heliu tariff`, `discount`, `centre`: the price book, what contracts take off it, and what centres are paid of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kit.cli import JsonFlag, call, console, show, wrong_usage
from kit.units import format_yuan
from quotas.cli_amounts import per_cent
from quotas.cli_approvals import done
from quotas.cli_options import FirmId, FirmOption, WhyNeeded
from quotas.vocabulary import UsageKind

app = typer.Typer()
tariff = typer.Typer(help="The price book: publish, list and preview versions.", no_args_is_help=True)
discount = typer.Typer(help="Discounts by contract.", no_args_is_help=True)
centre = typer.Typer(help="What centres are paid for the time they lend.", no_args_is_help=True)
app.add_typer(tariff, name="tariff")
app.add_typer(discount, name="discount")
app.add_typer(centre, name="centre")

CentreArgument = Annotated[str, typer.Argument(metavar="CENTRE", help="A centre's name, e.g. optics-valley.")]


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


@tariff.command("preview")
def preview(
    book: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON as POST /api/tariffs takes it.")],
    month: Annotated[str | None, typer.Option(help="E.g. 2026-10; by default the last whole month.")] = None,
    firm_id: Annotated[str | None, typer.Option("--firm", help="One firm's id; by default all.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what a month would have cost with a draft; nothing is published."""
    try:
        body = {"tariff": json.loads(book.read_text()), "period": month, "firm_id": firm_id}
    except ValueError as error:
        wrong_usage(f"{book} is not JSON: {error}")
    answer = call("POST", "/api/tariffs/preview", json=body)
    if as_json:
        show(answer, as_json=True)
        return
    rows = [
        {
            "firm": line["firm_id"],
            "of": line["kind"],
            "now": format_yuan(line["now_micro_yuan"]),
            "draft": format_yuan(line["draft_micro_yuan"]),
            "more": format_yuan(line["draft_micro_yuan"] - line["now_micro_yuan"]),
        }
        for line in answer["lines"]
    ]
    columns = {"firm": "firm", "of": "of", "now": "was", "draft": "would have been", "more": "difference"}
    show(rows, as_json=False, columns=columns, title=answer["period"])
    now, draft = answer["now_micro_yuan"], answer["draft_micro_yuan"]
    console.print(f"in all {format_yuan(now)}, with the draft {format_yuan(draft)}", highlight=False)
    for what in answer["unpriced"]:
        console.print(f"the draft has no price for {what}", style="yellow", markup=False)


@discount.command("grant")
def grant(
    firm_id: FirmId,
    kind: Annotated[UsageKind, typer.Argument(help="What it is on.")],
    off: Annotated[str, typer.Option(help="Per cent off, e.g. 10 or 12.5.")],
    contract: Annotated[str, typer.Option(help="The contract that says so.")],
    resource: Annotated[str, typer.Option("--on", help="One pool or model; by default all.")] = "*",
    since: Annotated[str | None, typer.Option("--from", help="E.g. 2026-12-01T00:00:00+08:00; by default now.")] = None,
    until: Annotated[str | None, typer.Option(help="Its end, not included; by default none.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Take so much off a firm's rates. A second administrator approves it."""
    body = {
        "firm_id": firm_id,
        "kind": kind.value,
        "resource": resource,
        "off_ppm": per_cent(off),
        "valid_from": since,
        "valid_until": until,
        "contract": contract,
    }
    _show_discounts([done(call("POST", "/api/discounts", json=body), as_json=as_json)], as_json)


@discount.command("list")
def list_discounts(firm_id: FirmOption = None, as_json: JsonFlag = False) -> None:
    """List a firm's discounts, oldest first."""
    _show_discounts(call("GET", "/api/discounts", params={"firm_id": firm_id} if firm_id else {}), as_json)


@discount.command("end")
def end(
    discount_id: Annotated[str, typer.Argument(help="A discount's id, as discount list shows it.")],
    as_json: JsonFlag = False,
) -> None:
    """Let a discount end now; one that has not begun is withdrawn."""
    _show_discounts([call("POST", f"/api/discounts/{discount_id}/end")], as_json)


@centre.command("contract")
def sign_contract(
    centre_name: CentreArgument,
    payout: Annotated[str, typer.Argument(help="Per cent of the list price, e.g. 80 or 82.5.")],
    reason: WhyNeeded,
    as_json: JsonFlag = False,
) -> None:
    """From now on pay a centre so much of the list price; above the policy's price a second administrator approves."""
    body = {"payout_ppm": per_cent(payout), "reason": reason}
    answer = done(call("PUT", f"/api/centres/{centre_name}/contract", json=body), as_json=as_json)
    _show_contracts([answer], as_json)


@centre.command("contracts")
def list_contracts(centre_name: CentreArgument, as_json: JsonFlag = False) -> None:
    """List what a centre is and was paid of the list price, oldest first."""
    _show_contracts(call("GET", f"/api/centres/{centre_name}/contracts"), as_json)


def _show_contracts(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    shown = rows if as_json else [{**row, "payout": f"{row['payout_ppm'] / 10_000:g} %"} for row in rows]
    columns = {"centre": "centre", "payout": "payout", "valid_from": "from", "valid_until": "until"}
    show(shown, as_json=as_json, columns=columns)


def _show_discounts(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    shown = rows if as_json else [{**row, "off": f"{row['off_ppm'] / 10_000:g} %"} for row in rows]
    columns = {
        "id": "discount",
        "firm_id": "firm",
        "kind": "on",
        "resource": "of",
        "off": "off",
        "valid_from": "from",
        "valid_until": "until",
        "contract": "contract",
    }
    show(shown, as_json=as_json, columns=columns)
