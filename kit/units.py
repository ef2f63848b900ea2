"""Quantities are integers and carry their unit in the type: no float ever meets money or GPU time."""

from decimal import Decimal, InvalidOperation
from typing import NewType

from kit.errors import InvalidInput

MicroYuan = NewType("MicroYuan", int)
"""One millionth of a yuan."""
GpuMs = NewType("GpuMs", int)
"""One accelerator (GPU or CPU slot) for one millisecond."""
GpuMilli = NewType("GpuMilli", int)
"""One thousandth of one accelerator."""
Tokens = NewType("Tokens", int)
Ppm = NewType("Ppm", int)
"""Parts per million, for shares."""

MICRO_PER_YUAN = 1_000_000
MILLI_PER_GPU = 1_000
MS_PER_HOUR = 3_600_000
PPM = 1_000_000
MAX_AMOUNT = 2**53
"""Largest amount any one entry may carry; beyond it JSON readers lose digits."""


def div_half_even(numerator: int, denominator: int) -> int:
    """`numerator / denominator` rounded to the nearest integer, ties to even. `denominator` > 0."""
    assert denominator > 0, "rounding needs a positive denominator"
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient % 2 == 1):
        quotient += 1
    return quotient


def parse_yuan(text: str) -> MicroYuan:
    """`"12.50"` → 12,500,000 micro-yuan. Raises InvalidInput for more than six decimals or no number."""
    try:
        micro = Decimal(text.strip().removeprefix("¥").replace(",", "")) * MICRO_PER_YUAN
    except InvalidOperation:
        raise InvalidInput(f"{text!r} is not an amount of yuan; write it as 12.50") from None
    if not micro.is_finite() or micro != micro.to_integral_value() or abs(micro) > MAX_AMOUNT:
        raise InvalidInput(f"{text!r} is not a whole number of micro-yuan below 2^53; give at most six decimals")
    return MicroYuan(int(micro))


def format_yuan(amount: int) -> str:
    """12,500,000 → `¥12.50`; keeps two decimals at least and six at most."""
    sign, whole = ("-" if amount < 0 else ""), abs(amount)
    yuan, micro = divmod(whole, MICRO_PER_YUAN)
    decimals = f"{micro:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}¥{yuan:,}.{decimals}"


def gpu_ms(gpu_milli: int, ran_ms: int) -> GpuMs:
    """Accelerator time of `gpu_milli` thousandths held for `ran_ms` milliseconds, rounded down."""
    return GpuMs(gpu_milli * ran_ms // MILLI_PER_GPU)
