"""Identifiers: a prefix that names the noun and 26 characters that sort by time (ULID alphabet)."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """`<prefix>_` and 48 bits of milliseconds then 80 random bits in Crockford base 32, lower case."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    digits: list[str] = []
    for _ in range(26):
        value, digit = divmod(value, 32)
        digits.append(_ALPHABET[digit])
    return f"{prefix}_{''.join(reversed(digits))}"
