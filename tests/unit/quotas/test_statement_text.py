"""What a line of a statement says to people: what was used, who paid how much and why, and what nobody paid."""

from typing import Any

import pytest
import typer

from kit.cli import USAGE
from quotas.cli_amounts import per_cent
from quotas.cli_statements import shown_line

LINE: dict[str, Any] = {
    "charge_id": "chg_1",
    "subject": "job_1",
    "tariff_id": "trf_1",
    "quantities": {"gpu_ms": 1_500},
    "amount_micro_yuan": 1_000_000,
    "voucher_micro_yuan": 400_000,
    "cash_micro_yuan": 600_000,
    "discount_micro_yuan": 0,
    "loss_micro_yuan": 0,
    "vouchers_micro_yuan": {"vch_1": 400_000},
    "explanation": ["vch_1 paid ¥0.40 of ¥0.80 (50 %)"],
    "note": "",
    "reverses": None,
}


@pytest.mark.parametrize(
    ("changes", "column", "said"),
    [
        ({}, "what", "chg_1\njob_1"),
        ({}, "used", "1.5 GPU-s\nat trf_1"),
        ({"tariff_id": None}, "used", "1.5 GPU-s\nat no price"),
        ({}, "why", "vch_1 paid ¥0.40 of ¥0.80 (50 %)"),
        ({"explanation": []}, "why", "vch_1: ¥0.40"),
        ({"discount_micro_yuan": 100_000}, "amount", "¥1.00\n¥0.10 taken off"),
        (
            {"loss_micro_yuan": 250_000, "note": "the quote's maximum"},
            "why",
            "vch_1 paid ¥0.40 of ¥0.80 (50 %)\n¥0.25 more was used; nobody paid it\nthe quote's maximum",
        ),
        ({"reverses": "chg_0"}, "used", "credit note\nat trf_1"),
        ({"quantities": {"byte_hours": 720_000_000_000}}, "used", "1.000000 GB-months\nat trf_1"),
    ],
    ids=str,
)
def test_a_line_says_what_was_used_and_who_paid_it(changes: dict[str, Any], column: str, said: str) -> None:
    assert shown_line(LINE | changes)[column] == said


@pytest.mark.parametrize(
    ("typed", "millionths"),
    [("50", 500_000), ("12.5", 125_000), ("0.0001", 1), ("33.3333", 333_333), ("100", 1_000_000)],
)
def test_a_share_is_read_exactly(typed: str, millionths: int) -> None:
    assert per_cent(typed) == millionths


@pytest.mark.parametrize("typed", ["33.33333", "100.1", "-1", "half", "", "NaN", "inf"])
def test_what_is_no_share_is_a_usage_error(typed: str) -> None:
    with pytest.raises(typer.Exit) as ended:
        per_cent(typed)
    assert ended.value.exit_code == USAGE
