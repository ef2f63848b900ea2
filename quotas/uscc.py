"""The Unified Social Credit Code (统一社会信用代码), GB 32100-2015: form and check character.

A wrong form cannot be a code at all and is refused; a wrong check character is shown to a person, because some codes
that were really issued fail the check.
"""

from dataclasses import dataclass

from kit.errors import InvalidInput

ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"
"""31 characters: digits and capitals without I, O, S, V, Z (GB 32100-2015 §4.1)."""

LENGTH = 18
_WEIGHTS = tuple(pow(3, place, 31) for place in range(LENGTH - 1))
_VALUE = {character: value for value, character in enumerate(ALPHABET)}


@dataclass(frozen=True, slots=True)
class UsccCheck:
    """A code of the right form. `doubt` is None, or the sentence a reviewer reads."""

    uscc: str
    doubt: str | None

    @property
    def is_certain(self) -> bool:
        return self.doubt is None


def check_character(body: str) -> str:
    """The 18th character for the first 17 (GB 32100-2015 §4.5): (31 − Σ 3^i·value mod 31) mod 31."""
    total = sum(weight * _VALUE[character] for weight, character in zip(_WEIGHTS, body, strict=True))
    return ALPHABET[(31 - total % 31) % 31]


def check_uscc(text: str) -> UsccCheck:
    """The code in capitals, with the reason for doubt where the check character is wrong.

    Raises InvalidInput (`uscc_length`, `uscc_alphabet`) for what cannot be a code.
    """
    uscc = text.strip().upper()
    if len(uscc) != LENGTH:
        raise InvalidInput(
            f"A unified social credit code has {LENGTH} characters; this one has {len(uscc)}.",
            code="uscc_length",
            hint="Copy the code from the business licence, without spaces.",
        )
    strange = sorted({character for character in uscc if character not in _VALUE})
    if strange:
        raise InvalidInput(
            f"A unified social credit code has digits and capitals without I, O, S, V, Z; found {' '.join(strange)}.",
            code="uscc_alphabet",
            hint="A letter O is usually the digit 0, a letter I the digit 1.",
        )
    expected = check_character(uscc[:-1])
    if expected == uscc[-1]:
        return UsccCheck(uscc, None)
    return UsccCheck(
        uscc,
        f"The check character of {uscc} is {uscc[-1]}, but GB 32100-2015 gives {expected} for the first 17;"
        " compare the code with the business licence.",
    )
