"""Identifiers: a prefix that names the noun and 26 characters that sort by time (ULID alphabet)."""

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID = re.compile(r"^[a-z]{2,4}_[0-9a-z]{8,40}$")


def new_id(prefix: str) -> str:
    """`<prefix>_` and 48 bits of milliseconds then 80 random bits in Crockford base 32, lower case."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    digits: list[str] = []
    for _ in range(26):
        value, digit = divmod(value, 32)
        digits.append(_ALPHABET[digit])
    return f"{prefix}_{''.join(reversed(digits))}"


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` has the form of an id of this noun."""
    return text.startswith(f"{prefix}_") and _ID.match(text) is not None
