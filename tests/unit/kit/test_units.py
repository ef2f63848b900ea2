from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import InvalidInput
from kit.units import MAX_AMOUNT, div_half_even, format_yuan, gpu_ms, parse_yuan

amounts = st.integers(min_value=-MAX_AMOUNT, max_value=MAX_AMOUNT)


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [(5, 2, 2), (7, 2, 4), (-5, 2, -2), (-7, 2, -4), (1, 3, 0), (2, 3, 1), (-2, 3, -1), (0, 7, 0), (6, 3, 2)],
)
def test_halves_round_to_the_even_neighbour(numerator: int, denominator: int, expected: int) -> None:
    assert div_half_even(numerator, denominator) == expected


@given(st.integers(min_value=-(10**18), max_value=10**18), st.integers(min_value=1, max_value=10**9))
def test_rounding_agrees_with_decimal_arithmetic(numerator: int, denominator: int) -> None:
    exact = (Decimal(numerator) / Decimal(denominator)).quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
    # Decimal's own division is rounded to 28 digits, enough to place these numbers on the right side of a half.
    assert div_half_even(numerator, denominator) == int(exact)


def test_rounding_by_nothing_is_a_bug_not_a_number() -> None:
    with pytest.raises(AssertionError, match="positive denominator"):
        div_half_even(1, 0)


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        ("12.50", 12_500_000),
        ("¥12.5", 12_500_000),
        (" 0.000001 ", 1),
        ("-3", -3_000_000),
        ("1,234,567.89", 1_234_567_890_000),
        ("1e3", 1_000_000_000),
    ],
)
def test_yuan_are_read_as_micro_yuan(text: str, micro: int) -> None:
    assert parse_yuan(text) == micro


@pytest.mark.parametrize("text", ["", "free", "0.0000001", "NaN", "Infinity", "9007199255", "1.2.3", "--1"])
def test_what_is_not_a_whole_number_of_micro_yuan_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_yuan(text)


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        (0, "¥0.00"),
        (12_500_000, "¥12.50"),
        (1, "¥0.000001"),
        (-1_230_000, "-¥1.23"),
        (1_234_567_890_000, "¥1,234,567.89"),
    ],
)
def test_micro_yuan_print_as_yuan(micro: int, text: str) -> None:
    assert format_yuan(micro) == text


@given(amounts)
def test_printing_an_amount_and_reading_it_back_loses_nothing(amount: int) -> None:
    assert parse_yuan(format_yuan(amount).replace("¥", "")) == amount


@pytest.mark.parametrize(("milli", "ran_ms", "expected"), [(1000, 3, 3), (2000, 3, 6), (500, 3, 1), (1, 999, 0)])
def test_gpu_time_is_what_was_held_times_how_long_rounded_down(milli: int, ran_ms: int, expected: int) -> None:
    assert gpu_ms(milli, ran_ms) == expected
