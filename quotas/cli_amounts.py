"""Amounts as people type and read them: yuan and per cent, never a float."""

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer

from kit.cli import show, wrong_usage
from kit.errors import InvalidInput
from kit.units import PPM, format_yuan, parse_yuan

KeyOption = Annotated[str | None, typer.Option("--key", help="Idempotency key: the same key does it once.")]
PPM_PER_PER_CENT = PPM // 100


def yuan(text: str) -> int:
    """Micro-yuan of what was typed; a wrong amount is a usage error."""
    try:
        return int(parse_yuan(text))
    except InvalidInput as error:
        wrong_usage(str(error))


def per_cent(text: str) -> int:
    """Millionths of what was typed, exactly; what is no share, or has more than four decimals, is a usage error."""
    try:
        share = Decimal(text) * PPM_PER_PER_CENT
        whole = share.is_finite() and share == share.to_integral_value()
    except InvalidOperation:
        wrong_usage(f"{text!r} is not per cent; write 50 or 12.5")
    if not whole or not 0 <= share <= PPM:
        wrong_usage(f"{text!r} is not between 0 and 100 with at most four decimals; write 50 or 12.5")
    return int(share)


def key_header(key: str | None) -> dict[str, str]:
    """The header of an idempotency key."""
    return {"Idempotency-Key": key} if key else {}


def of_firm(firm_id: str | None) -> dict[str, str]:
    """The query that names a firm."""
    return {"firm_id": firm_id} if firm_id else {}


def priced(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with every `…_micro_yuan` shown as yuan under its short name."""
    return {
        name.removesuffix("_micro_yuan"): format_yuan(value)
        if name.endswith("_micro_yuan") and isinstance(value, int)
        else value
        for name, value in row.items()
    }


def show_money(value: Any, as_json: bool, columns: Mapping[str, str], title: str | None = None) -> None:
    """Show rows, or one, with their amounts in yuan; as JSON as they came."""
    if not as_json:
        value = [priced(row) for row in value] if isinstance(value, Sequence) else priced(value)
    show(value, as_json=as_json, columns=columns, title=title)
